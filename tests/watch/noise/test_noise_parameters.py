"""Which parameters count: frozen, shared and unreached ones, other types, sizes and devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwise.watch.probes import cycle
from gradwise.watch.probes.cycle import _norm
from gradwise.watch.probes.noise import ALONE, NoiseProbe
from noise.loops import Loop, agrees, expected, looped, loss_of, network, numbers, vector


class Heads(nn.Module):
    """A trunk and two heads, of which ordinary passes reach the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.trunk, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(torch.tanh(self.trunk(x)))


def micro(loop: Loop, params: list[Tensor]) -> list[np.ndarray]:
    losses = [loss_of(loop.model, 100 * loop.done + m) for m in range(loop.passes)]
    return [vector(torch.autograd.grad(loss, params)) for loss in losses]


@pytest.mark.parametrize("frozen", [False, True])
def test_those_that_nothing_reaches(frozen: bool) -> None:
    model = Heads()  # `two` stands last, so that one of its parameters is asked to count first
    model.two.requires_grad_(not frozen)
    loop = Loop(model, NoiseProbe(list(model.parameters()), every=1))
    counts = []
    loop.before_step = lambda: counts.append(loop.probe.backwards)
    loop.step()
    loop.step()
    truth = expected(micro(loop, [*model.trunk.parameters(), *model.one.parameters()]), 1 / 3)
    assert agrees(loop.step(), truth)
    # Where it was not frozen, the first step goes by before the count moves to another.
    assert counts[1:] == [3, 3]
    assert counts[0] == (3 if frozen else 0)


def test_a_pass_that_was_not_announced_counts_as_one() -> None:
    model = Heads()
    probe = NoiseProbe(list(model.parameters()))
    loss_of(model, 0).backward()
    assert probe.backwards == 0
    probe.gradients([p.grad for p in model.parameters()])
    assert probe.backwards == 1


