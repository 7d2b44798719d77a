"""Transformers: a callback for the Trainer that watches it, attaches transforms, or both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from gradwise.integrations.hosted import HostedWatch
from gradwise.integrations.hosting import (
    FOLDER,
    HOST,
    Out,
    Place,
    Request,
    Sinks,
    WatchOptions,
    host,
    refuse_engines,
    scalars_of,
)
from gradwise.transforms import Transform

__all__ = ["WatchCallback"]

_Callback: Any = host("transformers.trainer_callback", package="transformers").TrainerCallback


class WatchCallback(_Callback):  # type: ignore[misc]  # the base is Any
    """Watches the gradients of a `Trainer`, attaches transforms to its optimizer, or both.

    It attaches when training begins. In each update the order is: backward passes, the Trainer's
    own clipping, statistics, transforms, update. So the statistics are of clipped gradients, and
    `trainer/grad_norm` is the norm before the clipping, at steps that the Trainer logs; pass
    `max_grad_norm=0` to leave clipping to the transforms. (The Trainer then still calls torch's
    clipping, with an infinite bound. That leaves finite gradients alone, but one infinite value
    makes all gradients NaN before anybody sees them.)

    Step s of the run is the update that begins when `state.global_step` is s. What the Trainer logs
    after it, with `global_step` s + 1, is in the row of step s, under the Trainer's names; where
    gradwise has a column of that name, "trainer/" goes before it.

    A run that is resumed with `resume_from_checkpoint` goes on in the same folder after the
    checkpoint's last step. The state is in the optimizer's checkpoint; without that
    (`save_only_model`, or FSDP2 with SHARDED_STATE_DICT), a folder beside it begins at the right
    step, and transforms begin anew, with a warning.

    Args:
        out: the run folder; None for none. The default is the folder "gradwise" in the Trainer's
            `output_dir`.
        transforms: attached to the optimizer, in this order.
        sinks: who else gets the numbers, see `gradwise.watch.sinks`.
        options: of `gradwise.watch`: `every`, `per`, `rules`, `histograms`, `meta` and so on.

    Raises:
        UserError: where an option is not known, or there is nothing to do; when training begins,
            where DeepSpeed or Megatron keeps the gradients.

    Examples:
        >>> import gradwise as gw
        >>> WatchCallback("runs/a", every=5)
        WatchCallback(out='runs/a', every=5)
        >>> WatchCallback(None, transforms=[gw.transforms.ClipNorm(1.0)])
        WatchCallback(out=None, transforms=[ClipNorm(max_norm=1.0)])
    """

    def __init__(
        self,
        out: Out = HOST,
        *,
        transforms: Sequence[Transform] = (),
        sinks: Sinks = (),
        **options: Unpack[WatchOptions],
    ) -> None:
        self._request = Request(out, transforms, sinks, options)
        self._attached_to: Any = None
        self.watch: HostedWatch | None = None

    def __repr__(self) -> str:
        return f"WatchCallback({self._request!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the watch, whose thread and hooks belong to this process."""
        return {**self.__dict__, "watch": None, "_attached_to": None}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any
    ) -> None:
        """Attach; a checkpoint, if there is one, has been loaded by now."""
        self._attached_to = None
        self._attach(args, state, optimizer, others.get("model"))

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any
    ) -> None:
        """Attach where the optimizer was not there before."""
        self._attach(args, state, optimizer, others.get("model"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Give the update its number, also where a loss scaler then skips it."""
        if self.watch is not None:
            self.watch.begin(state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Record what the Trainer logs."""
        if self.watch is not None:
            self.watch.log(**scalars_of(logs or {}, "trainer"))

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Write everything; transforms stay attached."""
        if self.watch is not None:
            self.watch.close()

    def _attach(self, args: Any, state: Any, optimizer: Any, model: Any) -> None:
        if optimizer is None or optimizer is self._attached_to:
            return
        self._attached_to = optimizer
        accelerated = getattr(optimizer, "accelerator_state", None)
        if accelerated is not None:
            refuse_engines(accelerated.distributed_type.value)
        request = self._request
        attachment = request.attach(optimizer, model)
        # Of a checkpoint that rank 0 alone reads, the others are told at the first step.
        resumed = state.global_step > 0 and state.is_world_process_zero
        if resumed and attachment is not None and attachment.skips is None:
            warnings.warn(
                f"the transforms begin anew at step {state.global_step}: the checkpoint has no "
                "state of theirs, as where save_only_model or SHARDED_STATE_DICT left it out",
                stacklevel=2,
            )
        if not request.watches:
            return
        out = request.out
        if isinstance(out, Place):
            out = Path(args.output_dir) / FOLDER
        self.watch = request.watch(optimizer, model, out)
