"""Take finished runs into this folder, and their verdicts into the package.

    python docs/reproductions/collect.py runs/reproduce-*

Of each run its pages, pictures and results.json are kept, not the cells or trials. The list in
README.md and the verdicts that `gradwise reproduce --list` shows are written from what lies here,
so without arguments they are only brought up to date.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.files import read_json, to_json
from gradwise.reproduce import recipes

HERE = Path(__file__).resolve().parent
VERDICTS = HERE.parents[1] / "src/gradwise/reproduce/verdicts.json"
KEPT = ("scale", "verdict", "date", "versions")
HEAD = """# Reproductions

Every experiment of `gradwise reproduce`, as it came out when it was last run and committed. Each
page has the paper's claims, our numbers with intervals, the paper's picture drawn from our data,
all settings with their sources, and the command that made it. A negative result is a result.

`small` is what two CPU cores do in minutes. It is smaller than the papers' experiments, so *not
reproduced* says that the claim did not hold at that size, and *inconclusive* that the seeds and
steps there were too few to tell.

| experiment | verdict | scale | claim |
| --- | --- | --- | --- |
"""


def take(run: Path) -> None:
    """Copy what is kept of a run, in place of what was there."""
    results = read_json(run / "results.json")
    if results["recipe"] not in recipes():
        raise UserError(f"{run} is a run of {results['recipe']!r}, which is no recipe")
    page = HERE / results["recipe"]
    shutil.rmtree(page, ignore_errors=True)
    page.mkdir()
    for path in sorted(run.iterdir()):
        if path.name in ("results.json", "report.html", "report.md") or path.suffix == ".svg":
            shutil.copyfile(path, page / path.name)


def verdicts() -> dict[str, dict[str, Any]]:
    """What `verdicts.json` has to hold."""
    found = {path.parent.name: read_json(path) for path in sorted(HERE.glob("*/results.json"))}
    return {name: {key: results[key] for key in KEPT} for name, results in found.items()}


def index() -> str:
    """What `README.md` has to hold."""
    known, lines = recipes(), []
    for name, last in verdicts().items():
        claim = known[name].claim.replace("|", "\\|")
        lines.append(
            f"| [{name}]({name}/report.md) | {last['verdict']} | {last['scale']} | {claim} |"
        )
    return HEAD + "\n".join(lines) + "\n"


def main(runs: Sequence[str]) -> None:
    """Take the runs in and write both lists."""
    for run in runs:
        take(Path(run))
    VERDICTS.write_text(to_json(verdicts()) + "\n")
    (HERE / "README.md").write_text(index())


if __name__ == "__main__":
    main(sys.argv[1:])
