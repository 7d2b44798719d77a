"""What a run was made with, as rows of a name and a value."""

from typing import Any

from gradwise.report.folder import CompareRun
from gradwise.report.values import number, text

__all__ = ["settings_rows", "version_rows"]


def settings_rows(run: CompareRun) -> list[tuple[str, str]]:
    """The settings by name, then what belongs to the comparison itself.

    Args:
        run: the compare run.
    """
    rows = {name.replace("_", " "): text(value) for name, value in run.settings.items()}
    rates = sorted({rate for one in run.methods if (rate := learning_rate(run, one)) is not None})
    if rates and run.settings.get("lr") is None:
        rows["lr"] = f"{text([f'{rate:g}' for rate in rates])} (the usual of the optimizer)"
    rows |= {"seeds": text(list(run.seeds)), "baseline": run.baseline}
    fingerprint = run.config.get("dataset")
    if isinstance(fingerprint, str):
        rows["data checksum"] = fingerprint[:16]
    return list(rows.items())


def learning_rate(run: CompareRun, method: str) -> float | None:
    """The learning rate a method was given, where its results or the summary tell.

    Args:
        run: the compare run.
        method: its name.
    """
    told = [run.facts(method).get("learning_rate")]
    told += [trial.result.get("learning_rate") for trial in run.trials[method]]
    return next((rate for one in told if (rate := number(one)) is not None), None)


def version_rows(run: CompareRun) -> list[tuple[str, str]]:
    """The versions and the machine by name, as the summary has them.

    Args:
        run: the compare run.
    """
    versions: Any = run.summary.get("versions")
    if not isinstance(versions, dict):
        return []
    return [(name.replace("_", " "), text(value)) for name, value in versions.items()]
