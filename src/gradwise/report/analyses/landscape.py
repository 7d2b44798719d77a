"""The loss along the gradient, the learning-rate margin, and the top of the Hessian's spectrum."""

from __future__ import annotations

import math

from gradwise.analysis.landscape import LearningRateMargin, LossLine, Sharpness
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, svg

SOURCE = (
    "Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability"
)
URL = "https://arxiv.org/abs/2103.00065"


def lead(margin: LearningRateMargin, top: Sharpness | None) -> str:
    """The answer in two sentences.

    Args:
        margin: along the gradient.
        top: of the Hessian, or None.
    """
    if margin.step == 0:
        words = "No step along minus the gradient was found that lowers the loss."
    elif math.isinf(margin.step):
        words = "No step along minus the gradient was found that raises the loss."
    else:
        words = (
            "One step of gradient descent on all data lowers the loss up to a learning rate of "
            f"{margin.step:.3g}."
        )
    if top is None:
        return words
    if top.value <= 0:
        return f"{words} No direction curves upwards: the largest eigenvalue is {top.value:.3g}."
    return (
        f"{words} Many steps are stable in the sharpest direction up to 2 / {top.value:.3g} = "
        f"{top.critical_step:.3g}."
    )


def tables(margin: LearningRateMargin, top: Sharpness | None) -> tuple[Table, ...]:
    """The quantities, and all eigenvalues where there are several.

    Args:
        margin: along the gradient.
        top: of the Hessian, or None.
    """
    rows = [
        ("loss", f"{margin.loss:.4g}", "", "mean of all samples"),
        ("|G|", f"{margin.length:.4g}", "loss / parameter", "norm of the gradient"),
        ("margin", _number(margin.step), "learning rate", "a step this long changes no loss"),
        (
            "curvature",
            _number(margin.curvature),
            "loss / parameter²",
            "along the gradient, as of a parabola with this margin",
        ),
    ]
    if top is not None:
        rows += [
            ("sharpness", _number(top.value), "loss / parameter²", "largest Hessian eigenvalue"),
            (
                "2 / sharpness",
                _number(top.critical_step),
                "learning rate",
                "above it gradient descent is unstable",
            ),
            ("residual", f"{top.residual:.2g}", "loss / parameter²", "|H v - λ v|"),
        ]
    found = [Table("Landscape", ("quantity", "value", "unit", "what it is"), tuple(rows))]
    if top is not None and len(top.values) > 1:
        values = enumerate(top.values.tolist(), 1)
        found.append(
            Table(
                "Largest eigenvalues",
                ("rank", "eigenvalue", "2 / eigenvalue"),
                tuple((str(k), f"{x:.4g}", f"{2 / x:.4g}" if x > 0 else "—") for k, x in values),
            )
        )
    return tuple(found)


def notes(margin: LearningRateMargin, line: LossLine, top: Sharpness | None) -> tuple[str, ...]:
    """What the numbers rest on, and what they cost.

    Args:
        margin: along the gradient.
        line: the losses.
        top: of the Hessian, or None.
    """
    cost = f"It took {margin.evaluations + len(line.steps)} passes over the data"
    if top is not None:
        cost += f", and {top.products} products with the Hessian of two backward passes each"
    return (
        "The model stood still, in evaluation mode and without augmentation.",
        f"{cost}.",
        "The margin is of one step along the gradient of all data. Steps of momentum, of an "
        "adaptive method or of a batch have margins of their own: in Python, record_update gives "
        "the update of any optimizer to learning_rate_margin and loss_along.",
        "The probe for the margin grows by factors of 2; a barrier that such a factor steps over "
        "is not seen. 2 / sharpness is about plain gradient descent near a quadratic.",
    )


def pictures(
    line: LossLine, margin: LearningRateMargin, top: Sharpness | None
) -> tuple[Picture, ...]:
    """The loss along the line, and the eigenvalues where there are several.

    Args:
        line: the losses.
        margin: along the gradient.
        top: of the Hessian, or None.
    """
    values = [] if top is None else top.values.tolist()
    several = len(values) > 1
    with axes(1, 2 if several else 1, squeeze=False) as (figure, grid):
        left = grid[0][0]
        losses = [x if math.isfinite(x) else math.nan for x in line.losses.tolist()]
        left.plot(line.steps.tolist(), losses, marker=".")
        left.axhline(margin.loss, color=COLORS[6], linestyle=":", label="loss at 0")
        end = float(line.steps[-1])
        marks = [(margin.step, "margin", COLORS[1], "--")]
        if top is not None:
            marks.append((top.critical_step, "2 / sharpness", COLORS[2], "-."))
        for at, label, color, dash in marks:
            if 0 < at <= end:
                left.axvline(at, color=color, linestyle=dash, label=f"{label}: {at:.3g}")
        left.set_xlabel("learning rate of one step along minus the gradient")
        left.set_ylabel("loss")
        left.legend(frameon=True, framealpha=0.9, edgecolor="none")  # lines cross it
        if several:
            right = grid[0][1]
            right.bar(range(1, len(values) + 1), values)
            right.xaxis.get_major_locator().set_params(integer=True)
            right.set_xlabel("rank")
            right.set_ylabel("eigenvalue of the Hessian")
        return (
            Picture(
                "landscape",
                "The loss after one step along minus the gradient of all data, over its learning "
                "rate; left of 0 lies a step the other way. Where it crosses the dotted line is "
                "the margin." + (" Right: the Hessian's largest eigenvalues." if several else ""),
                "A line of the loss over the learning rate of one step"
                + (", and bars of eigenvalues." if several else "."),
                svg(figure),
            ),
        )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "∞"
