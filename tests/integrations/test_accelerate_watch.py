"""The Accelerate helper, against gradients caught by other means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradwise as gw
from gradwise.errors import UserError
from gradwise.transforms import Autoscale, ClipNorm

accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")

from accelerate.state import AcceleratorState, PartialState  # noqa: E402

from gradwise.integrations.accelerate import watch  # noqa: E402
from integrations.hosted import (  # noqa: E402
    Spy,
    check_gradients,
    column,
    norm_of,
    note_readings,
    noted,
    plain_training,
    same,
    values,
)


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Accelerate keeps one state a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 6, generator=made), torch.randint(3, (4,), generator=made))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def train(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    data: list[Any],
    events: list[str] | None = None,
    clip: float | None = None,
) -> None:
    """The loop of Accelerate's own guide to gradient accumulation."""
    events = [] if events is None else events
    for batch in data:
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            events.append("backward")
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
                events.append("clip")
            optimizer.step()
            optimizer.zero_grad()
        accelerator.log({"loss": loss.detach(), "note": "text", "grad_norm": 50.0})


def test_the_order_of_events(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    events: list[str] = []
    model = network()
    model, optimizer = accelerator.prepare(model, Spy(model.parameters(), 0.1, events))
    made = watch(accelerator, optimizer, model, tmp_path / "run")
    assert made.optimizer is optimizer.optimizer
    note_readings(optimizer, events)
    train(accelerator, model, optimizer, batches(4), events, clip=0.01)
    step = ["backward", "backward", "clip", "read", "update"]
    assert events == [*step, *step]
    assert made.step == 1
    accelerator.end_training()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("micro", [1, 3])
def test_the_statistics(tmp_path: Path, precision: str, micro: int) -> None:
    accelerator = accelerate.Accelerator(
        cpu=True,
        gradient_accumulation_steps=micro,
        mixed_precision=precision,
        project_dir=tmp_path,
    )
    model = network()
    model, optimizer = accelerator.prepare(model, Spy(model.parameters(), 0.1))
    made = watch(accelerator, optimizer, model)
    data = batches(6)
    train(accelerator, model, optimizer, data, clip=0.2)
    accelerator.end_training()
    used = optimizer.optimizer.used
    assert made.path == tmp_path / "gradwise"
    check_gradients(tmp_path / "gradwise", ["0.weight", "0.bias", "2.weight", "2.bias"], used)
    run = gw.watch.load(tmp_path / "gradwise")
    assert run.closed
    assert run.meta["model"] == "Sequential"
    assert column(run, "backwards") == [micro] * (6 // micro)
    assert max(norm_of(step) for step in used) <= 0.2001
    assert column(run, "accelerate/grad_norm") == [50.0] * (6 // micro)
    if precision == "no":
        twin = network()
        steps = [data[at : at + micro] for at in range(0, 6, micro)]
        plain = plain_training(twin, Spy(twin.parameters(), 0.1), steps, loss_of, 0.2)
        for ours, theirs in zip(used, plain, strict=True):
            torch.testing.assert_close(ours, theirs)
        losses = noted(run, "loss")
        assert losses[0] == pytest.approx(loss_of(network(), data[micro - 1]).item())


def test_transforms(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    model, optimizer = accelerator.prepare(model, Spy(model.parameters(), 0.1))
    watch(accelerator, optimizer, model, tmp_path / "run", transforms=[Autoscale(), ClipNorm(0.1)])
    train(accelerator, model, optimizer, batches(4))
    accelerator.end_training()
    twin = network()
    other = Spy(twin.parameters(), 0.1)
    gw.attach(other, Autoscale(), ClipNorm(0.1))
    plain_training(twin, other, [[b] for b in batches(4)], loss_of)
    assert same(values(model), values(twin))
    applied = column(gw.watch.load(tmp_path / "run"), "applied_norm")
    np.testing.assert_allclose(applied, [norm_of(s) for s in other.used], rtol=1e-5)


@pytest.mark.parametrize("first", ["load", "watch"])
def test_a_resumed_run_goes_on(tmp_path: Path, first: str) -> None:
    def begin(folder: Path, state: Path | None = None) -> tuple[Any, Any, Any]:
        accelerator = accelerate.Accelerator(cpu=True, project_dir=folder)
        model = network()
        adam = torch.optim.Adam(model.parameters(), lr=0.05)
        model, optimizer = accelerator.prepare(model, adam)
        if state is not None and first == "load":
            accelerator.load_state(state)
        watch(accelerator, optimizer, model, transforms=[Autoscale()])
        if state is not None and first == "watch":
            accelerator.load_state(state)
        return accelerator, model, optimizer

    data = batches(6)
    accelerator, whole, optimizer = begin(tmp_path / "whole")
    train(accelerator, whole, optimizer, data)
    accelerator.end_training()
    accelerator, model, optimizer = begin(tmp_path / "parts")
    train(accelerator, model, optimizer, data[:3])
    accelerator.save_state(tmp_path / "state")
    train(accelerator, model, optimizer, data[3:4])
    accelerator.end_training()
    accelerator, model, optimizer = begin(tmp_path / "parts", tmp_path / "state")
    train(accelerator, model, optimizer, data[3:])
    accelerator.end_training()
    assert same(values(model), values(whole))
    run, expected = (gw.watch.load(tmp_path / at / "gradwise") for at in ("parts", "whole"))
    for name in ("grad_norm", "applied_norm", "alpha", "loss"):
        assert column(run, name) == pytest.approx(column(expected, name), rel=1e-6), name
    assert not (tmp_path / "parts" / "gradwise-2").exists()


def test_what_cannot_be_asked_for() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    model, optimizer = accelerator.prepare(model, Spy(model.parameters(), 0.1))
    with pytest.raises(UserError, match=r"^expected out, or an Accelerator with a project_dir"):
        watch(accelerator, optimizer, model)
    with pytest.raises(UserError, match=r"^expected every >= 1, got every=0$"):
        watch(accelerator, optimizer, model, None, every=0)
    accelerator.state.distributed_type = accelerate.DistributedType.DEEPSPEED
    with pytest.raises(UserError, match=r"^expected gradients in .*, got DEEPSPEED, which"):
        watch(accelerator, optimizer, model, None)
    accelerator.state.distributed_type = accelerate.DistributedType.NO
    made = watch(accelerator, optimizer, model, None)
    train(accelerator, model, optimizer, batches(2))
    assert (made.step, made.path) == (1, None)
    accelerator.end_training()
