"""Which interpolator a diagonal linear network finds by GD and by SGD, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from gradwise.analysis.implicit_bias import DiagonalRuns, kkt_residual
from gradwise.lab.statistics import mean_ci
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import axes, band, svg

WHAT = ("loss", "l1", "l2", "spread", "visible")
WHY = ("alpha", "predicted", "kkt", "kkt_start")
VISIBLE = 0.01  # of the largest entry: what is smaller does not count as in use


@dataclass(frozen=True)
class Solution:
    """A beta in numbers.

    Attributes:
        loss: (1/4n) sum of squared residuals, as of (13.2).
        l1: |beta|_1.
        l2: |beta|_2.
        spread: (|beta|_1 / |beta|_2)^2, how many equal entries would give these norms; 0 for 0.
        visible: entries above a hundredth of the largest.
        alpha: median of the effective alphas over the coordinates; None where there is none.
        predicted: the same by (13.4).
        kkt: residual for the effective alphas, in [0, 1].
        kkt_start: for the alpha of the start.
    """

    loss: float
    l1: float
    l2: float
    spread: float
    visible: int
    alpha: float | None = None
    predicted: float | None = None
    kkt: float | None = None
    kkt_start: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def solution(inputs: Tensor, targets: Tensor, beta: Tensor) -> Solution:
    """What can be said of any beta.

    Args:
        inputs: (n, d), float64.
        targets: (n,).
        beta: (d,).
    """
    size = beta.abs()
    l1, l2 = float(size.sum()), float(torch.linalg.vector_norm(beta))
    return Solution(
        loss=float((inputs @ beta - targets).square().mean() / 4),
        l1=l1,
        l2=l2,
        spread=(l1 / l2) ** 2 if l2 > 0 else 0.0,
        visible=int((size > VISIBLE * size.max()).sum()),
    )


def solutions(inputs: Tensor, targets: Tensor, runs: DiagonalRuns) -> list[Solution]:
    """What can be said of each run's end.

    Args:
        inputs: (n, d), float64.
        targets: (n,).
        runs: on these data.
    """
    found = []
    effective, predicted = runs.effective_alpha, runs.predicted_alpha
    # w+ or w- may underflow to 0: the limit of small alphas, not none.
    kkt = kkt_residual(inputs, runs.beta, effective.clamp(min=1e-300)).tolist()
    kkt_start = kkt_residual(inputs, runs.beta, runs.alpha).tolist()
    for r, beta in enumerate(runs.beta):
        base = solution(inputs, targets, beta).to_dict()
        base |= {"alpha": float(effective[r].median()), "predicted": float(predicted[r].median())}
        found.append(Solution(**{**base, "kkt": kkt[r], "kkt_start": kkt_start[r]}))
    return found


def references(inputs: Tensor, targets: Tensor) -> dict[str, Solution]:
    """Interpolators of the smallest norms: the ends between which all alphas lie.

    Args:
        inputs: (n, d), float64.
        targets: (n,).

    Returns:
        By name; empty where nothing interpolates, and without the l1 one where the solver fails.
    """
    x, y = inputs.cpu().numpy(), targets.cpu().numpy()
    least = np.linalg.lstsq(x, y, rcond=None)[0]
    if np.abs(x @ least - y).max() > 1e-8 * max(1.0, float(np.abs(y).max())):
        return {}
    found = {"smallest l2 norm": solution(inputs, targets, torch.from_numpy(least).to(inputs))}
    d = x.shape[1]
    solved = linprog(np.ones(2 * d), A_eq=np.hstack([x, -x]), b_eq=y, bounds=(0, None))
    if solved.status == 0 and solved.x is not None:
        beta = torch.from_numpy(solved.x[:d] - solved.x[d:]).to(inputs)
        found["smallest l1 norm"] = solution(inputs, targets, beta)
    return found


def lead(gd: Solution, sgd: Sequence[Solution]) -> str:
    """The answer in two sentences.

    Args:
        gd: of gradient descent.
        sgd: of each seed.
    """
    alpha = [s.alpha for s in sgd if s.alpha is not None]
    spread = _interval([s.spread for s in sgd])
    l1 = _interval([s.l1 - gd.l1 for s in sgd])
    start = "" if gd.alpha is None else f", gradient descent at {gd.alpha:.3g}"
    return (
        f"SGD ends at an effective alpha of {_interval(alpha)} (median over coordinates{start}): "
        f"as sparse as {spread} equal entries, against {gd.spread:.3g}. Its l1 norm minus gradient "
        f"descent's is {l1}."
    )


def tables(
    gd: Solution, sgd: Sequence[Solution], known: Mapping[str, Solution]
) -> tuple[Table, ...]:
    """What the solutions are like, and which alphas explain them.

    Args:
        gd: of gradient descent.
        sgd: of each seed.
        known: the references.
    """
    named = [("SGD", sgd), ("GD", [gd]), *((name, [found]) for name, found in known.items())]
    note = "Means over seeds, ± half of the 95 % interval. " if len(sgd) > 1 else ""
    note += (
        "Spread: (l1 / l2)^2, how many equal entries would give these norms. In use: above a "
        "hundredth of the largest."
    )
    if not known:
        note += " No beta fits these data exactly, so that there are no smallest interpolators."
    return (
        Table(
            "Solutions",
            ("solution", "loss", "l1 norm", "l2 norm", "spread", "in use"),
            tuple((name, *_columns(found, WHAT)) for name, found in named),
            note,
        ),
        Table(
            "The alpha that explains them",
            ("solution", "effective alpha", "predicted", "KKT residual", "with the first alpha"),
            tuple((name, *_columns(found, WHY)) for name, found in named[:2]),
            "KKT residual: the share of arcsinh(beta / 2 alpha^2) outside the inputs' span; at 0 "
            "beta is the interpolator of the smallest potential for that alpha. It means little "
            "while the loss is not near 0.",
        ),
    )


def pictures(gd: DiagonalRuns, sgd: DiagonalRuns) -> tuple[Picture, ...]:
    """Loss over steps; sorted entries; effective alphas against the prediction.

    Args:
        gd: one run.
        sgd: a run a seed, recorded at the same steps.
    """
    with axes(1, 3, height=2.9) as (figure, (left, middle, right)):
        for runs, name in ((sgd, "SGD"), (gd, "GD")):
            band(left, runs.steps, _positive(runs.losses.T), name)
            entries = runs.beta.abs().sort(dim=1, descending=True).values
            band(middle, list(range(1, entries.shape[1] + 1)), _positive(entries), name)
        left.set_yscale("log")
        left.set_xlabel("step")
        left.set_ylabel("loss")
        middle.set_yscale("log")
        middle.set_xlabel("coordinate, by size")
        middle.set_ylabel("|beta|")
        across = sgd.predicted_alpha.flatten().tolist()
        right.plot(across, sgd.effective_alpha.flatten().tolist(), ".", markersize=3, alpha=0.5)
        ends = [min(across), max(across)]
        right.plot(ends, ends, ":", color="#6b6b6b")
        right.set_xlabel("predicted alpha")
        right.set_ylabel("effective alpha of SGD")
        left.legend()
        return (
            Picture(
                "implicit-bias",
                "Left: training loss. Middle: sizes of the solution's entries; a steeper fall is "
                "a sparser solution. Right: the effective alpha of each coordinate and seed "
                "against what the integral of the loss predicts; dotted where they are equal.",
                "Three panels: losses over steps, sorted entries, effective against predicted "
                "alpha.",
                svg(figure),
            ),
        )


def _positive(values: Tensor) -> list[list[float]]:
    """Rows for a logarithmic axis; what is 0 is left out."""
    return [[x if x > 0 else math.nan for x in row] for row in values.tolist()]


def _columns(found: Sequence[Solution], names: Sequence[str]) -> tuple[str, ...]:
    columns = []
    for name in names:
        values = [getattr(one, name) for one in found]
        columns.append("—" if None in values else _interval(values))
    return tuple(columns)


def _interval(values: Sequence[float]) -> str:
    mean, interval = mean_ci(values)
    if interval is None:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {(interval[1] - interval[0]) / 2:.1g}"
