"""The rows of the report's tables, which the page and its Markdown twin share."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gradwise.report.folder import STATUSES, CompareRun
from gradwise.report.settings import learning_rate
from gradwise.report.values import interval, number, numbers
from gradwise.report.words import (
    accuracy_points,
    duration,
    memory,
    p_value,
    percent,
    plain,
    ratio,
    span,
)

__all__ = ["Comparison", "MethodRow", "comparisons", "method_rows", "paint"]

COLORS = 7
"""Colours of the methods that are not the baseline, `--c1` and on in the style sheet."""

DASHES = 4
"""Dash patterns, beginning with the unbroken line, for what has to share a colour."""

VERDICTS = ("better", "worse", "no difference detected")


@dataclass(frozen=True)
class Comparison:
    """What the statistics say about one method against the baseline.

    Attributes:
        method: the method's name.
        difference: mean difference of the test accuracy, 1 for a hundred points.
        ci95: its 95 % interval.
        p: the corrected p-value.
        verdict: one of `VERDICTS`; empty where the summary has none that is known.
        note: what the numbers rest on.
        pairs: the differences seed by seed, where both have a value.
    """

    method: str
    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    verdict: str
    note: str
    pairs: tuple[float, ...] = ()


def comparisons(run: CompareRun) -> dict[str, Comparison]:
    """The comparisons of a run by method, without what is not a comparison of its methods.

    Args:
        run: the compare run.
    """
    found = {}
    listed = run.summary.get("comparisons")
    base = _accuracies(run, run.baseline)
    for one in listed if isinstance(listed, list) else []:
        method = one.get("method") if isinstance(one, dict) else None
        if not isinstance(method, str) or method not in run.methods or method == run.baseline:
            continue
        verdict = one.get("verdict")
        note = one.get("note")
        pairs = zip(_accuracies(run, method), base, strict=False)
        found[method] = Comparison(
            method,
            number(one.get("difference")),
            interval(one.get("ci95")),
            number(one.get("p")),
            verdict if verdict in VERDICTS else "",
            note if isinstance(note, str) else "",
            tuple(own - other for own, other in pairs if own is not None and other is not None),
        )
    return found


def _accuracies(run: CompareRun, method: str) -> list[float | None]:
    """Test accuracies, one a seed; from the trials themselves while there is no summary."""
    accuracy = run.facts(method).get("test_accuracy")
    if isinstance(accuracy, dict):
        return numbers(accuracy.get("values"))
    return [number(trial.result.get("test_accuracy")) for trial in run.trials[method]]


@dataclass(frozen=True)
class MethodRow:
    """One line of the results and of the costs, in words.

    Attributes:
        name: the method.
        color: number of its colour, 0 for the baseline.
        dash: number of its dash pattern, for when there are more methods than colours.
        baseline: whether the others are compared with it.
        accuracy: mean test accuracy.
        accuracy_ci: its 95 % interval.
        comparison: against the baseline; None for the baseline and where there is none.
        difference: difference in points.
        difference_ci: its 95 % interval.
        p: the corrected p-value.
        verdict: the verdict; "baseline" for the baseline.
        wall: time of a trial.
        wall_s: the same in seconds.
        wall_ratio: against the baseline.
        throughput: samples a second.
        throughput_ratio: against the baseline.
        memory: peak memory.
        memory_bytes: the same in bytes.
        memory_ratio: against the baseline.
        trials: how many trials ended how.
        complete: whether all trials finished.
        summary: one line on what the method is.
        paper: where it comes from.
        url: where to read it; empty unless it is a web address.
        tag: how sure its form is.
        rate: the learning rate that was chosen from a grid; empty where there is none.
    """

    name: str
    color: int
    dash: int
    baseline: bool
    accuracy: str
    accuracy_ci: str
    comparison: Comparison | None
    difference: str
    difference_ci: str
    p: str
    verdict: str
    wall: str
    wall_s: float | None
    wall_ratio: str
    throughput: str
    throughput_ratio: str
    memory: str
    memory_bytes: float | None
    memory_ratio: str
    trials: str
    complete: bool
    summary: str
    paper: str
    url: str
    tag: str
    rate: str = ""


def method_rows(run: CompareRun) -> list[MethodRow]:
    """One row a method, in the order they were asked for.

    Args:
        run: the compare run.
    """
    compared = comparisons(run)
    base = _costs(run, run.baseline)
    return [_row(run, method, compared.get(method), base) for method in run.methods]


def paint(run: CompareRun) -> list[tuple[int, int]]:
    """The colour and the dash pattern of each method: the baseline neutral, the others in turn.

    Args:
        run: the compare run.
    """
    found = []
    turn = 0
    for method in run.methods:
        if method == run.baseline:
            found.append((0, 0))
        else:
            found.append((1 + turn % COLORS, turn // COLORS % DASHES))
            turn += 1
    return found


def _row(
    run: CompareRun,
    method: str,
    compared: Comparison | None,
    base: Mapping[str, float | None],
) -> MethodRow:
    facts = run.facts(method)
    mean, ci95 = _accuracy(run, method)
    costs = _costs(run, method)
    counts = Counter(trial.status for trial in run.trials[method])
    is_base = method == run.baseline
    color, dash = paint(run)[run.methods.index(method)]
    return MethodRow(
        name=method,
        color=color,
        dash=dash,
        baseline=is_base,
        accuracy=percent(mean),
        # Student's interval knows no bounds; an accuracy does.
        accuracy_ci=span(ci95 and (max(ci95[0], 0.0), min(ci95[1], 1.0))),
        comparison=compared,
        difference=accuracy_points(compared.difference) if compared else "–",
        difference_ci=span(compared.ci95, signed=True) if compared else "–",
        p=p_value(compared.p) if compared else "–",
        verdict="baseline" if is_base else compared.verdict if compared else "",
        wall=duration(costs["wall"]),
        wall_s=costs["wall"],
        wall_ratio=ratio(costs["wall"], base["wall"]),
        throughput=plain(costs["throughput"]),
        throughput_ratio=ratio(costs["throughput"], base["throughput"]),
        memory=memory(costs["memory"]),
        memory_bytes=costs["memory"],
        memory_ratio=ratio(costs["memory"], base["memory"]),
        trials=", ".join(f"{counts[one]} {one}" for one in STATUSES if counts[one]),
        complete=set(counts) == {"finished"},
        summary=_string(facts.get("summary")),
        paper=_string(facts.get("paper")),
        url=_address(facts.get("url")),
        tag=_string(facts.get("tag")),
        rate=f"{rate:.12g}" if run.rates and (rate := learning_rate(run, method)) else "",
    )


def _accuracy(run: CompareRun, method: str) -> tuple[float | None, tuple[float, float] | None]:
    accuracy = run.facts(method).get("test_accuracy")
    if isinstance(accuracy, dict):
        return number(accuracy.get("mean")), interval(accuracy.get("ci95"))
    return _mean(_accuracies(run, method)), None


def _costs(run: CompareRun, method: str) -> dict[str, float | None]:
    names = {"wall": "wall_time_s", "throughput": "samples_per_s", "memory": "peak_memory_bytes"}
    facts = run.facts(method)
    found = {}
    for short, name in names.items():
        summed = facts.get(name)
        if isinstance(summed, dict):
            found[short] = number(summed.get("mean"))
        else:
            found[short] = _mean([number(one.result.get(name)) for one in run.trials[method]])
    return found


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _address(value: object) -> str:
    """A web address as it is; nothing for anything that would run or open something else."""
    try:
        parts = urlsplit(_string(value))
    except ValueError:
        return ""
    return _string(value) if parts.scheme in ("http", "https") and parts.netloc else ""
