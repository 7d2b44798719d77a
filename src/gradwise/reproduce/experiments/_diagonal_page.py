"""What runs of `diagonal_networks` say together: by case, in a table and in pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.claims import Judged
from gradwise.reproduce.experiments._several import Several, each, is_number

Run = dict[str, Any]

METHODS = {"sgd": "SGD", "gd": "gradient descent"}


class Data:
    """Runs by method, scale of initialisation and step size."""

    def __init__(self, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
        names = [f"seed={seed}" for seed in settings["seeds"]]
        self.results = [results[name] for name in names if name in results]
        self.alphas, self.gammas = settings["alphas"], sorted(settings["gammas"])
        self.cases = [(alpha, gamma) for alpha in self.alphas for gamma in self.gammas]

    def one(self, result: dict[str, Any], method: str, alpha: float, gamma: float) -> Run:
        """The run of a seed; raises ValueError where there is none."""
        for found in result["runs"]:
            if (found["method"], found["alpha"], found["gamma"]) == (method, alpha, gamma):
                return dict(found)
        raise ValueError("no such run")

    def all(self, method: str, alpha: float, gamma: float) -> list[Run]:
        """One run a seed."""
        return [self.one(result, method, alpha, gamma) for result in self.results]

    def judged(
        self, value: Callable[[Run, Run], float], judge: Callable[[list[float]], Judged]
    ) -> Several:
        """By case, a number from the runs of SGD and of gradient descent of a seed."""
        return Several(
            {
                case(alpha, gamma): each(
                    self.results,
                    lambda result, a=alpha, g=gamma: value(  # type: ignore[misc]  # its own case
                        self.one(result, "sgd", a, g), self.one(result, "gd", a, g)
                    ),
                    judge,
                )
                for alpha, gamma in self.cases
            }
        )


def case(alpha: float, gamma: float) -> str:
    """A case in words."""
    return f"alpha {alpha:g}, gamma {gamma:g}"


def lost(data: Data) -> list[str]:
    """Cases in which not every run came to an end."""
    return [
        f"{METHODS[method]} at {case(alpha, gamma)}"
        for method in METHODS
        for alpha, gamma in data.cases
        if not all(is_number(run["distance"][-1]) for run in data.all(method, alpha, gamma))
    ]


def table(data: Data) -> Table:
    """What training ends with, means over seeds."""
    rows = []
    for alpha, gamma in data.cases:
        for method, name in METHODS.items():
            runs = data.all(method, alpha, gamma)
            rows.append(
                (
                    f"{alpha:g}",
                    f"{gamma:g}",
                    name,
                    _mean([run["distance"][-1] for run in runs]),
                    _mean([run["off_support"] for run in runs]),
                    _mean([run["shrunk"] for run in runs]),
                    _mean([run["predicted"] for run in runs]),
                    _mean([run["kkt_effective"] for run in runs]),
                    _mean([run["kkt_start"] for run in runs]),
                    _mean([run["loss"][-1] for run in runs]),
                )
            )
    return Table(
        "What training ends with",
        (
            "alpha",
            "gamma",
            "method",
            "distance to beta*",
            "mass off the support",
            "alpha_eff / alpha",
            "predicted",
            "KKT with alpha_eff",
            "KKT with alpha",
            "loss",
        ),
        tuple(rows),
        "Means over seeds; alphas are medians over coordinates. KKT: length of the part of "
        "arcsinh(beta / 2 alpha^2) outside the inputs' span, over the whole.",
    )


def _mean(values: Sequence[float | None]) -> str:
    finite = [value for value in values if value is not None and is_number(value)]
    return f"{math.fsum(finite) / len(finite):.3g}" if finite else "—"


def pictures(data: Data) -> tuple[Picture, ...]:
    """Courses, what was recovered, and the effective alpha."""
    if not data.results:
        return ()
    return (_courses(data), _recovered(data), _shrinkage(data))


def _courses(data: Data) -> Picture:
    """Problems differ more than methods do: each is measured by where gradient descent ends."""
    gamma = data.gammas[-1]
    with axes(1, len(data.alphas), height=3.0, squeeze=False) as (figure, grid):
        for axis, alpha in zip(grid[0], data.alphas, strict=True):
            ends = [run["distance"][-1] for run in data.all("gd", alpha, gamma)]
            for method, rate in [("gd", gamma)] + [("sgd", g) for g in data.gammas]:
                rows = [
                    [
                        x / end if is_number(x) and is_number(end) else math.nan
                        for x in one["distance"]
                    ]
                    for one, end in zip(data.all(method, alpha, rate), ends, strict=True)
                ]
                band(axis, data.results[0]["at"], rows, f"{METHODS[method]}, gamma {rate:g}")
            axis.set_title(f"alpha {alpha:g}")
            axis.set_xlabel("step")
            # The first steps are far above; what matters is near 1, and no end may be cut off.
            shown = [x for line in axis.lines for x in line.get_ydata()[-1:] if is_number(float(x))]
            axis.set_ylim(0.9 * min([0.8, *shown]), 1.1 * max([1.4, *shown]))
        grid[0][0].set_ylabel("distance to beta*, relative")
        grid[0][0].legend()
        return Picture(
            "diagonal-distance",
            "Distance to the sparse solution over training, over the distance at which gradient "
            "descent with the same start ends on the same problem. SGD is meant to end below 1, "
            "and the lower the larger its step size. Bands: 95 % intervals over problems.",
            "Falling lines of relative distance over steps; a panel for each scale of "
            "initialisation.",
            svg(figure),
        )


def _recovered(data: Data) -> Picture:
    """The largest step size, where the effect is; all coordinates of all problems."""
    gamma = data.gammas[-1]
    with axes(1, len(data.alphas), height=3.0, squeeze=False) as (figure, grid):
        for axis, alpha in zip(grid[0], data.alphas, strict=True):
            for k, (method, mark) in enumerate((("gd", "o"), ("sgd", "x"))):
                across: list[float] = []
                up: list[float] = []
                for result in data.results:
                    beta = data.one(result, method, alpha, gamma)["beta"]
                    for true, found in zip(result["solution"], beta, strict=True):
                        if is_number(found):
                            across.append(true + (k - 0.5) * 0.03)
                            up.append(found)
                axis.plot(
                    across, up, mark, color=COLORS[k], markersize=3, alpha=0.4, rasterized=True
                )
                axis.plot([], [], mark, color=COLORS[k], markersize=4, label=METHODS[method])
            axis.axline((0, 0), slope=1, color="#6b6b6b", linewidth=0.8)
            axis.set_title(f"alpha {alpha:g}, gamma {gamma:g}")
            axis.set_xlabel("beta*")
        grid[0][0].set_ylabel("recovered beta")
        grid[0][0].legend()
        return Picture(
            "diagonal-recovered",
            "Each coordinate of each problem: what was recovered over what is true, on the line "
            "where it is exact. Methods stand a little apart to be seen; at 0 a sparse solution "
            "has no spread.",
            "Points in columns around the diagonal, those of SGD nearer to it.",
            svg(figure),
        )


def _shrinkage(data: Data) -> Picture:
    with axes(height=3.0, width=4.6) as (figure, axis):
        for k, (alpha, gamma) in enumerate(data.cases):
            runs = data.all("sgd", alpha, gamma)
            pairs = [(run["predicted"], run["shrunk"]) for run in runs]
            known = [pair for pair in pairs if all(map(is_number, pair))]
            axis.plot(
                [x for x, _ in known],
                [y for _, y in known],
                "o",
                color=COLORS[k % len(COLORS)],
                markersize=4,
                label=case(alpha, gamma),
            )
        axis.axline((1, 1), slope=1, color="#6b6b6b", linewidth=0.8)
        axis.set_xlabel("predicted alpha_inf / alpha")
        axis.set_ylabel("measured")
        axis.legend()
        return Picture(
            "diagonal-alpha",
            "The effective alpha of SGD as measured over what the integral of the loss predicts, "
            "medians over coordinates, a point a problem. The line is agreement.",
            "Points along the diagonal, one colour for each scale and step size.",
            svg(figure),
        )
