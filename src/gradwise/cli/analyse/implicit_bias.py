"""`gradwise analyse implicit-bias`: which interpolator of a regression GD and SGD find."""

from __future__ import annotations

import click

from gradwise.cli.analyse._answer import check_out
from gradwise.cli.analyse.common import Answer, Given, analysis_options
from gradwise.errors import UserError

RECORDS = 200


@click.command("implicit-bias", short_help="Diagonal networks: what SGD finds and GD does not.")
@analysis_options(without=("model", "data", "weights", "loss", "device"))
@click.option(
    "--data",
    default="",
    metavar="MODULE:FUNCTION",
    help="A regression of yours: inputs (n, d) and targets (n,).  [default: a planted one]",
)
@click.option(
    "--planted",
    nargs=3,
    type=int,
    metavar="N D R",
    help="A made-up one: N samples, D coordinates, R of which count.  [default: 40 100 5]",
)
@click.option("--alpha", type=float, default=0.1, show_default=True, help="Weights at first.")
@click.option("--gamma", type=float, help="Step size.  [default: by the inputs' size]")
@click.option("--steps", type=int, default=20_000, show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True, help="Runs of SGD.")
def implicit_bias(
    given: Given,
    planted: tuple[int, int, int] | None,
    alpha: float,
    gamma: float | None,
    steps: int,
    repeats: int,
) -> None:
    """Train diagonal linear networks, beta = w+^2 - w-^2, by GD and by SGD, and compare.

    With more coordinates than samples many betas fit; GD finds the one of the smallest potential
    for the alpha at the start, SGD for a smaller, effective one: a sparser beta. Runs take one
    sample a step, or --batch-size.

    \b
    Examples:
      gradwise analyse implicit-bias
      gradwise analyse implicit-bias --planted 40 100 5 --gamma 0.02 --alpha 0.01
      gradwise analyse implicit-bias --data mine:regression --steps 50000 --out runs/bias
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    from gradwise.analysis.implicit_bias import train_diagonal
    from gradwise.cli.analyse._regression import regression, usual_step
    from gradwise.report.analyses import implicit_bias as page

    if given.data and planted:
        raise UserError(f"expected --data or --planted, got both: {given.data!r} and {planted}")
    batch = 1 if given.batch_size is None else given.batch_size
    for word, value in (("steps", steps), ("repeats", repeats), ("batch_size", batch)):
        if value < 1:
            raise UserError(f"expected {word} >= 1, got {word}={value}")
    if given.out is not None:
        check_out(given.out)
    name, inputs, targets = regression(given, planted or (40, 100, 5))
    rate = gamma if gamma is not None else usual_step(inputs, targets)
    every = max(1, steps // RECORDS)
    with given.working("steps") as tell:
        gd = train_diagonal(
            (inputs, targets),
            alpha=alpha,
            gamma=rate,
            steps=steps,
            batch_size=None,
            record_every=every,
            progress=lambda done, total: tell(done, 2 * total),
        )
        sgd = train_diagonal(
            (inputs, targets),
            alpha=alpha,
            gamma=rate,
            steps=steps,
            batch_size=batch,
            seeds=range(given.seed, given.seed + repeats),
            record_every=every,
            progress=lambda done, total: tell(total + done, 2 * total),
        )
        ours = page.solutions(inputs, targets, sgd)
        (plain,) = page.solutions(inputs, targets, gd)
        known = page.references(inputs, targets)
    n, d = inputs.shape
    given.answer(
        Answer(
            title=f"Implicit bias of SGD on {name}",
            lead=page.lead(plain, ours),
            tables=page.tables(plain, ours, known),
            found={
                "samples": n,
                "coordinates": d,
                "gd": plain.to_dict(),
                "sgd": [one.to_dict() for one in ours],
                "references": {key: one.to_dict() for key, one in known.items()},
                "beta": {"gd": gd.beta[0].tolist(), "sgd": sgd.beta.tolist()},
                "effective_alpha": {
                    "gd": gd.effective_alpha[0].tolist(),
                    "sgd": sgd.effective_alpha.tolist(),
                },
            },
            settings={
                "data": name,
                "alpha": alpha,
                "gamma": rate,
                "steps": steps,
                "batch_size": batch,
                "repeats": repeats,
            },
            pictures=lambda: page.pictures(gd, sgd),
            notes=(
                f"{n} samples of {d} coordinates. Both start from w+ = w- = {alpha:g} and take "
                f"{steps} steps of {rate:.3g}; SGD draws {batch} of the samples a step, with "
                "replacement.",
                "What is said of solutions holds at the end of training: look at the losses.",
            ),
            source="S. Pesme, L. Pillaud-Vivien, N. Flammarion, “Implicit Bias of SGD for Diagonal "
            "Linear Networks: a Provable Benefit of Stochasticity”, NeurIPS 2021",
            url="https://arxiv.org/abs/2106.09524",
        )
    )
