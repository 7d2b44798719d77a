"""`gradwise analyse online`: a model's batches as an online problem, one round each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from gradwise.cli.analyse.common import Answer, Given, analysis_options
from gradwise.errors import UserError

BATCH = 64
TOLERANCE = 1e-4  # of the total loss, for the search of the best fixed parameters


@click.command(short_help="Batches as rounds: regret, and how much gradients vary.")
@analysis_options
@click.option(
    "--radius",
    type=float,
    default=1.0,
    show_default=True,
    help="Of the ball around the weights that decisions come from.",
)
@click.option("--rounds", type=int, metavar="T", help="The first T batches.  [default: all]")
@click.option(
    "--search",
    type=int,
    default=100,
    show_default=True,
    metavar="N",
    help="Steps at most, each through all batches, to find the best fixed parameters.",
)
def online(given: Given, radius: float, rounds: int | None, search: int) -> None:
    """Play the batches, in the order of the data, as functions of all parameters.

    Optimistic mirror descent takes the last batch's gradient as a hint of the next one's;
    projected gradient descent takes none. Both stay within --radius of the weights. Regret is
    against the best fixed parameters in hindsight, found by projected gradients on all batches;
    for a loss that is not convex these are approximate.

    \b
    Examples:
      gradwise analyse online --model mlp
      gradwise analyse online --model mine:net --data mine:loader --weights last.pt --radius 0.5
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    import torch

    from gradwise.analysis.online import Ball, OptimisticOMD, best_fixed_point, model_rounds, play
    from gradwise.report.analyses import online as page

    if not 0 < radius < float("inf"):
        raise UserError(f"expected 0 < radius < inf, got radius={radius}")
    for name, value in (("rounds", rounds), ("search", search)):
        if value is not None and value < 1:
            raise UserError(f"expected {name} >= 1, got {name}={value}")
    problem = given.problem()
    batch = given.batch_size or BATCH
    with (
        given.working("steps of the search") as tell,
        model_rounds(
            problem.model, problem.loss_fn, problem.data, batch_size=batch, rounds=rounds
        ) as game,
    ):
        ball = Ball(radius, game.start)
        best = best_fixed_point(
            game.losses, ball, tolerance=TOLERANCE, max_iterations=search, progress=tell
        )
        count = len(game.losses)
        games = {}
        for turn, name in enumerate((page.OPTIMISTIC, page.PLAIN)):
            games[name] = play(
                OptimisticOMD(ball, hint="lookahead" if name == page.OPTIMISTIC else "none"),
                game.losses,
                comparator=ball.project(best.point),
                progress=partial(_told, tell, turn * count, 2 * count),
            )
    distance = float(torch.linalg.vector_norm(best.point - game.start))
    at_edge = distance > radius * (1 - 1e-6)
    plain = {name: one.to_dict() for name, one in games.items()}
    for one in plain.values():
        one.pop("comparator")  # as long as the model
    given.answer(
        Answer(
            title=f"{problem.model_name} on {problem.data_name} as an online problem",
            lead=page.lead(games),
            tables=page.tables(games, radius, at_edge),
            found={
                **plain,
                "comparator": {
                    "loss": best.loss,
                    "gap_if_convex": best.gap,
                    "iterations": best.iterations,
                    "distance": distance,
                    "at_edge": at_edge,
                },
            },
            settings={
                "radius": radius,
                "rounds": count,
                "batch_size": None if problem.is_loader else batch,
                "search": search,
            },
            pictures=lambda: page.pictures(games),
            notes=(
                f"The search took {best.iterations} steps through {count} batches. If the loss is "
                f"convex in the parameters, the total of the best fixed ones, {best.loss:.6g}, is "
                f"at most {best.gap or 0.0:.3g} above the smallest in the ball; else they are a "
                "point where projected gradients vanish at best.",
                "Evaluation mode: norm layers use the statistics they have, dropout drops nothing.",
            ),
            source="Y.-F. Xie, P. Zhao, Z.-H. Zhou, “Gradient-Variation Online Learning under "
            "Generalized Smoothness”, NeurIPS 2024",
            url="https://arxiv.org/abs/2408.09074",
        ),
        problem,
    )


def _told(tell: Callable[[int, int], None], before: int, whole: int, done: int, of: int) -> None:
    """Progress of a part of the whole."""
    tell(before + done, whole)
