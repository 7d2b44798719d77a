"""`gradwise analyse noise`: how noisy the direction of a step is, with momentum and without."""

from __future__ import annotations

import click

from gradwise.cli.analyse.common import Answer, Given, analysis_options

RULES = ("sgd", "heavy-ball", "normalized")
_BATCH = 64  # where nobody says another


@click.command(short_help="How noisy a step's direction is, and what momentum makes of it.")
@analysis_options
@click.option(
    "--rule",
    "rules",
    multiple=True,
    type=click.Choice(RULES),
    help="A rule of stepping, again for more.  [default: all three, side by side]",
)
@click.option(
    "--beta", type=float, default=0.9, show_default=True, help="Momentum of the other two rules."
)
@click.option(
    "--batches",
    type=int,
    default=32,
    show_default=True,
    metavar="R",
    help="Batches whose gradients are compared with that of all data.",
)
@click.option("--replacement", is_flag=True, help="Draw batches in which a sample may come twice.")
def noise(
    given: Given, rules: tuple[str, ...], beta: float, batches: int, replacement: bool
) -> None:
    """Measure the noise of batch gradients, and what SGD and two kinds of momentum make of it.

    It costs one pass over the data and R batches, forward and backward. The model stands still:
    evaluation mode, no augmentation. Noise falls into two parts: lag, what stays in the mean over
    batches, and spread, what changes from batch to batch. The noise scale C^2 / |G|^2 is the
    batch size at which noise and gradient are equally large; what a training run makes of batch
    sizes is measured by gradwise.analysis.noise.critical_batch_size in Python.

    \b
    Examples:
      gradwise analyse noise --batch-size 64
      gradwise analyse noise --rule heavy-ball --beta 0.95 --weights last.pt --out runs/noise
      gradwise analyse noise --model mine:net --data mine:loader --batches 100
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    from gradwise.analysis.noise import Direction, DirectionNoise, gradient_noise
    from gradwise.errors import UserError

    # All of them, so that a beta that is out of its bounds is told now.
    made = (Direction.sgd(), Direction.heavy_ball(beta), Direction.normalized(beta))
    directions = {k: v for k, v in zip(RULES, made, strict=True) if k in (rules or RULES)}
    if batches < 1:
        raise UserError(f"expected batches >= 1, got batches={batches}")
    problem = given.problem()
    batch_size = given.batch_size
    if not problem.is_loader:
        batch_size = batch_size or min(_BATCH, problem.samples or _BATCH)
    with given.working("passes") as tell:
        measured = gradient_noise(
            problem.model,
            problem.loss_fn,
            problem.data,
            batch_size=batch_size,
            batches=batches,
            replacement=replacement,
            seed=given.seed,
            progress=tell,
        )
    found = {name: DirectionNoise.at_rest(measured, rule) for name, rule in directions.items()}

    from gradwise.report.analyses import noise as page

    given.answer(
        Answer(
            title=f"Gradient noise of {problem.model_name} on {problem.data_name}",
            lead=page.lead(measured, found),
            tables=page.tables(measured, found),
            found={
                "gradient": measured.to_dict(),
                "rules": {
                    name: {key: value for key, value in one.to_dict().items() if key != "gradient"}
                    for name, one in found.items()
                },
            },
            settings={
                "rules": [*directions],
                "beta": beta,
                "batch_size": measured.batch_size,
                "batches": measured.batches,
                "replacement": replacement,
            },
            pictures=lambda: page.pictures(measured, found),
            notes=page.notes(measured, replacement, problem.is_loader),
            source=page.SOURCE,
            url=page.URL,
        ),
        problem,
    )