def test_the_count_moves_on_when_a_head_is_left_behind() -> None:
    model = Heads()
    params = list(model.parameters())  # `two` stands last
    probe = NoiseProbe(params, every=1)
    counts = []
    x = torch.randn(5, 4, dtype=torch.float64)
    for heads in [(model.two, model.two), (model.one, model.two), (model.one, model.two)]:
        model.zero_grad()
        for head in heads:
            head(torch.tanh(model.trunk(x))).square().mean().backward()
        probe.gradients([p.grad for p in params])
        counts.append(probe.backwards)
        probe.end()
    # In the second step what counts is reached by one of two passes; then it is in the trunk.
    assert counts == [2, 1, 2]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_count_moves_on_from_zeros_that_nothing_is_added_to(frozen: bool) -> None:
    model = Heads()
    params = list(model.parameters())
    probe = NoiseProbe(params)
    counts = []
    for step in range(6):
        model.zero_grad(set_to_none=False)
        head = model.two if step == 0 else model.one
        x = torch.randn(5, 4, dtype=torch.float64)
        head(torch.tanh(model.trunk(x))).square().mean().backward()
        if step == 0:
            model.two.requires_grad_(not frozen)
        probe.gradients([p.grad for p in params])
        counts.append(probe.backwards)
        probe.end()
    # Two parameters of the head have zeros for gradients: each is asked once.
    assert counts == ([1] * 6 if frozen else [1, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("trunk_last", [False, True])
def test_losses_of_different_heads_are_no_micro_batches(trunk_last: bool) -> None:
    model = Heads()
    params = list(model.parameters())
    probe = NoiseProbe(params[::-1] if trunk_last else params, every=1)
    x = torch.randn(5, 4, dtype=torch.float64)
    reasons, counts = [], []
    for _ in range(3):
        model.zero_grad()
        for head in (model.one, model.two):
            head(torch.tanh(model.trunk(x))).square().mean().backward()
        probe.gradients([p.grad for p in params])
        counts.append(probe.backwards)
        assert probe.end() == {}
        reasons.append(probe.reason)
    # What counts is in the trunk, which both passes reach, or in a head that one of them does.
    assert reasons == ([None, cycle.PARTS, cycle.PARTS] if trunk_last else [ALONE] * 3)
    assert counts == [2 if trunk_last else 1] * 3


def test_shared_ones_count_once() -> None:
    model = network()
    back = nn.Linear(3, 4, dtype=torch.float64)
    model = nn.Sequential(*model, nn.Tanh(), back, *model)
    loop = Loop(model, NoiseProbe(list(model.parameters()), every=1))
    loop.step()
    truth = expected(loop.true(), 1 / 3)
    assert agrees(loop.step(), truth)


def test_frozen_and_thawed() -> None:
    loop = looped()
    loop.step()
    loop.model[2].requires_grad_(False)
    loop.step()
    truth = expected(micro(loop, list(loop.model[0].parameters())), 1 / 3)
    assert agrees(loop.step(), truth)
    loop.model[2].requires_grad_(True)
    loop.step()  # has hooks only where they could be put when it began
    truth = expected(loop.true(), 1 / 3)
    assert agrees(loop.step(), truth)


def test_none_that_trains() -> None:
    probe = NoiseProbe([nn.Parameter(torch.ones(2), requires_grad=False)], every=1)
    for _ in range(3):
        probe.gradients([None])
        assert probe.end() == {}
    assert probe.backwards == 0
    assert probe.reason == ALONE


def test_sparse_ones() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    probe = NoiseProbe(list(embedding.parameters()), every=1)
    for _ in range(2):
        embedding.zero_grad()
        for _ in range(2):
            embedding(torch.tensor([0, 3])).sum().backward()
        probe.gradients([embedding.weight.grad])
        assert probe.backwards == 2
        assert probe.end() == {}
    assert probe.reason == cycle.SPARSE


def measured(params: list[Tensor], loss: object) -> dict[str, Tensor | float]:
    """The second of two steps with two passes over a loss."""
    assert callable(loss)
    probe = NoiseProbe(params, every=1)
    for _ in range(2):
        for p in params:
            p.grad = None
        for m in range(2):
            loss(m).backward()
        probe.gradients([p.grad for p in params])
        found = probe.end()
    assert probe.reason is None
    probe.close()
    return found


@pytest.mark.parametrize(
    ("dtype", "rel"),
    [
        (torch.float32, 1e-6),
        (torch.float64, 1e-12),
        (torch.bfloat16, 1e-6),  # of what bfloat16 gradients hold
        (torch.float16, 1e-6),
        (torch.complex64, 1e-6),
        (torch.complex128, 1e-12),
    ],
)
def test_types(dtype: torch.dtype, rel: float) -> None:
    def loss(m: int) -> Tensor:
        product = param * slopes[m]
        return torch.view_as_real(product).sum() if dtype.is_complex else product.sum()

    param = nn.Parameter(torch.randn(300, 200).to(dtype))
    slopes = [torch.randn(300, 200).to(dtype) for _ in range(2)]
    small, big, ratio = numbers(measured([param], loss))
    grads = [torch.autograd.grad(loss(m), param)[0] for m in range(2)]
    total = grads[0] + grads[1]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    norms = [float(g.to(wide).abs().square().sum()) for g in (*grads, total)]
    assert small == pytest.approx((norms[0] + norms[1]) / 2, rel=rel)
    assert big == pytest.approx(norms[2] / 4, rel=rel)
    assert ratio == 2.0


def test_norms_of_any_form() -> None:
    torch.manual_seed(1)
    values = torch.randn(64, 3, 40, 21)
    forms = {
        "long": values,
        "channels last": values.to(memory_format=torch.channels_last),
        "transposed": values.transpose(0, 3),
        "every other": values[:, :, ::2],
        "expanded": values[0, 0, 0, :1].expand(70_000),
        "conjugated": torch.view_as_complex(values[..., :20].reshape(-1, 2)).conj(),
        "one": values[0, 0, 0, 0],
        "none": values[:0],
        "whole blocks": values.reshape(-1)[: 40 * 1024],
    }
    for name, form in forms.items():
        truth = float(torch.linalg.vector_norm(form.to(torch.complex128)))
        found = _norm(form)
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(truth, rel=3e-6), name


def test_many_equal_values_do_not_drift() -> None:
    # In one float32 sum of ten million squares a fifth of a percent is lost.
    many = torch.full((10_000_000,), 1e-3)
    assert float(_norm(many)) ** 2 == pytest.approx(10.0, rel=1e-6)


def test_several_devices() -> None:
    # The meta device stands for an accelerator: it has no values, and refuses to be read.
    here, there = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, device="meta"))
    probe = NoiseProbe([here, there], every=1)
    for _ in range(2):
        here.grad = there.grad = None
        for _ in range(2):
            here.sum().backward()
            there.sum().backward()
        probe.gradients([here.grad, there.grad])
        found = probe.end()
    for key in ("noise_small", "noise_big"):
        value = found[key]
        assert isinstance(value, Tensor)
        assert value.device.type == "meta"
        assert value.dim() == 0
