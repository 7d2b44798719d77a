"""Accelerate: watch the training of a prepared optimizer, with its trackers' numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from gradwise.attach import Wrapper
from gradwise.errors import UserError
from gradwise.integrations.hosted import HostedWatch
from gradwise.integrations.hosting import (
    FOLDER,
    HOST,
    Out,
    Place,
    Request,
    WatchOptions,
    host,
    refuse_engines,
    scalars_of,
)
from gradwise.transforms import Transform
from gradwise.watch.sinks import Sink
from gradwise.watch.watch import Watch

__all__ = ["watch"]

_Tracker: Any = host("accelerate.tracking", package="accelerate").GeneralTracker


class RunTracker(_Tracker):  # type: ignore[misc]  # the base is Any
    """Takes what `accelerator.log` is given, and the end of the training.

    Args:
        watch: where it goes.
    """

    name = "gradwise"
    requires_logging_directory = False

    def __init__(self, watch: HostedWatch) -> None:
        super().__init__()
        self._watch = watch

    @property
    def tracker(self) -> Watch:
        """The watch."""
        return self._watch

    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Record the numbers among the values with the last step."""
        self._watch.log(**scalars_of(values, "accelerate"))

    def finish(self) -> None:
        """Write everything."""
        self._watch.close()


def watch(
    accelerator: Any,
    optimizer: torch.optim.Optimizer | Wrapper,
    model: nn.Module | None = None,
    out: Out = HOST,
    *,
    transforms: Sequence[Transform] = (),
    sinks: Sequence[Sink] = (),
    **options: Unpack[WatchOptions],
) -> Watch:
    """Watch an optimizer that `accelerator.prepare` has prepared.

    A step is one of the optimizer's own: under `accelerator.accumulate` it comes when gradients
    are synchronized, with those of all processes. In each the order is: backward passes,
    `accelerator.clip_grad_norm_` where the loop calls it, statistics, transforms, update. So the
    statistics are of clipped gradients.

    What the loop gives to `accelerator.log` goes into the row of the last step, too, and
    `accelerator.end_training` closes the watch. Where gradwise has a column of the same name,
    "accelerate/" goes before it. `accelerator.save_state` keeps the run and its step, and after
    `accelerator.load_state`, before the first step, the run goes on in its folder. Of several
    processes rank 0 records.

    Args:
        accelerator: the `Accelerator`.
        optimizer: as `prepare` returned it.
        model: as `prepare` returned it; gives the layers their names, without the wrapper's
            "module.".
        out: the run folder; None records nothing, for rules and sinks alone. The default is the
            folder "gradwise" in the accelerator's `logging_dir`, which is its `project_dir` unless
            you say otherwise.
        transforms: attached to the optimizer, in this order.
        sinks: who else gets the numbers, see `gradwise.watch.sinks`.
        options: of `gradwise.watch`: `every`, `per`, `rules`, `histograms`, `meta` and so on.

    Returns:
        The `Watch`.

    Raises:
        UserError: where an option is not known or out of its bounds, neither `out` nor
            `project_dir` says where to record, or DeepSpeed or Megatron keeps the gradients.

    Examples:
        >>> import tempfile, torch
        >>> from accelerate import Accelerator
        >>> accelerator = Accelerator(cpu=True, project_dir=tempfile.mkdtemp())
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> run = watch(accelerator, optimizer, model)
        >>> for _ in range(3):
        ...     loss = model(torch.ones(4, 3)).square().mean()
        ...     accelerator.backward(loss)
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     accelerator.log({"loss": loss.detach()})
        >>> run.step, run.path.name
        (2, 'gradwise')
        >>> accelerator.end_training()
    """
    refuse_engines(accelerator.distributed_type.value)
    if isinstance(out, Place):
        folder = accelerator.logging_dir or accelerator.project_dir
        if folder is None:
            raise UserError("expected out, or an Accelerator with a project_dir, got neither")
        out = Path(folder) / FOLDER
    plain = None if model is None else accelerator.unwrap_model(model, keep_torch_compile=False)
    request = Request(out, transforms, sinks, options, always=True)
    made = request.watch(optimizer, plain, out)
    accelerator.trackers.append(RunTracker(made))
    if accelerator.is_fsdp2:  # whose checkpoints of an optimizer have no room for the run
        accelerator.register_for_checkpointing(made)
    return made
