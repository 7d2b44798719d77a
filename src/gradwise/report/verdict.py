"""The answer in sentences: what was found, and what to beware of."""

from collections.abc import Sequence

from gradwise.report.folder import CompareRun, Trial
from gradwise.report.tables import MethodRow
from gradwise.report.values import number, text, whole
from gradwise.report.words import join, percent, plural

__all__ = ["headline", "notes_of", "sentences", "title", "warnings_of"]


def title(run: CompareRun) -> str:
    """What was trained on what, as far as the settings tell.

    Args:
        run: the compare run.
    """
    model, data = (run.settings.get(name) for name in ("model", "data"))
    named = [name for name in (model, data) if isinstance(name, str) and name]
    return " on ".join(named) if named else run.path.resolve().name


def headline(run: CompareRun, rows: Sequence[MethodRow]) -> str:
    """The answer in one sentence.

    Args:
        run: the compare run.
        rows: the rows of its methods.
    """
    others = [row for row in rows if not row.baseline]
    if not others:
        return f"Only the baseline {run.baseline} was run, so there is nothing to compare."
    judged = [row for row in others if row.verdict]
    if not judged:
        return "There is no comparison yet."
    better = [row.name for row in judged if row.verdict == "better"]
    worse = [row.name for row in judged if row.verdict == "worse"]
    rest = len(judged) - len(better) - len(worse)
    parts = []
    if better:
        parts.append(f"{join(better)} {_was(better)} better than {run.baseline}")
    if worse:
        than = "" if better else f" than {run.baseline}"
        parts.append(f"{join(worse)} {_was(worse)} worse{than}")
    if not parts:
        which = judged[0].name if len(judged) == 1 else f"any of the {len(judged)} other methods"
        return f"No difference from {run.baseline} was detected for {which}."
    if rest:
        parts.append(f"for {plural(rest, 'other')} no difference was detected")
    return "; ".join(parts) + "."


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def sentences(run: CompareRun, rows: Sequence[MethodRow]) -> list[tuple[str, str, str]]:
    """One sentence a compared method: its verdict, its name and what the numbers are.

    Args:
        run: the compare run.
        rows: the rows of its methods.
    """
    found = []
    for row in rows:
        compared = row.comparison
        if row.baseline or compared is None or not compared.verdict:
            continue
        words = f"{row.difference} points of test accuracy against {run.baseline}"
        details = []
        if compared.ci95 is not None:
            details.append(f"95\u00a0% interval {row.difference_ci}")
        if compared.p is not None:
            shown = row.p if row.p.startswith("<") else f"= {row.p}"
            details.append(f"corrected p {shown}".replace(" ", "\u00a0"))
        if details:
            words += f" ({', '.join(details)})"
        note = f"; {compared.note}" if compared.note else ""
        found.append((compared.verdict, row.name, f"{words}{note}."))
    return found


def warnings_of(run: CompareRun, troubles: Sequence[str] = ()) -> list[str]:
    """What a reader must know before believing the numbers, the gravest first.

    Args:
        run: the compare run.
        troubles: sentences on what could not be read.
    """
    found = _unfair(run)
    trials = [*run.all_trials(), *run.others]
    missing = [trial for trial in trials if trial.status == "missing"]
    late = [trial for trial in trials if trial.result and not trial.summed]
    if missing:
        done = len(trials) - len(missing)
        found.append(
            f"This run is not complete: {done} of {plural(len(trials), 'trial')} are done. "
            "Running the same command again does the rest."
        )
    if late and run.summary:
        found.append(
            f"{plural(len(late), 'trial')} ended after the summary was written, so the "
            "comparison leaves them out. Running the same command again brings it up to date."
        )
    elif not run.summary:
        found.append("There is no summary.json yet, so there are no intervals and no verdicts.")
    # With learning rates that were only tried, diverging is a finding, and stands in their table.
    found += [_failure(trial) for trial in run.all_trials() if trial.status == "diverged"]
    found += [_failure(trial) for trial in trials if trial.status == "failed"]
    for method in run.methods:
        skipped = whole(run.facts(method).get("skipped"))
        if skipped:
            found.append(
                f"{method} left {plural(skipped, 'step')} alone because a gradient was not finite."
            )
    return found + [f"{one[:1].upper()}{one[1:].rstrip('.')}." for one in troubles]


def _failure(trial: Trial) -> str:
    """A sentence on a trial that did not run to its end."""
    rate = "" if trial.rate is None else f"learning rate {trial.rate:.12g} and "
    which = f"{trial.method} with {rate}seed {trial.seed}"
    if trial.status == "failed":
        reason = f": {trial.reason.strip().rstrip('.')}" if trial.reason else ""
        return f"{which} failed{reason}. It has no result and takes no part in the statistics."
    step = whole(trial.result.get("diverged_at_step"))
    when = "" if step is None else f" at step {step}"
    accuracy = number(trial.result.get("test_accuracy"))
    counts = "" if accuracy is None else f", with a test accuracy of {percent(accuracy)}"
    return (
        f"{which} diverged{when}: its loss was no longer finite. "
        f"It counts in the statistics{counts}."
    )


def notes_of(run: CompareRun) -> list[str]:
    """What the summary itself remarks on its numbers.

    Args:
        run: the compare run.
    """
    notes = run.summary.get("notes")
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def _unfair(run: CompareRun) -> list[str]:
    """Sentences on what was not the same for all methods within a seed."""
    fairness = run.summary.get("fairness")
    if not isinstance(fairness, dict):
        return []
    found = []
    if fairness.get("init_checksum_equal") is False:
        found.append(
            "Not all methods started from the same weights within a seed: "
            "differences may come from that."
        )
    if fairness.get("batches_checksum_equal") is False:
        found.append(
            "Not all methods saw the same batches within a seed: differences may come from that."
        )
    listed = fairness.get("differences")
    if isinstance(listed, list):
        found += [f"The trials differ: {text(one).rstrip('.')}." for one in listed]
    return found
