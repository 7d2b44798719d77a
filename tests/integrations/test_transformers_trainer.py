"""The Transformers callback, against gradients caught by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise.errors import UserError
from gradwise.transforms import Autoscale, ClipNorm

pytest.importorskip("transformers", reason="Transformers is not installed")
pytest.importorskip("accelerate", reason="Accelerate is not installed")

from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from gradwise.integrations.transformers import WatchCallback
from integrations.hf_models import (
    TrainerCallback,
    language_model,
    loss_of,
    sentences,
    trainer,
)
from integrations.hosted import (
    Spy,
    check_gradients,
    column,
    norm_of,
    note_readings,
    noted,
    plain_training,
    values,
)


class Readings(TrainerCallback):  # type: ignore[misc]
    """Comes after the callback under test and notes when gradwise reads gradients."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_train_begin(self, *args: Any, optimizer: Any, **others: Any) -> None:
        note_readings(optimizer, self.events)


@pytest.mark.parametrize("bound", [0.01, 0])
def test_the_order_of_events(tmp_path: Path, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = Readings()
    made = trainer(
        tmp_path,
        WatchCallback(),
        readings,
        gradient_accumulation_steps=2,
        max_grad_norm=bound,
        max_steps=2,
    )
    events = readings.events = made.events
    clip = torch.nn.utils.clip_grad_norm_

    def noted_clip(params: Any, max_norm: float, **options: Any) -> Any:
        events.append(f"clip to {float(max_norm)}")
        return clip(params, max_norm, **options)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted_clip)
    made.train()
    update = ["backward", "backward", f"clip to {bound or np.inf}"]
    after = ["read", "update"]
    assert events == [
        *[*update, "on_pre_optimizer_step 0", *after, "on_log 1"],
        *[*update, "on_pre_optimizer_step 1", *after, "on_log 2"],
        "on_log 2",
    ]


def plain_batches(steps: int, micro: int) -> list[list[Any]]:
    data = sentences(2 * micro * steps)
    pairs = [
        {key: torch.stack([one[key], other[key]]) for key in one}
        for one, other in zip(data[::2], data[1::2], strict=True)
    ]
    return [pairs[at : at + micro] for at in range(0, len(pairs), micro)]


