"""What the Lightning callback records and changes, against gradients caught by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise.errors import UserError
from gradwise.transforms import Autoscale, ClipNorm

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from gradwise.integrations.lightning import WatchCallback  # noqa: E402
from integrations.hosted import (  # noqa: E402
    Spy,
    check_gradients,
    column,
    norm_of,
    note_readings,
    plain_training,
    same,
    values,
)
from integrations.lit_models import (  # noqa: E402
    Classifier,
    Validated,
    batches,
    loader,
    loss_of,
    network,
    trainer,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


class Notes(pl.Callback):  # type: ignore[misc,name-defined]
    """Comes after the callback under test and notes when gradwise reads gradients."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.events.append("on_train_start")
        for optimizer in trainer.optimizers:
            note_readings(optimizer, pl_module.events)


def test_the_order_of_events(tmp_path: Path) -> None:
    module, callback = Validated(), WatchCallback(tmp_path / "run")
    fit = trainer(tmp_path, callback, Notes(), accumulate_grad_batches=2, gradient_clip_val=0.01)
    fit.fit(module, loader(4), loader(1))
    micro = ["training_step", "backward"]
    step = [*micro, *micro, "on_before_optimizer_step", "clip", "read", "update"]
    assert module.events == [
        "validation_step",  # the sanity check comes before anything is attached
        "on_train_start",
        *step,
        *step,
        "validation_step",
    ]
    assert gw.watch.load(tmp_path / "run").last_step == 1 == fit.global_step - 1
    assert column(gw.watch.load(tmp_path / "run"), "backwards") == [2, 2]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_statistics(tmp_path: Path, precision: str, clip: float | None, micro: int) -> None:
    module = Classifier()
    callback = WatchCallback()
    trainer(
        tmp_path,
        callback,
        precision=precision,
        gradient_clip_val=clip,
        accumulate_grad_batches=micro,
    ).fit(module, loader(6))
    [spy] = module.spies
    assert len(spy.used) == 6 // micro
    if clip is not None:
        assert max(norm_of(step) for step in spy.used) <= clip * 1.0001
    check_gradients(tmp_path / "gradwise", module.names, spy.used)
    assert [watch.path for watch in callback.watches] == [tmp_path / "gradwise"]
    assert gw.watch.load(tmp_path / "gradwise").meta["model"] == "Classifier"
    if precision == "32-true":  # and they are those of the plainest loop
        twin = network()
        data = batches(6)
        steps = [data[at : at + micro] for at in range(0, 6, micro)]
        plain = plain_training(twin, torch.optim.SGD(twin.parameters(), 0.5), steps, loss_of, clip)
        for ours, theirs in zip(spy.used, plain, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_transforms_without_a_watch(tmp_path: Path) -> None:
    module = Classifier()
    callback = WatchCallback(None, transforms=[Autoscale(), ClipNorm(0.05)])
    trainer(tmp_path, callback).fit(module, loader(5))
    assert callback.watches == ()
    assert list(tmp_path.iterdir()) == []
    twin = network()
    optimizer = Spy(twin.parameters(), 0.5)
    gw.attach(optimizer, Autoscale(), ClipNorm(0.05))
    plain_training(twin, optimizer, [[b] for b in batches(5)], loss_of)
    assert same(values(module), values(twin))


def test_transforms_and_a_watch(tmp_path: Path) -> None:
    module = Classifier()
    callback = WatchCallback(tmp_path / "run", transforms=[ClipNorm(0.05)], every=2)
    trainer(tmp_path, callback).fit(module, loader(5))
    run = gw.watch.load(tmp_path / "run")
    assert run.meta["every"] == 2
    assert run.steps["step"].to_pylist() == [0, 2, 4]
    applied = [norm_of(step) for step in module.spies[0].used[::2]]
    np.testing.assert_allclose(run.steps["applied_norm"], applied, rtol=1e-5)
    np.testing.assert_allclose(applied, 0.05, rtol=1e-4)
    assert min(run.steps["grad_norm"].to_pylist()) > 0.06


class Pair(Classifier):
    """Two optimizers by hand: the body each batch, the head every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        body, head = self.optimizers()
        body.zero_grad()
        head.zero_grad()
        self.manual_backward(loss_of(self.net, batch))
        body.step()
        self.log("body_loss", 1.0 + batch_idx)
        if batch_idx % 2:
            self.clip_gradients(head, 0.01, "norm")
            head.step()

    def configure_optimizers(self) -> Any:
        self.spies = [Spy(self.net[0].parameters(), 0.1), Spy(self.net[2].parameters(), 0.2)]
        return self.spies

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError


def test_several_optimizers_have_a_run_each(tmp_path: Path) -> None:
    module, callback = Pair(), WatchCallback(tmp_path / "run")
    fit = trainer(tmp_path, callback)
    fit.fit(module, loader(6))
    assert fit.global_step == 9
    check_gradients(
        tmp_path / "run" / "0-Spy", ["net.0.weight", "net.0.bias"], module.spies[0].used
    )
    check_gradients(
        tmp_path / "run" / "1-Spy", ["net.2.weight", "net.2.bias"], module.spies[1].used
    )
    assert [watch.step for watch in callback.watches] == [5, 2]
    body, head = (gw.watch.load(watch.path or "") for watch in callback.watches)
    assert body.meta["model"] == head.meta["model"] == "Pair"
    assert column(body, "body_loss") == [1, 2, 3, 4, 5, 6]
    assert column(head, "body_loss") == [2, 4, 6]  # what was logged with each of its steps
    assert column(head, "lr") == [0.2, 0.2, 0.2]


class Kept(gw.watch.sinks.Sink):
    def __init__(self, name: str, rows: list[Any]) -> None:
        super().__init__(every=1)
        self.name, self.rows = name, rows

    def write(self, step: int, values: Any, time: float) -> None:
        self.rows.append((self.name, step, values["lr"]))


def test_several_optimizers_have_sinks_each(tmp_path: Path) -> None:
    rows: list[Any] = []
    callback = WatchCallback(None, sinks=lambda name: [Kept(name, rows)])
    trainer(tmp_path, callback).fit(Pair(), loader(2))
    assert sorted(rows) == [("0-Spy", 0, 0.1), ("0-Spy", 1, 0.1), ("1-Spy", 0, 0.2)]
    assert list(tmp_path.iterdir()) == []
    shared = WatchCallback(None, sinks=[Kept("", rows)])
    with pytest.raises(UserError, match=r"sinks to be a function of a run's name .* got 1 sink"):
        trainer(tmp_path, shared).fit(Pair(), loader(2))
    trainer(tmp_path, shared).fit(Classifier(), loader(1))  # one optimizer may have them
    assert rows[-1] == ("", 0, 0.5)


class Lbfgs(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


def test_each_evaluation_of_a_closure_is_a_step(tmp_path: Path) -> None:
    module, callback = Lbfgs(), WatchCallback(tmp_path / "run")
    trainer(tmp_path, callback).fit(module, loader(2))
    assert module.events.count("backward") == 6
    run = gw.watch.load(tmp_path / "run")
    assert run.last_step == 5
    assert not np.isnan(column(run, "grad_norm")).any()


class Absent(Classifier):
    """Gives Lightning nothing to go backwards from in the second batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_gradients_keeps_its_number(tmp_path: Path) -> None:
    fit = trainer(tmp_path, WatchCallback(tmp_path / "run"))
    fit.fit(Absent(), loader(4))
    norms = column(gw.watch.load(tmp_path / "run"), "grad_norm")
    assert fit.global_step == len(norms) == 4
    assert np.isnan(norms).tolist() == [False, True, False, False]


class Overflowing(Classifier):
    """The gradient of some steps is more than the loss scale leaves room for."""

    def __init__(self, at: tuple[int, ...]) -> None:
        super().__init__()
        self.at = at
        self.net[0].bias.register_hook(self.spoil)

    def spoil(self, grad: torch.Tensor) -> torch.Tensor:
        return grad + torch.inf if self.trainer.global_step in self.at else grad


def test_a_step_that_the_loss_scaler_skips_keeps_its_number(tmp_path: Path) -> None:
    module = Overflowing(at=(0, 1, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit = trainer(tmp_path, WatchCallback(tmp_path / "run"), plugins=[plugin])
    fit.fit(module, loader(6))
    assert fit.global_step == 6
    steps = gw.watch.load(tmp_path / "run").steps
    assert steps["step"].to_pylist() == [2, 3, 4, 5]  # the run begins with the first that is taken
    norms = np.array(steps["grad_norm"].to_pylist(), float)
    assert np.isnan(norms).tolist() == [False, False, True, False]
    used = [norm_of(step) for step in module.spies[0].used]  # in their true unit
    np.testing.assert_allclose(norms[[0, 1, 3]], used, rtol=1e-5)
    assert max(used) < 10


class DeepSpeedStrategy(pl.strategies.SingleDeviceStrategy):  # type: ignore[misc,name-defined]
    """By its name."""


def test_engines_are_refused(tmp_path: Path) -> None:
    module, callback = Classifier(), WatchCallback(tmp_path / "run")
    with pytest.raises(UserError, match=r"^expected gradients in .* got DeepSpeedStrategy, which"):
        trainer(tmp_path, callback, strategy=DeepSpeedStrategy()).fit(module, loader(2))
    assert "update" not in module.events
    assert pl.strategies.DeepSpeedStrategy.__name__ == DeepSpeedStrategy.__name__


def test_a_module_without_an_optimizer(tmp_path: Path) -> None:
    class Idle(Classifier):
        def configure_optimizers(self) -> None:
            return None

    with pytest.warns(UserWarning, match="configure_optimizers` returned `None`"):
        trainer(tmp_path, WatchCallback(tmp_path / "run")).fit(Idle(), loader(2))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UserError, match=r"^expected options among every, per, .*, got 'evry'$"):
        WatchCallback("runs/a", evry=2)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^expected out, transforms, sinks, rules or on_alert"):
        WatchCallback(None)
