"""What the trials say, and how sure that is: intervals, paired tests and verdicts."""

import difflib
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats
from statsmodels.stats.multitest import multipletests

from gradwise.errors import UserError

NO_DIFFERENCE = "no difference detected"

# Squares and t quantiles of numbers up to here stay far from the largest float.
_LARGEST = 1e150


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline, over the seeds that both have.

    Args:
        method: Name of the method.
        difference: Mean of (method - baseline) over the pairs, in units of the metric, whichever
            direction is good; None without a pair.
        ci95: 95 % confidence interval of the difference, for this comparison alone; None where
            the spread between seeds cannot be judged.
        p: Two-sided p-value, corrected by Holm's method for the number of methods tested; None
            where `ci95` is.
        verdict: "better", "worse" or "no difference detected".
        note: One sentence on what the numbers rest on.

    Examples:
        >>> compare("sgd", {"sgd": {0: 0.5}, "clip": {0: 0.6}})[0].note
        '1 pair; two seeds are the least that an interval and a test need'
    """

    method: str
    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    verdict: str
    note: str


def mean_ci(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the mean and its 95 % confidence interval by Student's t.

    Args:
        values: One value a seed, finite.

    Returns:
        The mean, and the interval as (lower, upper), or None for a single value.

    Raises:
        UserError: If there is no value or one is not finite.

    Examples:
        >>> mean, (lower, upper) = mean_ci([0.90, 0.92, 0.91])
        >>> f"{mean:.3f} [{lower:.3f}, {upper:.3f}]"
        '0.910 [0.885, 0.935]'
        >>> mean_ci([0.9])
        (0.9, None)
    """
    if not values:
        raise UserError("expected at least one value, got none")
    for value in values:
        _check_value(value, "values")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None
    return mean, _interval(mean, statistics.stdev(values), len(values))


def compare(
    baseline: str,
    values: Mapping[str, Mapping[int, float]],
    *,
    resolution: float = 0.0,
    higher_is_better: bool = True,
    alpha: float = 0.05,
) -> list[Comparison]:
    """Compare each method with the baseline by a paired t-test over the seeds both have.

    Within a seed all methods start from the same weights and see the same batches, so the test
    looks at the differences seed by seed. Its p-values are corrected by Holm's method over the
    methods that have one, and a verdict other than "no difference detected" needs the corrected
    p below `alpha`.

    The standard deviation of the differences is not allowed below `resolution / sqrt(6)`. A
    metric that moves in steps of r is a rounded number, whose error has the variance r^2 / 12,
    and a difference of two has r^2 / 6. Without that floor three seeds that differ by the same
    two test samples would have no spread at all and hence p = 0. Where neither the seeds nor the
    resolution give any spread, a difference gets no p-value; if it is zero, p is 1.

    Args:
        baseline: Name of the method that the others are compared with, a key of `values`.
        values: The metric by method and seed, finite. A trial that diverged counts with the
            metric it ended with; a trial that failed has no entry.
        resolution: The step in which the metric moves: 1 / (number of test samples) for an
            accuracy, 0 for a metric that is not rounded.
        higher_is_better: Whether a larger metric is the better one.
        alpha: Level of the verdicts, above 0 and below 1.

    Returns:
        One comparison for each method but the baseline, in the order of `values`. No number in it
        is NaN or infinite.

    Raises:
        UserError: If the baseline is missing or an argument is out of its bounds.

    Examples:
        >>> values = {
        ...     "sgd": {0: 0.900, 1: 0.910, 2: 0.905},
        ...     "autoscale": {0: 0.921, 1: 0.930, 2: 0.924},
        ... }
        >>> result = compare("sgd", values, resolution=1 / 1000)[0]
        >>> result.verdict, round(result.difference, 3), result.p < 0.01
        ('better', 0.02, True)
    """
    if baseline not in values:
        nearest = difflib.get_close_matches(baseline, values, n=1, cutoff=0.0)
        hint = f": did you mean {nearest[0]!r}?" if nearest else ", there are no values"
        raise UserError(f"expected baseline to be one of the methods, got {baseline!r}{hint}")
    if not (math.isfinite(resolution) and resolution >= 0):
        raise UserError(f"expected a finite resolution >= 0, got resolution={resolution}")
    if not 0 < alpha < 1:
        raise UserError(f"expected 0 < alpha < 1, got alpha={alpha}")
    for method, by_seed in values.items():
        for seed, value in by_seed.items():
            _check_value(value, f"values of {method!r} at seed {seed}")

    floor = resolution / math.sqrt(6)
    tested = [
        _paired(method, baseline, values[baseline], by_seed, floor)
        for method, by_seed in values.items()
        if method != baseline
    ]
    raw = [comparison.p for comparison in tested if comparison.p is not None]
    corrected = iter(multipletests(raw, alpha=alpha, method="holm")[1] if raw else ())
    return [
        comparison
        if comparison.p is None
        else _judged(comparison, float(next(corrected)), alpha, higher_is_better)
        for comparison in tested
    ]


