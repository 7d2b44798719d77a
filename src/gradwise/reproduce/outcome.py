"""What came of a recipe: `results.json`, and the page that says it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
from pathlib import Path
from typing import Any

import torch

from gradwise.lab.outcome import device_name, versions_in_full
from gradwise.report.article import Article, Part, Table, write_article
from gradwise.report.words import plural
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.planning import Plan, reads_files

__all__ = ["outcome", "write_page"]

FORMAT = 1
_SCALES = {
    "smoke": "the size of a test: it shows that everything runs, not what a paper found",
    "small": "what two CPU cores do in minutes: smaller than the paper's experiment",
    "full": "the paper's size, as far as its settings are known",
}


def outcome(planned: Plan, conclusion: Conclusion, seconds: float) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
        planned: what was run.
        conclusion: what was found.
        seconds: of all cells or trials together.
    """
    settings = {key: value for key, value in planned.settings.items() if key != "data_dir"}
    return {
        "format": FORMAT,
        "recipe": planned.recipe.name,
        "scale": planned.scale,
        "verdict": conclusion.verdict,
        "claims": [
            {"text": one.text, "measured": one.measured, "verdict": one.verdict}
            for one in conclusion.claims
        ],
        "tables": [table.to_dict() for table in conclusion.tables],
        "notes": list(conclusion.notes),
        "settings": settings,
        "changed": list(planned.changed),
        "units": planned.units,
        "work_s": round(seconds, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions_in_full(),
        "machine": {
            "device": device_name(torch.device(planned.settings["device"])),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "command": _command(planned),
    }


def write_page(
    planned: Plan, conclusion: Conclusion, found: dict[str, Any], folder: Path
) -> list[Path]:
    """Write `report.html`, `report.md` and the pictures.

    Args:
        planned: what was run.
        conclusion: what was found.
        found: what `results.json` holds.
        folder: an existing one.
    """
    recipe = planned.recipe
    parts = [
        Part(
            "Claims",
            paragraphs=(f"{'The paper says' if recipe.paper.url else 'Asked'}: {recipe.claim}",),
            points=tuple(
                (one.verdict, f"{one.text} Measured: {one.measured.rstrip('.')}.")
                for one in conclusion.claims
            ),
        ),
        Part("What was measured", pictures=conclusion.pictures, tables=conclusion.tables),
        Part("What it rests on", paragraphs=(_scale_words(planned), *conclusion.notes)),
        Part("Settings", tables=(_settings_table(planned),)),
        Part("How to reproduce", facts=_facts(found), code=_command(planned)),
    ]
    return write_article(
        Article(
            title=recipe.title,
            kicker=f"gradwise · reproduction · {recipe.name} · scale {planned.scale}",
            lead=_lead(conclusion),
            parts=tuple(part for part in parts if part.pictures or part != Part(part.title)),
            badge=conclusion.verdict,
            source=recipe.paper.line,
            url=recipe.paper.url,
        ),
        folder,
    )


def _lead(conclusion: Conclusion) -> str:
    counts = [
        f"{number} {word}"
        for word in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)
        if (number := sum(one.verdict == word for one in conclusion.claims))
    ]
    return f"Of {plural(len(conclusion.claims), 'claim')}: {', '.join(counts)}."


def _scale_words(planned: Plan) -> str:
    smaller = planned.recipe.smaller.get(planned.scale, {})
    shrunk = [
        f"{name} {value!r} instead of {planned.recipe.settings[name].value!r}"
        for name, value in smaller.items()
        if value != planned.recipe.settings[name].value and name not in planned.changed
    ]
    words = f"Scale {planned.scale} is {_SCALES[planned.scale]}."
    if shrunk:
        words += f" Other than in the full experiment: {'; '.join(shrunk)}."
    if planned.changed:
        told = ", ".join(f"{name}={planned.settings[name]!r}" for name in planned.changed)
        words += f" Changed by hand: {told}."
    return words


def _settings_table(planned: Plan) -> Table:
    rows = []
    for name, setting in planned.recipe.settings.items():
        here, full = planned.settings[name], setting.value
        rows.append(
            (name, _text(here), "" if here == full else _text(full), setting.tag, setting.why)
        )
    return Table(
        "Settings",
        ("setting", "here", "full scale", "tag", "why"),
        tuple(rows),
        "[V] seen in the paper or its authors' code, [V2] in a secondary source, [D] derived or "
        "measured, [R] recalled, [X] this library's choice. Tags are those of the full scale.",
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _facts(found: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    facts = [*found["versions"].items(), *found["machine"].items()]
    facts += [("date", found["date"]), ("work of all processes", f"{found['work_s']:.0f} s")]
    return tuple((name, str(value)) for name, value in facts)


def _command(planned: Plan) -> str:
    words = ["gradwise", "reproduce", planned.recipe.name, "--scale", planned.scale]
    if reads_files(planned.settings):
        words += ["--data-dir", "DATA"]
    for name in planned.changed:
        words += ["--set", f"{name}={json.dumps(planned.settings[name])}"]
    return shlex.join(words)
