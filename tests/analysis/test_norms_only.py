"""Training norm layers alone, (11.5)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradwise.analysis.trajectory import freeze_all_but_norms
from gradwise.errors import UserError


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6),
        nn.Linear(6, 2),
    )  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        x = torch.randn(16, 4)
        loss = (model(x) - x[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_only_norms_move_under_the_optimizer_of_before(kind: type) -> None:
    model = network()
    extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1, **extra)
    train(model, optimizer)
    before = state(model)
    with freeze_all_but_norms(model) as handle:
        train(model, optimizer)
        during = state(model)
    assert handle.trained == ("1.weight", "1.bias", "4.weight", "4.bias")
    assert set(handle.frozen) == {f"{i}.{n}" for i in (0, 3, 5) for n in ("weight", "bias")}
    assert handle.frozen_share == pytest.approx(1 - 24 / sum(p.numel() for p in model.parameters()))
    moved = {k for k in before if not torch.equal(before[k], during[k])}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert moved == {*handle.trained, *statistics}
    train(model, optimizer)
    after = state(model)
    assert all(not torch.equal(after[k], during[k]) for k in after)


def test_everything_is_undone_also_after_an_error() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    model[1].eval()
    model(torch.randn(8, 4)).sum().backward()
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    grads = {n: p.grad for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]

    def inside() -> None:
        with freeze_all_but_norms(model) as handle:
            assert handle.trained == ("1.weight", "1.bias", "4.weight")
            assert model[0].weight.grad is None
            assert model[1].weight.grad is not None
            assert [m.training for m in model.modules()] == modes
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert all(p.grad is grads[n] for n, p in model.named_parameters())


def test_a_handle_is_undone_once() -> None:
    model = network()
    handle = freeze_all_but_norms(model)
    assert not model[0].weight.requires_grad
    handle.restore()
    model[0].weight.requires_grad_(False)
    handle.restore()
    assert not model[0].weight.requires_grad


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


def test_norms_of_other_classes_and_shared_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), OwnNorm())
    with pytest.raises(UserError, match="also="):
        freeze_all_but_norms(model)
    assert all(p.requires_grad for p in model.parameters())
    with freeze_all_but_norms(model, also=(OwnNorm,)) as handle:
        assert handle.trained == ("1.scale",)
    model[0].bias = model[1].scale
    with freeze_all_but_norms(model, also=(OwnNorm,)) as handle:
        assert (handle.trained, handle.frozen) == (("0.bias",), ("0.weight",))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.RMSNorm(4)],
)
def test_which_layers_are_norms(norm: nn.Module) -> None:
    with freeze_all_but_norms(nn.Sequential(nn.Conv2d(3, 4, 1), norm)) as handle:
        assert {n.split(".")[0] for n in handle.trained} == {"1"}