def _check_value(value: float, where: str) -> None:
    if not abs(value) <= _LARGEST:  # also catches NaN
        raise UserError(f"expected finite {where}, at most 1e150 in size, got {value}")


def _interval(mean: float, deviation: float, n: int) -> tuple[float, float]:
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean - half, mean + half


def _paired(
    method: str,
    baseline: str,
    reference: Mapping[int, float],
    by_seed: Mapping[int, float],
    floor: float,
) -> Comparison:
    """Return the comparison with its uncorrected p-value, and no verdict yet."""
    seeds = sorted(reference.keys() & by_seed.keys())
    notes = [f"{len(seeds)} pair{'' if len(seeds) == 1 else 's'}"]
    for name, missing in (
        (method, reference.keys() - by_seed.keys()),
        (baseline, by_seed.keys() - reference.keys()),
    ):
        if missing:
            listed = ", ".join(map(str, sorted(missing)))
            notes.append(f"{name} has no result for seed{'s' * (len(missing) > 1)} {listed}")

    differences = [by_seed[seed] - reference[seed] for seed in seeds]
    mean = statistics.fmean(differences) if differences else None
    interval = p = None
    if mean is None or len(seeds) < 2:
        notes.append("two seeds are the least that an interval and a test need")
    else:
        deviation = statistics.stdev(differences)
        # Equal differences of decimal fractions differ by rounding in the last binary digits.
        # That is no spread, and neither is anything that underflows below.
        largest = max(max(abs(by_seed[s]), abs(reference[s])) for s in seeds)
        epsilon = sys.float_info.epsilon
        noise = 8 * epsilon * max(largest, sys.float_info.min / epsilon)
        if deviation < floor:
            notes.append("the seeds spread less than the metric's resolution, which stands in")
        deviation = max(deviation, floor)
        if deviation > noise:
            interval = _interval(mean, deviation, len(seeds))
            t = mean / (deviation / math.sqrt(len(seeds)))
            p = min(1.0, 2 * float(stats.t.sf(abs(t), len(seeds) - 1)))
        elif abs(mean) <= noise:
            interval, p = (mean, mean), 1.0
            notes.append("the results are the same")
        else:
            notes.append("all pairs differ by the same amount, so the spread cannot be judged")
    return Comparison(method, mean, interval, p, NO_DIFFERENCE, "; ".join(notes))


def _judged(raw: Comparison, p: float, alpha: float, higher_is_better: bool) -> Comparison:
    """Return the comparison with the corrected p-value and the verdict that it allows."""
    verdict = NO_DIFFERENCE
    if p < alpha and raw.difference:
        verdict = "better" if (raw.difference > 0) == higher_is_better else "worse"
    return Comparison(raw.method, raw.difference, raw.ci95, p, verdict, raw.note)
