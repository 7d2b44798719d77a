"""Pictures of optimizers side by side: curves, differences seed by seed, and their mechanism."""

from __future__ import annotations

from collections.abc import Mapping

from gradwise.lab.statistics import mean_ci
from gradwise.report.article import Picture
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.experiments._optimizer_found import Runs
from gradwise.reproduce.experiments._optimizer_mechanisms import Probe

__all__ = ["curves", "differences", "mechanism"]

_MARKERS = ("o", "s", "^", "D")


def curves(found: Mapping[str, Runs]) -> Picture:
    """Training loss and test accuracy over epochs.

    Args:
        found: the trainings, the method first.
    """
    with axes(1, 2, height=3.0) as (figure, panels):
        for at, (name, runs) in enumerate(found.items()):
            epochs = list(range(1, len(runs.losses[0]) + 1))
            style = COLORS[at % len(COLORS)], _marker(at, len(epochs))
            percent = [[100 * value for value in row] for row in runs.accuracies]
            band(panels[0], epochs, runs.losses, name, *style)
            band(panels[1], epochs, percent, name, *style)
        for axis, told in zip(panels, ("training loss, nats", "test accuracy, %"), strict=True):
            axis.set_xlabel("epoch")
            axis.set_title(told)
            axis.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylim(bottom=0)
        panels[1].set_ylim(max(0.0, panels[1].get_ylim()[0]), min(100.0, panels[1].get_ylim()[1]))
        panels[0].legend()
        picture = svg(figure)
    rates = ", ".join(f"{name} {runs.learning_rate:g}" for name, runs in found.items())
    return Picture(
        "curves",
        "Mean training loss of each epoch, and accuracy on the test set after it: mean of the "
        f"seeds with its 95 % interval. Learning rates: {rates}.",
        f"Two panels over epochs, loss and accuracy, one line each of {', '.join(found)}.",
        picture,
    )


def _marker(at: int, epochs: int) -> str | None:
    return _MARKERS[at % len(_MARKERS)] if epochs <= 20 else None


def differences(found: Mapping[str, Runs]) -> Picture:
    """What the method gains on each baseline, seed by seed.

    Args:
        found: the trainings, the method first.
    """
    (method, ours), *others = found.items()
    with axes(height=1.1 + 0.5 * len(others)) as (figure, axis):
        for at, (_, theirs) in enumerate(others):
            gains = [100 * (a - b) for a, b in zip(ours.accuracy, theirs.accuracy, strict=True)]
            mean, interval = mean_ci(gains)
            color = COLORS[at % len(COLORS)]
            axis.plot(gains, [at] * len(gains), "o", color=color, alpha=0.5, markersize=5)
            if interval is not None:
                axis.plot(interval, [at + 0.2] * 2, "-", color=color)
            axis.plot([mean], [at + 0.2], "D", color=color, markersize=5)
        axis.axvline(0, color="#6b6b6b", linewidth=1)
        axis.set_yticks(range(len(others)), [f"{method} less {name}" for name, _ in others])
        axis.set_ylim(-0.5, len(others) - 0.3)
        axis.set_xlabel("difference in test accuracy, points")
        picture = svg(figure)
    return Picture(
        "differences",
        f"Test accuracy of {method} less that of each baseline: a dot for each seed, which share "
        "first weights and batches; the diamond above is their mean, with its 95 % interval. "
        f"Right of the line {method} is better.",
        f"One row a baseline ({', '.join(name for name, _ in others)}), differences in accuracy.",
        picture,
    )


def mechanism(probe: Probe) -> Picture:
    """What distinguishes the method, on made-up gradients.

    Args:
        probe: the numbers.
    """
    with axes(height=3.2) as (figure, axis):
        for at, (name, rows) in enumerate(probe.series.items()):
            marker = _MARKERS[at % len(_MARKERS)]
            band(axis, probe.x, rows, name, color=COLORS[at % len(COLORS)], marker=marker)
        if "x" in probe.logarithmic:
            axis.set_xscale("log")
            axis.set_xticks(probe.x, [f"{x:g}" for x in probe.x])
            axis.minorticks_off()
        if "y" in probe.logarithmic:
            axis.set_yscale("log")
        axis.set_xlabel(probe.x_label)
        axis.set_ylabel(probe.y_label)
        axis.legend()
        picture = svg(figure)
    seeds = len(next(iter(probe.series.values())))
    return Picture(
        "mechanism",
        f"{probe.caption} Mean of {seeds} seeds with its 95 % interval.",
        f"{probe.y_label} over {probe.x_label}, one line each of {', '.join(probe.series)}.",
        picture,
    )
