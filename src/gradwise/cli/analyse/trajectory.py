"""`gradwise analyse trajectory`: the way that checkpoints went."""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from gradwise.cli.analyse._answer import check_out
from gradwise.cli.analyse.common import Answer, Given, analysis_options
from gradwise.errors import UserError

IN_MEMORY = 2**30  # bytes of checkpoints; more than that go through a temporary folder


@click.command(short_help="Where training went: map, angles and lengths of checkpoints.")
@analysis_options(
    without=(
        *("model", "data", "data_dir", "weights", "loss"),
        *("split", "limit", "batch_size", "device", "seed"),
    )
)
@click.argument("checkpoints", nargs=-1, metavar="CHECKPOINT...", type=click.Path(path_type=Path))
@click.option("--relative", is_flag=True, help="Directions from the first checkpoint, not from 0.")
@click.option("--layers", is_flag=True, help="Each layer's numbers too.")
@click.option("--natural", is_flag=True, help="Sort by the numbers in the names: 2 before 10.")
@click.option("--key", metavar="KEY", help="Where the state dict is in a file, such as run.ema.")
def trajectory(
    given: Given,
    checkpoints: tuple[Path, ...],
    relative: bool,
    layers: bool,
    natural: bool,
    key: str | None,
) -> None:
    """Measure the trajectory that CHECKPOINT files, at least 2 and in order, lie on.

    The files are state dicts saved by torch.save, or dicts that hold one as state_dict, model and
    the like; nothing in them is run. They are read one at a time. Whole numbers and the running
    statistics of norm layers are no parameters and do not count; other buffers of floating-point
    numbers look like parameters, and do.

    \b
    Examples:
      gradwise analyse trajectory runs/epoch-*.pt --natural
      gradwise analyse trajectory runs/epoch-*.pt --natural --relative --layers --out runs/way
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    from gradwise.analysis._state_files import read_parameters
    from gradwise.analysis.trajectory import TrajectoryRecorder
    from gradwise.report.analyses import trajectory as page

    if len(checkpoints) < 2:
        raise UserError(f"expected at least 2 checkpoints, got {len(checkpoints)}")
    if given.out is not None:
        check_out(given.out)
    files = sorted(checkpoints, key=_natural) if natural else list(checkpoints)
    with ExitStack() as stack:
        first = read_parameters(files[0], key)
        size = sum(x.numel() * x.element_size() for x in first.values())
        folder = None
        if size * len(files) > IN_MEMORY:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gradwise-"))
        recorder = TrajectoryRecorder(first, folder=None if folder is None else f"{folder}/points")
        with given.working("checkpoints") as tell:
            for done, path in enumerate(files):
                try:
                    recorder.add(first if done == 0 else read_parameters(path, key))
                except UserError as error:
                    raise UserError(_about(path, error)) from error
                tell(done + 1, len(files))
        with given.working("numbers") as tell:
            # Layers come from the products that the whole model's report has left.
            report = recorder.report(progress=tell)
            parts = list(recorder.layer_reports()) if layers else []
    found = {
        "files": [str(path) for path in files],
        "parameters": sum(x.numel() for x in first.values()),
        **report.to_dict(),
        "layers": {part.layer: page.without_maps(part) for part in parts} if layers else None,
    }
    given.answer(
        Answer(
            title=f"Trajectory of {len(files)} checkpoints",
            lead=page.lead(report, relative),
            tables=page.tables(report, parts, relative),
            found=found,
            settings={
                "data": f"{files[0]} to {files[-1]}",
                "relative": relative,
                "layers": layers,
                "key": key,
            },
            pictures=lambda: page.pictures(report, parts, relative),
            notes=(
                f"{len(files)} checkpoints of {found['parameters']} numbers in {len(first)} "
                "tensors, their inner products accumulated in float64.",
                "Left out: whole numbers, running statistics of norm layers, and second names of "
                "tensors that share memory. Other floating-point buffers count as parameters.",
            ),
            source="S. P. Singh, B. He, T. Hofmann, B. Schölkopf, “The Directionality of "
            "Optimization Trajectories in Neural Networks”, ICLR 2025",
            url="https://arxiv.org/abs/2403.07379",
        )
    )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers in a name compare as numbers; at each place they come before letters."""
    pieces = re.findall(r"\d+|\D+", str(path))
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _about(path: Path, error: UserError) -> str:
    told = str(error)
    return told if str(path) in told else f"{path}: {told}"