@pytest.mark.parametrize("bound", [0.1, 0])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_statistics(tmp_path: Path, bound: float, micro: int) -> None:
    callback = WatchCallback()
    made = trainer(
        tmp_path,
        callback,
        max_steps=4,
        gradient_accumulation_steps=micro,
        max_grad_norm=bound,
        data=8 * micro,
    )
    made.train()
    names = [name for name, _ in made.model.named_parameters()]
    check_gradients(tmp_path / "gradwise", names, made.spy.used)
    run = gw.watch.load(tmp_path / "gradwise")
    assert run.closed
    assert run.meta["model"] == "GPT2LMHeadModel"
    assert made.state.global_step == 4 == callback.watch.step + 1  # type: ignore[union-attr]
    assert column(run, "backwards") == [micro] * 4
    twin = language_model()
    optimizer = torch.optim.SGD(twin.parameters(), 0.5)
    plain = plain_training(twin, optimizer, plain_batches(4, micro), loss_of, bound or None)
    for ours, theirs in zip(made.spy.used, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    # The Trainer's own number is from before the clipping.
    before, after = column(run, "trainer/grad_norm"), column(run, "grad_norm")
    if bound:
        assert max(after) <= bound * 1.0001 < min(before)
    else:
        np.testing.assert_allclose(before, after, rtol=1e-5)


@pytest.mark.parametrize("bound", [1.0, 0])
def test_an_infinite_gradient(tmp_path: Path, bound: float) -> None:
    """The Trainer clips even where it is told not to, which spreads what is not finite."""
    made = trainer(tmp_path, WatchCallback(), max_steps=1, max_grad_norm=bound)
    bias = made.model.transformer.ln_f.bias
    bias.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    made.train()
    layers = gw.watch.load(tmp_path / "gradwise").layers.to_pandas().set_index("layer")
    spoilt = set(layers.index[layers["nonfinite"] > 0])
    assert spoilt == ({"transformer.ln_f.bias"} if bound else set(layers.index))


def test_transforms_without_a_watch(tmp_path: Path) -> None:
    callback = WatchCallback(None, transforms=[Autoscale(), ClipNorm(0.05)])
    made = trainer(tmp_path, callback, max_steps=4, max_grad_norm=0, data=8)
    made.train()
    assert callback.watch is None
    assert list(tmp_path.iterdir()) == []
    twin = language_model()
    optimizer = Spy(twin.parameters(), 0.5)
    gw.attach(optimizer, Autoscale(), ClipNorm(0.05))
    plain_training(twin, optimizer, plain_batches(4, 1), loss_of)
    for ours, theirs in zip(values(made.model), values(twin), strict=True):
        torch.testing.assert_close(ours, theirs)
    np.testing.assert_allclose([norm_of(s) for s in made.spy.used], 0.05, rtol=1e-4)


def test_a_step_that_the_loss_scaler_skips_keeps_its_number(tmp_path: Path) -> None:
    made = trainer(tmp_path, WatchCallback(), max_steps=5, max_grad_norm=0)
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # as fp16 has on GPUs

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        return grad + torch.inf if made.state.global_step in (0, 3) else grad

    made.model.transformer.ln_f.bias.register_hook(spoil)
    made.train()
    assert made.state.global_step == 5
    steps = gw.watch.load(tmp_path / "gradwise").steps
    assert steps["step"].to_pylist() == [1, 2, 3, 4]  # the run begins with the first that is taken
    norms = np.array(steps["grad_norm"].to_pylist(), float)
    assert np.isnan(norms).tolist() == [False, False, True, False]
    used = [norm_of(step) for step in made.spy.used]
    np.testing.assert_allclose(norms[[0, 1, 3]], used, rtol=1e-5)
    losses = {log["step"] - 1: log["loss"] for log in made.state.log_history if "loss" in log}
    noted_losses = noted(gw.watch.load(tmp_path / "gradwise"), "loss")
    assert {step: losses[step] for step in (2, 3, 4)} == pytest.approx(
        {step: noted_losses[step] for step in (2, 3, 4)}
    )


def test_a_fused_optimizer_under_a_loss_scaler(tmp_path: Path) -> None:
    """It divides by the scale itself, after gradwise has read the gradients, and steps always."""
    model = language_model()
    adam = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    made = trainer(
        tmp_path, WatchCallback(), optimizer=adam, model=model, max_steps=5, max_grad_norm=0
    )
    scaler = made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        return grad + torch.inf if made.state.global_step in (0, 3) else grad

    model.transformer.ln_f.bias.register_hook(spoil)
    made.train()
    run = gw.watch.load(tmp_path / "gradwise")
    assert column(run, "skipped") == [1, 1, 1, 2, 2]
    # The Trainer's numbers have the scale in them, as nobody told it that there is one.
    scaled, norms = column(run, "trainer/grad_norm"), np.array(column(run, "grad_norm"))
    assert np.isfinite(norms).tolist() == [False, True, True, False, True]
    scales = np.array([1024, 512, 512, 512, 256])  # halved after each overflow
    assert float(scaler.get_scale()) == 256
    found = np.array(scaled) / scales
    np.testing.assert_allclose(norms[[1, 2, 4]], found[[1, 2, 4]], rtol=1e-5)


def test_engines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, max_steps=1)
    wrapped = AcceleratedOptimizer(made.spy, device_placement=False)
    monkeypatch.setattr(wrapped.accelerator_state, "distributed_type", DistributedType.DEEPSPEED)
    callback = WatchCallback()
    with pytest.raises(UserError, match=r"^expected gradients in .*, got DEEPSPEED, which"):
        callback.on_train_begin(made.args, made.state, None, wrapped, model=made.model)
    assert callback.watch is None


def test_what_the_trainer_logs(tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        WatchCallback(tmp_path / "run"),
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=3,
        max_steps=6,
    )
    made.train()
    made.evaluate()  # after the end, and not for the run
    run = gw.watch.load(tmp_path / "run")
    history = made.state.log_history[:-1]
    for name in ("loss", "learning_rate", "eval_loss", "train_loss"):
        wanted = {log["step"] - 1: log[name] for log in history if name in log}
        assert noted(run, name) == pytest.approx(wanted), name
    assert set(noted(run, "loss")) == {1, 3, 5}
    assert set(noted(run, "eval_loss")) == {2, 5}


def test_an_optimizer_that_comes_late(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=1)
    callback = WatchCallback(tmp_path / "run")
    args, state = made.args, made.state
    callback.on_train_begin(args, state, None, optimizer=None, model=made.model)
    assert callback.watch is None
    for _ in range(2):
        callback.on_step_begin(args, state, None, optimizer=made.spy, model=made.model)
    watch = callback.watch
    assert watch is not None
    for param in made.model.parameters():
        param.grad = torch.ones_like(param)
    made.spy.step()
    callback.on_train_end(args, state, None)
    assert gw.watch.load(tmp_path / "run").last_step == 0


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UserError, match=r"^expected options among every, per, .*, got 'evry'$"):
        WatchCallback("runs/a", evry=2)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^expected out, transforms, sinks, rules or on_alert"):
        WatchCallback(None)
