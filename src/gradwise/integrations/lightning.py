"""Lightning: a callback that watches the training, attaches transforms, or both."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from gradwise.attach import unwrapped
from gradwise.errors import UserError
from gradwise.integrations.hosted import HostedWatch, Part
from gradwise.integrations.hosting import (
    FOLDER,
    HOST,
    Out,
    Place,
    Request,
    Sinks,
    WatchOptions,
    folder_of,
    host,
    refuse_engines,
    scalars_of,
)
from gradwise.transforms import Transform
from gradwise.watch.store.runfile import read_run_file

__all__ = ["WatchCallback"]


_Callback: Any = host("lightning.pytorch", "pytorch_lightning", package="lightning").Callback


class WatchCallback(_Callback):  # type: ignore[misc]  # the base is Any
    """Watches the gradients of a Lightning `Trainer`, attaches transforms, or both.

    It attaches when training starts, after the sanity check and after a checkpoint is loaded, to
    every optimizer there is, under automatic and manual optimization. In each step the order is:
    backward passes, `on_before_optimizer_step`, Lightning's own gradient clipping, statistics,
    transforms, update. So the statistics are of clipped gradients.

    With one optimizer, step s of the run is the one that begins when `trainer.global_step` is s;
    steps that a loss scaler skips count. Several optimizers have a run each, in folders such as
    `0-Adam` and `1-SGD` within `out`, with steps of their own.

    What the module logs (`self.log`) goes into the row of the step that it was logged in, under the
    name that loggers see (`loss`, or `loss_step` and `loss_epoch`); what is logged at the end of an
    epoch or of a validation goes into the row of the last step. Where gradwise has a column of that
    name, "lightning/" goes before it. Tensors stay on their device until they are written.

    A run that is resumed with `ckpt_path` goes on in the same folder after the checkpoint's last
    step. Of several processes that train together, rank 0 records. Copies and pickles of the
    callback bear the settings only.

    Args:
        out: the run folder; None for none. The default is the folder "gradwise" in the Trainer's
            `log_dir`.
        transforms: attached to every optimizer, in this order.
        sinks: who else gets the numbers, see `gradwise.watch.sinks`; where there are several
            optimizers, a function that makes those of one from the name of its folder.
        options: of `gradwise.watch`: `every`, `per`, `rules`, `histograms`, `meta` and so on.

    Attributes:
        watches: the watch of each optimizer, from the start of the training on; they are there
            after its end as well, closed.

    Raises:
        UserError: where an option is not known, or there is nothing to do; when training starts,
            where several optimizers would share a sink, or DeepSpeed keeps the gradients.

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
        self._loaded: list[Mapping[str, Any]] = []  # states of the watches to go on with
        self._known: dict[str, tuple[object, Any]] = {}  # metrics that the runs have, by name
        self._seen: list[int] = []  # each watch's step at which metrics were looked at
        self.watches: tuple[HostedWatch, ...] = ()

    def __repr__(self) -> str:
        return f"WatchCallback({self._request!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the watches, whose threads and hooks belong to this process."""
        return {**self.__dict__, "watches": (), "_known": {}, "_seen": []}

    @property
    def state_key(self) -> str:
        """Under which Lightning's checkpoints have the state."""
        return "gradwise.WatchCallback"

    def state_dict(self) -> dict[str, Any]:
        """Which runs these are and which step comes next.

        The optimizers' states have it, too, while the training lasts; this is for checkpoints that
        are made after it.
        """
        states = [watch.state_dict() for watch in self.watches] or self._loaded
        return {"runs": [dict(state) for state in states]} if any(states) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with these runs when the training starts."""
        found = state_dict.get("runs")
        states = found if isinstance(found, list) else []
        self._loaded = [state for state in states if isinstance(state, Mapping)]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the transforms to every optimizer.

        Before a checkpoint is loaded: from one of sharded parameters, optimizers get only the state
        that they have room for.
        """
        refuse_engines(type(trainer.strategy).__name__)
        for optimizer in trainer.optimizers:
            self._request.attach(optimizer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch every optimizer."""
        optimizers, request = trainer.optimizers, self._request
        if not request.watches:
            return
        if trainer.ckpt_path is not None:
            states = self._loaded
        else:  # a further `fit` of the same trainer goes on, with new optimizers
            states = [w.state_dict() for w in self.watches] if trainer.global_step > 0 else []
        out = request.out
        if isinstance(out, Place):  # all processes have to ask for the folder, or none is told
            out = _log_folder(trainer) / FOLDER
        self.watches = tuple(
            self._watch(trainer, pl_module, at, out, states[at] if at < len(states) else {})
            for at in range(len(optimizers))
        )
        self._loaded, self._known = [], {}
        self._seen = [watch.step for watch in self.watches]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Give the step its number, also where a loss scaler then skips it."""
        for watch in self.watches:
            if watch.optimizer is unwrapped(optimizer):
                watch.begin()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record what was logged with the batch before, if that made a step."""
        steps = [watch.step for watch in self.watches]
        pairs = zip(self.watches, steps, self._seen, strict=True)
        self._log(trainer, [watch for watch, step, seen in pairs if step != seen])
        self._seen = steps

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Record what was logged at the end of the epoch before."""
        self._log(trainer, self.watches)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record what was logged in the validation."""
        self._log(trainer, self.watches)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record what was logged at the end of the last epoch."""
        self._log(trainer, self.watches)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write everything; transforms stay attached."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write everything, with what was logged last."""
        # The exception to see is the training's own, whatever state that has left things in. And
        # metrics of several processes might be waited for in vain.
        with contextlib.suppress(Exception):
            self._log(trainer, self.watches if trainer.world_size == 1 else ())
        self._close()

    def _watch(
        self, trainer: Any, pl_module: Any, at: int, out: Path | None, state: Mapping[str, Any]
    ) -> HostedWatch:
        """Watch one of the trainer's optimizers."""
        optimizer, several = trainer.optimizers[at], len(trainer.optimizers) > 1
        name = folder_of(optimizer, at) if several else None
        model = Part(pl_module, optimizer) if several else pl_module
        folder = out if out is None or name is None else out / name
        watch = self._request.watch(optimizer, model, folder, name)
        if not watch.state_dict():  # nothing in the optimizer's own checkpoint
            watch.load_state_dict(state)
        if not several:
            watch.start_at(trainer.global_step)
        run = watch.state_dict().get("run")
        if folder is not None and isinstance(self._request.out, Place):
            watch.record_in(_where_it_was(run, folder, name))
        return watch

    def _log(self, trainer: Any, watches: Sequence[HostedWatch]) -> None:
        """Record the metrics that are new, on the device."""
        if not watches or trainer.sanity_checking:
            return
        news = {}
        for name, value in trainer.logged_metrics.items():
            mark = _mark(value)
            if mark != self._known.get(name, (None, None))[0]:
                # Lightning repeats old values, in the same memory; kept here, that stays theirs.
                self._known[name] = mark, value
                news[name] = value
        scalars = scalars_of(news, "lightning")
        for watch in watches:
            watch.log(**scalars)

    def _close(self) -> None:
        self._known = {}
        for watch in self.watches:
            watch.close()


def _mark(value: Any) -> object:
    """Tells whether a metric is the one seen before, without reading it from the device."""
    if not isinstance(value, Tensor):
        return value
    version = -1 if value.is_inference() else value._version
    return value.untyped_storage().data_ptr(), version


def _log_folder(trainer: Any) -> Path:
    """The folder of the trainer's logger, or the current one where that is not on a disk."""
    folder = str(trainer.log_dir or trainer.default_root_dir)
    return Path.cwd() if "://" in folder else Path(folder)


def _where_it_was(run: str | None, folder: Path, name: str | None) -> Path:
    """The default folder, or the one of the version that a run began in.

    Lightning's loggers begin a new `version_1` where training is resumed.

    Args:
        run: which goes on, None for a new one.
        folder: the default.
        name: of the run's folder within the default one, where there are several.
    """
    version = folder.parent if name is None else folder.parent.parent
    if run is None or not version.name.startswith("version_"):
        return folder
    for candidate in version.parent.glob(f"version_*/{folder.relative_to(version)}"):
        with contextlib.suppress(UserError):  # not a run, or a newer one
            if read_run_file(candidate).meta.get("run") == run:
                return candidate
    return folder
