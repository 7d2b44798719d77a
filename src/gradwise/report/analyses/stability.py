"""What one sample does to a training: distances of paired runs, the gap, the bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from gradwise.analysis.stability import Stability
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import axes, svg

Interval = tuple[float, float]


def intervals(result: Stability) -> list[Interval | None]:
    """95 % intervals of eps^2 by Student's t, one a step; over seeds, or replaced samples of one.

    Args:
        result: what was measured.
    """
    seeds, samples = result.squared_distances.shape[1:]
    count = seeds if seeds > 1 else samples
    if result.error is None:
        return [None] * len(result.eps_squared)
    width = float(stats.t.ppf(0.975, count - 1))
    pairs = zip(result.eps_squared.tolist(), result.error.tolist(), strict=True)
    return [(max(0.0, mean - width * error), mean + width * error) for mean, error in pairs]


def steps_of(result: Stability) -> list[int]:
    """Where runs were compared."""
    return [*(result.steps or ())]


def lead(result: Stability) -> str:
    """The answer in a sentence or two.

    Args:
        result: with steps.
    """
    last, interval = result.eps_squared[-1].item(), intervals(result)[-1]
    sure = "" if interval is None else f" (95 % interval {interval[0]:.3g} to {interval[1]:.3g})"
    gap = ""
    if result.test_loss is not None:
        gap = f" The generalisation gap is {result.gap[-1].item():.3g}."
    return (
        f"After {steps_of(result)[-1]} steps, replacing one of {result.samples} samples has moved "
        f"the parameters by {math.sqrt(last):.3g} in root mean square: eps^2 = {last:.3g}{sure}."
        f"{gap}"
    )


def tables(result: Stability, smoothness: float | None) -> tuple[Table, ...]:
    """eps^2, losses, gap and bound, a row for each step.

    Args:
        result: with steps.
        smoothness: G of the bound; None leaves the bound out.
    """
    bounds = None if smoothness is None else result.bound(smoothness).tolist()
    header = ["step", "eps^2", "95 % interval", "training loss"]
    tested = result.test_loss is not None
    header += ["test loss", "gap"] if tested else []
    header += ["bound of the gap"] if bounds is not None else []
    rows: list[tuple[str, ...]] = []
    for at, (step, interval) in enumerate(zip(steps_of(result), intervals(result), strict=True)):
        row = [str(step), f"{result.eps_squared[at].item():.4g}", _words(interval)]
        row.append("—" if result.train_loss is None else _mean(result.train_loss[at].tolist()))
        if result.test_loss is not None:
            row += [_mean(result.test_loss[at].tolist()), f"{result.gap[at].item():.4g}"]
        if bounds is not None:
            row.append(f"{bounds[at]:.4g}")
        rows.append(tuple(row))
    seeds, samples = len(result.seeds), len(result.indices)
    over = "seeds" if seeds > 1 else "replaced samples, of one seed"
    note = (
        f"Means over {seeds} {'seed' if seeds == 1 else 'seeds'} and {samples} replaced samples; "
        f"intervals by Student's t over {over}."
    )
    if smoothness is not None:
        note += (
            f" The bound is (G/2) eps^2 + sqrt(2 G L) eps with G = {smoothness:g}, for a loss "
            "that is non-negative and G-smooth in the parameters; whether yours is, only you know."
        )
    return (Table("Stability", tuple(header), tuple(rows), note),)


def pictures(result: Stability) -> tuple[Picture, ...]:
    """eps^2 over steps with its interval, and the gap.

    Args:
        result: with steps.
    """
    tested = result.test_loss is not None
    steps, found = steps_of(result), intervals(result)
    with axes(1, 2 if tested else 1, squeeze=False) as (figure, grid):
        left = grid[0][0]
        (line,) = left.plot(steps, result.eps_squared.tolist(), marker="o", markersize=4)
        if all(interval is not None for interval in found):
            low, high = zip(*(interval for interval in found if interval), strict=True)
            left.fill_between(steps, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        left.set_ylabel("eps²")
        left.set_ylim(bottom=0)
        if tested and result.test_loss is not None and result.train_loss is not None:
            right = grid[0][1]
            right.plot(steps, result.train_loss.mean(1).tolist(), label="training", marker="o")
            right.plot(steps, result.test_loss.mean(1).tolist(), label="test", marker="o")
            right.set_ylabel("loss")
            right.legend()
        for axis in grid[0]:
            axis.set_xlabel("step")
        return (
            Picture(
                "stability",
                "Squared distance of the parameters that one replaced sample makes, and its 95 % "
                "interval" + ("; and the losses whose difference is the gap." if tested else "."),
                "Lines over training steps: eps squared" + (", and two losses." if tested else "."),
                svg(figure),
            ),
        )


def _words(interval: Interval | None) -> str:
    return "—" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"


def _mean(values: Sequence[float]) -> str:
    return f"{math.fsum(values) / len(values):.4g}"
