"""`gradwise analyse landscape`: how far a step may go, and how sharply the loss curves."""

from __future__ import annotations

import math

import click

from gradwise.cli.analyse.common import Answer, Given, analysis_options

_CHUNK = 256  # samples in one pass, where nobody says another number
_BEHIND, _BEYOND = -0.25, 1.5  # ends of the line in units of the margin


@click.command(short_help="How far a step may go, and how sharply the loss curves.")
@analysis_options
@click.option(
    "--points",
    type=int,
    default=25,
    show_default=True,
    metavar="N",
    help="Places on the line where the loss is measured, a pass each.",
)
@click.option(
    "--up-to",
    type=float,
    metavar="LR",
    help="Where the line ends, as a learning rate.  [default: 1.5 times the margin]",
)
@click.option(
    "--eigenvalues",
    type=int,
    default=1,
    show_default=True,
    metavar="K",
    help="Largest eigenvalues of the Hessian; 0 leaves them out, which saves most of the time.",
)
@click.option(
    "--method",
    type=click.Choice(["lanczos", "power"]),
    default="lanczos",
    show_default=True,
    help="How they are found; power gives one and holds less memory.",
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    help="Relative accuracy of the eigenvalues.",
)
@click.option(
    "--max-products",
    type=int,
    default=400,
    show_default=True,
    metavar="N",
    help="Give up on them after about so many products, each a forward and two backward passes.",
)
def landscape(
    given: Given,
    points: int,
    up_to: float | None,
    eigenvalues: int,
    method: str,
    tolerance: float,
    max_products: int,
) -> None:
    """Measure the loss along minus the gradient, the learning-rate margin, and the sharpness.

    The margin is the learning rate at which one step along the gradient of all data has brought
    the loss back to where it began: below it a step helps. 2 / sharpness is the learning rate above
    which gradient descent is unstable in the sharpest direction, the smaller of the two. It costs
    about ten passes for the margin, one a point, and products with the Hessian. The model stands
    still: evaluation mode, no augmentation. --batch-size bounds memory and changes no number.

    \b
    Examples:
      gradwise analyse landscape --eigenvalues 5
      gradwise analyse landscape --model resnet20 --data cifar10 --data-dir ~/data --limit 1000
      gradwise analyse landscape --model mine:net --data mine:load --loss mse --out runs/landscape
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    from gradwise.analysis.landscape import (
        LearningRateMargin,
        Sharpness,
        learning_rate_margin,
        loss_along,
        sharpness,
    )
    from gradwise.errors import UserError

    if points < 2:
        raise UserError(f"expected points >= 2, got points={points}")
    if up_to is not None and not 0 < up_to < math.inf:
        raise UserError(f"expected 0 < up-to < inf, got up-to={up_to}")
    if eigenvalues < 0:
        raise UserError(f"expected eigenvalues >= 0, got eigenvalues={eigenvalues}")
    if method == "power" and eigenvalues > 1:
        raise UserError(f"expected eigenvalues <= 1 with method power, got {eigenvalues}")
    if not 0 < tolerance < 1:
        raise UserError(f"expected 0 < tolerance < 1, got tolerance={tolerance}")
    if max_products < 1:
        raise UserError(f"expected max-products >= 1, got max-products={max_products}")
    problem = given.problem()
    chunk = given.batch_size or _CHUNK
    where = (problem.model, problem.loss_fn, problem.data)
    with given.working("passes for the margin") as tell:
        margin: LearningRateMargin = learning_rate_margin(*where, chunk_size=chunk, progress=tell)
    steps = places(margin.step, margin.loss, margin.slope, points, up_to)
    with given.working("points") as tell:
        line = loss_along(*where, steps, chunk_size=chunk, progress=tell)
    top: Sharpness | None = None
    if eigenvalues:
        with given.working("Hessian-vector products") as tell:
            top = sharpness(
                *where,
                method="power" if method == "power" else "lanczos",
                count=eigenvalues,
                tolerance=tolerance,
                max_products=max_products,
                chunk_size=chunk,
                seed=given.seed,
                progress=tell,
            )

    from gradwise.report.analyses import landscape as page

    given.answer(
        Answer(
            title=f"Loss landscape of {problem.model_name} on {problem.data_name}",
            lead=page.lead(margin, top),
            tables=page.tables(margin, top),
            found={
                "margin": margin.to_dict(),
                "line": line.to_dict(),
                "sharpness": None if top is None else top.to_dict(),
            },
            settings={
                "points": points,
                "up_to": steps[-1],
                "eigenvalues": eigenvalues,
                "method": method if eigenvalues else None,
                "tolerance": tolerance if eigenvalues else None,
            },
            pictures=lambda: page.pictures(line, margin, top),
            notes=page.notes(margin, line, top),
            source=page.SOURCE,
            url=page.URL,
        ),
        problem,
    )


def places(
    margin: float, loss: float, slope: float, points: int, up_to: float | None
) -> list[float]:
    """Learning rates of the line, evenly spaced; one of them is 0.

    Args:
        margin: the learning-rate margin; the first-order way to a loss of 0 stands in for one that
            is 0 or infinite.
        loss: at 0.
        slope: the fall of the loss there.
        points: how many, at least 2.
        up_to: the last one, or None.
    """
    scale = margin
    if not 0 < margin < math.inf:
        scale = (abs(loss) or 1.0) / slope if slope > 0 else 1.0
    end = _BEYOND * scale if up_to is None else up_to
    share = _BEHIND / _BEYOND  # of the way to the end that lies behind
    behind = round(-share / (1 - share) * (points - 1))
    width = end / (points - 1 - behind)
    return [width * (at - behind) for at in range(points)]
