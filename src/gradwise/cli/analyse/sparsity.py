"""`gradwise analyse sparsity`: features in use, and ranks of features and Jacobian."""

from __future__ import annotations

from typing import Any

import click

from gradwise.cli.analyse.common import Answer, Given, analysis_options

_CHUNK = 256  # samples in one pass, where nobody says another number


@click.command(short_help="Which features are in use, and how many of them differ.")
@analysis_options(without=("loss",))
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME",
    help="A module whose output ends in a ReLU, again for more.  [default: all of them]",
)
@click.option(
    "--neurons",
    type=int,
    default=1000,
    show_default=True,
    metavar="N",
    help="At most so many a layer, drawn at random, are searched for duplicates and ranked.",
)
@click.option(
    "--threshold",
    type=float,
    default=0.95,
    show_default=True,
    help="Neurons of a larger absolute correlation are duplicates.",
)
@click.option(
    "--rtol",
    type=float,
    default=1e-4,
    show_default=True,
    help="Singular values above this share of the largest count for a rank.",
)
@click.option("--jacobian", is_flag=True, help="Also the rank of the Jacobian of the outputs.")
@click.option(
    "--points",
    type=int,
    metavar="N",
    help="Samples for the Jacobian.  [default: what 1 GiB of gradients holds]",
)
def sparsity(
    given: Given,
    layers: tuple[str, ...],
    neurons: int,
    threshold: float,
    rtol: float,
    jacobian: bool,
    points: int | None,
) -> None:
    """Measure the share of positive activations, with and without duplicates, and their rank.

    It costs one forward pass over the data. Without --layer, a first batch shows which modules end
    in a ReLU: those whose outputs are nowhere negative and somewhere exactly 0. --jacobian adds a
    backward pass for each output of each point. The model stands still: evaluation mode, no
    augmentation. --batch-size bounds memory and changes no number.

    \b
    Examples:
      gradwise analyse sparsity --weights last.pt
      gradwise analyse sparsity --model mlp --jacobian --points 100
      gradwise analyse sparsity --model mine:net --data mine:load --layer blocks.3 --out runs/s
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    from gradwise.analysis.sparsity import feature_sparsity, jacobian_rank
    from gradwise.cli.analyse._layers import default_points, rectified
    from gradwise.errors import UserError

    if points is not None and not jacobian:
        raise UserError("expected --points beside --jacobian, which it is for")
    if points is not None and points < 1:
        raise UserError(f"expected points >= 1, got points={points}")
    problem = given.problem(with_loss=False)
    chunk = given.batch_size or _CHUNK
    with given.working("batches") as tell:
        names = list(layers) or rectified(problem, chunk)
        found = feature_sparsity(
            problem.model,
            problem.data,
            names,
            limit=neurons,
            threshold=threshold,
            seed=given.seed,
            rtol=rtol,
            chunk_size=chunk,
            progress=tell,
        )
    rank = None
    if jacobian:
        with given.working("samples of the Jacobian") as tell:
            points = points or default_points(problem)
            rank = jacobian_rank(
                problem.model,
                problem.data,
                points=points,
                rtol=rtol,
                chunk_size=chunk,
                progress=tell,
            )

    from gradwise.report.analyses import sparsity as page

    settings: dict[str, Any] = {
        "layers": names,
        "neurons": neurons,
        "threshold": threshold,
        "rtol": rtol,
    }
    given.answer(
        Answer(
            title=f"Feature sparsity of {problem.model_name} on {problem.data_name}",
            lead=page.lead(found, rank),
            tables=page.tables(found, rank),
            found={
                "layers": {name: one.to_dict() for name, one in found.items()},
                "jacobian": None if rank is None else rank.to_dict(),
            },
            settings=settings | ({"points": points} if jacobian else {}),
            pictures=lambda: page.pictures(found, rank),
            notes=page.notes(found, threshold, rtol),
            source=page.SOURCE,
            url=page.URL,
        ),
        problem,
    )
