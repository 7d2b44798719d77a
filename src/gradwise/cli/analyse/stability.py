"""`gradwise analyse stability`: what one sample does to a short training."""

from __future__ import annotations

import click

from gradwise.cli.analyse.common import Answer, Given, analysis_options
from gradwise.errors import UserError

BATCH = 16


@click.command(short_help="How far one sample moves a training: argument stability, gap, bound.")
@analysis_options
@click.option(
    "--optimizer",
    default="sgd",
    show_default=True,
    metavar="METHOD",
    help="As `gradwise compare` takes methods: sgd, adamw, sgdf, sgd+autoscale.",
)
@click.option("--lr", type=float, help="Learning rate.  [default: the optimizer's usual one]")
@click.option("--momentum", type=float, default=0.0, show_default=True, help="Of torch's.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True)
@click.option("--steps", type=int, default=100, show_default=True, help="Of each training.")
@click.option("--points", type=int, default=6, show_default=True, help="Steps to compare at.")
@click.option("--replace", type=int, default=8, show_default=True, help="Samples to replace.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Orders of the samples.")
@click.option("--smoothness", type=float, metavar="G", help="Of the loss, for the bound.")
def stability(
    given: Given,
    optimizer: str,
    lr: float | None,
    momentum: float,
    weight_decay: float,
    steps: int,
    points: int,
    replace: int,
    repeats: int,
    smoothness: float | None,
) -> None:
    """Train on the data and on neighbours of it, each with one sample replaced, and compare.

    All runs start from the same weights and see the same places of the data in the same order.
    Replacements come from the other set where there is one (the rest of it is the test set), else
    from samples that are held back.

    Costs repeats * (replace + 1) + 1 trainings of so many steps.

    \b
    Examples:
      gradwise analyse stability --limit 200
      gradwise analyse stability --model mine:net --data mine:load --optimizer adamw --steps 300
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    import torch

    from gradwise.analysis.stability import paired_runs
    from gradwise.attach import attach
    from gradwise.cli.analyse._splits import places, split
    from gradwise.lab.methods import make_optimizer, resolve, usual_lr
    from gradwise.report.analyses import stability as page

    for name, value in (("steps", steps), ("points", points), ("replace", replace)):
        _at_least_one(name, value)
    _at_least_one("repeats", repeats)
    if smoothness is not None and not 0 < smoothness < float("inf"):
        raise UserError(f"expected 0 < smoothness < inf, got smoothness={smoothness}")
    arm = resolve(optimizer, "sgd")
    if arm.closure == "loss":
        raise UserError(f"optimizer {arm.name!r} takes steps of its own, which cannot be paired")
    rate = usual_lr(arm.optimizer) if lr is None else lr
    problem = given.problem()
    data, pool, test, indices = split(problem, replace, given.seed)

    def made(model: torch.nn.Module) -> torch.optim.Optimizer:
        found = make_optimizer(arm, model, rate, momentum, weight_decay)
        if arm.transform.transforms:
            attach(found, arm.transform, model=model)
        return found

    def fresh() -> torch.nn.Module:
        # Making a model starts the streams from --seed; dropout is to follow the repetition's.
        then = int(torch.randint(2**31, ()))
        model = problem.new_model().train()
        torch.manual_seed(then)
        return model

    batch = given.batch_size or BATCH
    with given.working("trainings") as tell:
        result = paired_runs(
            fresh,
            problem.loss_fn,
            data,
            pool,
            make_optimizer=made,
            steps=places(steps, points),
            batch_size=batch,
            indices=indices,
            seeds=range(given.seed, given.seed + repeats),
            test=test,
            progress=tell,
        )
    bound = None if smoothness is None else result.bound(smoothness).tolist()
    given.answer(
        Answer(
            title=f"Stability of {problem.model_name} on {problem.data_name}",
            lead=page.lead(result),
            tables=page.tables(result, smoothness),
            found={**result.to_dict(), "smoothness": smoothness, "bound": bound},
            settings={
                "optimizer": arm.name,
                "lr": rate,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "batch_size": batch,
                "steps": steps,
                "replace": replace,
                "repeats": repeats,
                "smoothness": smoothness,
            },
            pictures=lambda: page.pictures(result),
            notes=(
                f"{len(data[0])} samples, {replace} of them replaced one at a time, "
                f"{len(test[0])} to test on; {repeats * (replace + 1) + 1} trainings.",
                "Batches are drawn with replacement. Losses are measured in evaluation mode; "
                "buffers, as of norm layers, are no parameters and do not count.",
            ),
            source="Y. Lei, R. Jin, Y. Ying, “Stability and Generalization Analysis of Gradient "
            "Methods for Shallow Neural Networks”, NeurIPS 2022",
            url="https://arxiv.org/abs/2209.09298",
        ),
        problem,
    )


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"expected {name} >= 1, got {name}={value}")
