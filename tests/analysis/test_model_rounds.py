"""`model_rounds`: a model and its batches as functions of its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradwise.analysis.online import Ball, OptimisticOMD, model_rounds, play
from gradwise.errors import UserError


class Net(torch.nn.Module):
    """Norm layers, dropout, a tied and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
        self.two.weight = self.one.weight
        self.two.bias.requires_grad_(False)
        self.norm, self.drop = torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.one(x) + self.two(x).tanh())).sum(1)


def net_and_data() -> tuple[torch.nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return Net(), (torch.randn(20, 3), torch.randn(20))


def test_rounds_of_a_model_are_its_losses() -> None:
    model, (x, y) = net_and_data()
    mse = torch.nn.functional.mse_loss
    with model_rounds(model, mse, (x, y), batch_size=8) as game:
        assert game.names == ("one.weight", "one.bias", "norm.weight", "norm.bias")
        assert game.start.shape == (3 * 4 + 4 + 4 + 4,)
        assert len(game.losses) == 3
        assert not model.training
        moved = game.start * 1.5
        values = [float(f(moved)) for f in game.losses]
        grads = [torch.func.grad(f)(moved) for f in game.losses]
    assert model.training
    model.eval()
    with torch.no_grad():
        for name in game.names:
            model.get_parameter(name).mul_(1.5)
    for t, rows in enumerate((slice(0, 8), slice(8, 16), slice(16, 20))):
        loss = mse(model(x[rows]), y[rows])
        assert values[t] == pytest.approx(loss.item(), rel=1e-6)
        slopes = torch.autograd.grad(loss, [model.get_parameter(n) for n in game.names])
        expected = torch.cat([s.reshape(-1) for s in slopes]).double()
        torch.testing.assert_close(grads[t], expected, rtol=1e-4, atol=1e-6)


def test_a_game_leaves_the_model_as_it_was() -> None:
    model, data = net_and_data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    with model_rounds(model, torch.nn.functional.mse_loss, data, batch_size=5) as game:
        result = play(OptimisticOMD(Ball(0.5, game.start)), game.losses)
    assert result.losses.isfinite().all()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_so_many_batches_are_taken() -> None:
    model, (x, y) = net_and_data()
    batches = [(x[:4], y[:4])] * 7
    with model_rounds(model, torch.nn.functional.mse_loss, batches, rounds=3) as game:
        assert len(game.losses) == 3
    with (
        pytest.raises(UserError, match="rounds >= 1"),
        model_rounds(model, torch.nn.functional.mse_loss, batches, rounds=0),
    ):
        pass
