"""Watch: what every layer's gradient does, recorded, judged and sent on while a model trains."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.attach import Attachment, CheckpointHooks, Wrapper, attached, unwrapped
from gradwise.errors import UserError
from gradwise.watch.alerts import Alert, AlertJournal
from gradwise.watch.columns import Layers, PerLayer
from gradwise.watch.facts import facts, is_writer
from gradwise.watch.measuring import AllProbes
from gradwise.watch.place import Beginning, WatchWarning, take_place
from gradwise.watch.pump import Pump
from gradwise.watch.recorder import Recorder, check_scalars
from gradwise.watch.rules import AnyRule, Rules
from gradwise.watch.sinks import Sink, SinkFeed
from gradwise.watch.store.closing import Closing

_log = logging.getLogger("gradwise")
_ATTRIBUTE = "_gradwise_watch"
_PREFIX = "gradwise-watch:"


class Watch(Closing):
    """Records what every layer's gradient does, each step, while a model trains as before.

    `gradwise.watch(...)` makes one; it needs no further care. `log` adds scalars of your own, and
    `close` ends it before the process does.

    No step waits for the device or the disk: statistics gather on the device, and a thread carries
    them on about twice a second, to the run folder, the rules and the sinks. A full disk or a
    sink that fails never stops the training. Transforms that are attached, before or after, stay:
    watching reads the moments that they need anyway.

    The folder is opened at the first step. Where it holds something already, that is left alone and
    a sibling is written (`runs/a-2`), with a warning. The step and the run ride in
    `optimizer.state_dict()`, so a script that loads its optimizer's checkpoint goes on in the same
    folder, after the checkpoint's last step. Of several processes that train together, rank 0
    records.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a wrapper of one. A watch that it has is closed.
        model: gives the layers their names, and makes a layer of what could be trained and is not.
        out: the run folder; None records nothing, for rules and sinks alone.
        every: record every so many steps.
        per: whether a layer is a "parameter", or a "module" with the parameters it holds itself.
        sinks: who else gets the numbers, see `gradwise.watch.sinks`.
        rules: what speaks up, see `gradwise.watch.rules`; None takes `default_rules()`.
        on_alert: called in the training thread with every new alert.
        weights_every: in how many steps each layer has its turn to have its weights measured, and
            compared with what they were before the update; 0 leaves them alone.
        histograms: record histograms of the gradients every so many steps; 0 for none.
        directions: record every so many steps how the gradient's direction agrees with the time
            before, which keeps a copy of the gradients; 0 for none.
        noise_every: estimate the gradient noise scale every so many steps; 0 for never.
        batch_size: samples in one backward pass of one process, the unit of the noise scale.
        resume_from: the step that comes next in the run that `out` holds, for checkpoints without
            the optimizer's state; later rows are dropped.
        meta: facts that are kept with the run, as plain JSON values.

    Attributes:
        attachment: what measures; `attachment.moments` are those of the last step.
        optimizer: the torch optimizer (unwrapped where a library had wrapped it).
        model: what gave the layers their names, if anything.
        path: the folder that is written; None before the first step and where nothing is recorded.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> import tempfile, torch, gradwise as gw
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> out = tempfile.mkdtemp()
        >>> watch = gw.watch(optimizer, model, out)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 3)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     watch.log(loss=loss)
        >>> watch.close()
        >>> run = gw.watch.load(out)
        >>> run.layer_names, run.last_step
        (('weight', 'bias'), 2)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | Wrapper,
        model: nn.Module | None = None,
        out: str | Path | None = None,
        *,
        every: int = 1,
        per: PerLayer = "parameter",
        sinks: Sequence[Sink] = (),
        rules: Sequence[AnyRule] | None = None,
        on_alert: Callable[[Alert], None] | None = None,
        weights_every: int = 10,
        histograms: int = 0,
        directions: int = 0,
        noise_every: int = 10,
        batch_size: int | None = None,
        resume_from: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        _check(
            (("every", every, 1), ("resume_from", resume_from, 0), ("batch_size", batch_size, 1)),
            weights_every=weights_every,
            histograms=histograms,
            directions=directions,
            noise_every=noise_every,
        )
        self._rules = Rules(rules, on_alert=on_alert)
        self._sinks = tuple(sinks)
        for sink in sinks:
            SinkFeed(sink)  # says what is wrong with it now, not at the first step
        before = watch_of(optimizer)
        if before is not None:
            before.close()
        self.attachment: Attachment = attached(optimizer, model)
        self.optimizer = self.attachment.optimizer
        self.model = model
        self.path: Path | None = None
        self._out = None if out is None else Path(out)
        self._every, self._per = every, per
        self._layers = Layers.of(_tensors(self.attachment, model), per)
        self._meta = dict(meta or {})
        self._run = uuid.uuid4().hex
        self._beginning = Beginning(resume_from or 0, asked=resume_from is not None)
        self._recorder: Recorder | None = None
        self._early: dict[str, float | Tensor] = {}  # logged before the first step
        self._closed = False
        self._writes = is_writer()
        self._had_extremes = self.attachment.extremes
        # Also where nothing is recorded: extremes of sharded gradients take all processes.
        self.attachment.extremes = True
        self._checkpoint = CheckpointHooks(self.optimizer, self._save, self._load, _PREFIX)
        self._feeds: list[SinkFeed] = []
        if self._writes:
            self._probes = AllProbes(
                self.attachment,
                weights_every=weights_every,
                histograms=histograms,
                directions=directions,
                noise_every=noise_every,
                batch_size=batch_size,
                model=model,
            )
            self.attachment.readers.append(self._begin)
            self._last_step = time.monotonic()
            self._usual: float | None = None  # backward passes of a step
            self._ticker = Pump(partial(_tick, weakref.ref(self)))
        setattr(self.optimizer, _ATTRIBUTE, self)
        if model is None and all("param_names" not in g for g in self.optimizer.param_groups):
            warnings.warn(
                f"the layers are called {self._layers.names[0]} and so on: pass the model, or make "
                "the optimizer of model.named_parameters(), to have their names",
                WatchWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        kind, where = type(self.optimizer).__name__, self.path or self._out
        return f"Watch({kind}, {len(self._layers.names)} layers, step={self.step}, out={where})"

    def _repr_html_(self) -> str | None:
        """What a notebook shows: how the run is doing, from its folder."""
        if self.path is None:
            return None
        # Only here does a watch know those who look at runs.
        from gradwise.live.notebook import summary_html
        from gradwise.live.tail import Tail, Wish

        with contextlib.suppress(OSError):
            self.flush()
        return summary_html(Tail(self.path).look(Wish()))

    @property
    def step(self) -> int:
        """The last step that began, -1 before the first."""
        if self._recorder is not None:
            return self._recorder.step
        return self._beginning.step - 1

    @property
    def alerts(self) -> list[Alert]:
        """What the rules have found so far."""
        return self._rules.alerts

    @property
    def noise_scale(self) -> float:
        """The gradient noise scale, in samples, or backward passes without `batch_size`.

        Raises:
            UserError: saying why there is none.
        """
        found = self._probes.noise_scale if self._writes else None
        if found is None or found.value is None:
            why = found.sentence if found is not None else "only rank 0 records"
            raise UserError(f"no gradient noise scale: {why}")
        return found.value

    @property
    def errors(self) -> int:
        """How many times the disk, a sink or a rule failed; the training goes on."""
        recorder = self._recorder
        own = 0 if recorder is None else recorder.errors + recorder.failures
        return own + sum(feed.errors for feed in self._feeds)

    def log(self, **scalars: float | Tensor) -> None:
        """Record scalars of your own with the last step: see `Recorder.log`.

        Args:
            scalars: numbers, or tensors with one real value; these stay on the device.

        Raises:
            UserError: for a name that gradwise uses itself, or a tensor of several values.
        """
        if self._recorder is not None:
            self._recorder.log(**scalars)
        elif self._writes and not self._closed:
            check_scalars(scalars)  # now, and not in the midst of the first step
            self._early.update(scalars)

    def flush(self) -> None:
        """Have everything up to the last step written and judged; this waits.

        Raises:
            WriteError: where the disk refuses.
        """
        if self._recorder is not None:
            self._recorder.flush()

    def close(self) -> None:
        """Write what is left and leave the optimizer alone; calling it again does nothing.

        The end of the process does it too. Transforms stay attached.
        """
        if self._closed:
            return
        self._closed = True
        self._checkpoint.remove()
        if self._begin in self.attachment.readers:
            self.attachment.readers.remove(self._begin)
        self.attachment.extremes = self._had_extremes
        if getattr(self.optimizer, _ATTRIBUTE, None) is self:
            delattr(self.optimizer, _ATTRIBUTE)
        if self._writes:
            self._ticker.close()
        if self._recorder is not None:
            self._recorder.close()
        elif self._writes:
            self._probes.close()

    def _begin(
        self, attachment: Attachment, grads: Sequence[Tensor | None], scale: Tensor | None
    ) -> None:
        """Before the transforms of each step: rules may speak, and the first opens the run."""
        self._rules.deliver()
        self._usual, self._last_step = float(self._probes.backwards), time.monotonic()
        if self._recorder is not None:
            return
        self._recorder, self.path = self._open()
        of = "" if self.model is None else f" of {type(self.model).__name__}"
        where = "" if self.path is None else f" in {self.path}"
        _log.info("watching %s%s%s", type(self.optimizer).__name__, of, where)
        if self._early:
            self._recorder.log(**self._early)
            self._early = {}
        self._recorder.read(attachment, grads, scale)

    def _tick(self) -> None:
        """Whether steps still come."""
        self._rules.no_step(
            step=self.step,
            backwards=self._probes.backwards,
            seconds=time.monotonic() - self._last_step,
            usual=self._usual,
        )

    def _open(self) -> tuple[Recorder, Path | None]:
        """The recorder, at the first step: by now a checkpoint is loaded, if there is one."""
        if self._out is not None:
            found = take_place(self._out, self._beginning, self._recorder_in)
            if found is not None:
                return found
        return self._recorder_in(None, None), None

    def _recorder_in(self, folder: Path | None, resume_from: int | None) -> Recorder:
        about = facts(
            self.attachment,
            self.model,
            self._meta,
            per=self._per,
            every=self._every,
            run=self._run,
        )
        self._feeds = [SinkFeed(sink, about) for sink in self._sinks]
        recorder = Recorder(
            self.attachment,
            folder,
            every=self._every,
            meta=about,
            resume_from=resume_from,
            first_step=self._beginning.step,
            layers=self._layers,
            probes=self._probes,
            consumers=[self._rules, *self._feeds],
        )
        if folder is not None:
            self._rules.keep_in(AlertJournal(folder, resume_from))
        for feed in self._feeds:
            feed.begin(self._layers.names)
        return recorder

    def _save(self) -> dict[str, Any]:
        return {"run": self._run, "next": self.step + 1} if self.step >= 0 else {}

    def _load(self, entries: dict[str, Any]) -> None:
        """Go on where a checkpoint was made, if the first step has not begun."""
        run, step = entries.get("run"), entries.get("next")
        if self._recorder is not None or self._beginning.asked:
            return
        if isinstance(run, str) and isinstance(step, int) and step >= 0:
            self._run, self._beginning = run, Beginning(step, run)


def watch_of(optimizer: torch.optim.Optimizer | Wrapper) -> Watch | None:
    """The watch that an optimizer has, if any."""
    found: Watch | None = getattr(unwrapped(optimizer), _ATTRIBUTE, None)
    return found


def _tick(watch: weakref.ref[Watch]) -> bool:
    """Now and then, in a thread that keeps no watch alive."""
    alive = watch()
    if alive is not None:
        alive._tick()
    return alive is not None


def _check(bounds: Sequence[tuple[str, int | None, int]], **at_least_0: int) -> None:
    for name, value, low in (*bounds, *((name, v, 0) for name, v in at_least_0.items())):
        if value is not None and value < low:
            raise UserError(f"expected {name} >= {low}, got {name}={value}")


def _tensors(attachment: Attachment, model: nn.Module | None) -> tuple[str, ...]:
    """The optimizer's parameters, then those of the model that could be trained and are not."""
    names = dict.fromkeys(attachment.names)
    if model is not None:
        names |= dict.fromkeys(n for n, p in model.named_parameters() if p.requires_grad)
    return tuple(names)
