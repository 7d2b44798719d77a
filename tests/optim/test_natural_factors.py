"""What the Kronecker factors are made of: layers of all kinds, and how they are used."""

import numpy as np
import pytest
import torch
from natural_helpers import EXACT, batch, both, half_squares, taken
from torch import nn
from torch.nn import functional

from gradwise.optim._kronecker import Tally, joined, parted
from gradwise.optim._natural import RENG, RING
from reference import natural as oracle

FACTORS = ("factor_in", "factor_out")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def factors(layer: nn.Module, x: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    """Of a loss that is linear in the layer's output: the mean over samples of <c_n, output_n>."""
    optimizer = RING(layer, lr=0.0, rho=0.0)
    optimizer.step(lambda: (layer(x) * c).sum() / len(x))
    return [optimizer.state[layer.weight][key] for key in FACTORS]


def test_a_kernel_of_1x1_is_a_linear_layer():
    conv = nn.Conv2d(3, 4, 1).double()
    linear = nn.Linear(3, 4).double()
    x, c = normal(5, 3, 2, 6), normal(5, 4, 2, 6, seed=1)
    of_conv = factors(conv, x, c)
    of_linear = factors(linear, x.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1))
    for one, other in zip(of_conv, of_linear, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((3, 3), 1, 1, 1), ((2, 3), 2, 0, 1), ((3, 1), 1, 2, 2)],
)
def test_convolutions_against_patches_cut_by_hand(kernel, stride, padding, dilation):
    conv = nn.Conv2d(2, 3, kernel, stride, padding, dilation).double()
    x = normal(4, 2, 7, 6)
    c = normal(*conv(x).shape, seed=1)
    a_bar, s_bar = factors(conv, x, c)
    rows = oracle.patches(x.numpy(), kernel, stride, padding, dilation)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    positions = len(rows) // len(x)
    # Grosse and Martens: A sums over positions, S is their mean; d is of one sample's loss, so c.
    np.testing.assert_allclose(a_bar[0].numpy(), rows.T @ rows / len(x), rtol=1e-12, atol=1e-12)
    d = c.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    expected = d.T @ d / (len(x) * positions)
    np.testing.assert_allclose(s_bar[0].numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", "valid", 2])
def test_every_way_of_padding(mode, padding):
    conv = nn.Conv2d(2, 3, (2, 4), padding=padding, padding_mode=mode, dilation=(1, 2)).double()
    x = normal(3, 2, 9, 9)
    with torch.no_grad():
        out = conv(x)
    a_bar, _ = factors(conv, x, torch.ones_like(out))
    # w^T A w is the mean over samples of the output's sum of squares, whatever the padding.
    joint = joined(conv, conv.weight, conv.bias)[0].detach()
    expected = out.square().sum((0, 2, 3)) / len(x)
    torch.testing.assert_close((joint @ a_bar[0] * joint).sum(1), expected, rtol=1e-10, atol=0)


@both
def test_a_grouped_convolution_is_that_many_convolutions(cls):
    x, c = normal(6, 4, 5, 5), normal(6, 6, 5, 5, seed=1)
    whole = nn.Conv2d(4, 6, 3, padding=1, groups=2).double()
    parts = [nn.Conv2d(2, 3, 3, padding=1).double() for _ in range(2)]

    def closure_of(layer, x, c):
        return lambda: (layer(x).tanh() * c).sum() / len(x)

    with torch.no_grad():
        for i, part in enumerate(parts):
            part.weight.copy_(whole.weight[3 * i : 3 * i + 3])
            part.bias.copy_(whole.bias[3 * i : 3 * i + 3])
    options = {"lr": 0.01, "rho": 0.0, **EXACT}
    cls(whole, **options).step(closure_of(whole, x, c))
    for i, part in enumerate(parts):
        at = slice(2 * i, 2 * i + 2), slice(3 * i, 3 * i + 3)
        cls(part, **options).step(closure_of(part, x[:, at[0]], c[:, at[1]]))
        torch.testing.assert_close(part.weight, whole.weight[at[1]], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(part.bias, whole.bias[at[1]], rtol=1e-9, atol=1e-9)


def test_without_a_batch_there_is_one_sample():
    x, c = normal(3, 5, 5), normal(4, 5, 5, seed=1)
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    optimizer = RING(conv, rho=0.0)
    optimizer.step(lambda: (conv(x) * c).sum())
    for key, other in zip(FACTORS, factors(conv, x[None], c[None]), strict=True):
        torch.testing.assert_close(optimizer.state[conv.weight][key], other)
    linear = nn.Linear(3, 2).double()
    optimizer = RING(linear, rho=0.0)
    optimizer.step(lambda: linear(x[:, 0, 0]).sum())
    assert optimizer.state[linear.weight]["factor_in"].shape == (1, 4, 4)


def test_joined_and_parted_are_inverses():
    conv = nn.Conv2d(4, 6, (2, 3), groups=2)
    joint = joined(conv, conv.weight, conv.bias)
    assert joint.shape == (2, 3, 2 * 2 * 3 + 1)
    weight, bias = parted(joint, conv.weight, True)
    assert torch.equal(weight, conv.weight)
    assert bias is not None
    assert torch.equal(bias, conv.bias)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(input=x).tanh())


def test_each_use_of_a_shared_layer_is_a_position_of_its_samples():
    model = Twice()
    x, y = batch(8, 3, 3)
    hidden = model.layer(x).detach().tanh()
    first = torch.zeros(8, 3).double().requires_grad_()
    out = model.layer((model.layer(x).detach() + first).tanh())
    d2 = (out - y).detach()
    (d1,) = torch.autograd.grad((out - y).square().sum() / 2, first)
    optimizer = RENG(model)
    optimizer.step(half_squares(model, x, y))
    state = optimizer.state[model.layer.weight]
    one = torch.ones(8, 1).double()
    a1, a2 = torch.cat([x, one], 1), torch.cat([hidden, one], 1)
    torch.testing.assert_close(state["factor_in"][0], (a1.T @ a1 + a2.T @ a2) / 8)
    torch.testing.assert_close(state["factor_out"][0], (d1.T @ d1 + d2.T @ d2) / 16)


def test_two_layers_with_one_weight_make_one_block():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    shared = Twice()
    shared.layer.load_state_dict(model[0].state_dict())
    x, y = batch(8, 3, 3)
    for net in (model, shared):
        RENG(net, rho=0.2).step(half_squares(net, x, y))
    torch.testing.assert_close(model[0].weight, shared.layer.weight, rtol=0, atol=0)


def test_uses_that_the_loss_does_not_depend_on_do_not_count():
    layer = nn.Linear(3, 2).double()
    x, y = batch(5, 3, 2)
    states = []
    for extra in (False, True):
        optimizer = RENG(layer, lr=0.0)

        def closure(extra=extra):
            if extra:
                layer(10 * x)
                with torch.no_grad():
                    layer(10 * x)
            return half_squares(layer, x, y)()

        optimizer.step(closure)
        states.append(optimizer.state[layer.weight])
    for key in FACTORS:
        assert torch.equal(states[0][key], states[1][key])


@both
def test_derivatives_that_the_closure_takes_itself_do_not_count(cls):
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = normal(6, 1).requires_grad_()

    def closure():
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return (slope - x.detach().cos()).square().mean() + net(x[:1]).square().mean()

    optimizer = cls(net, lr=1e-3, factor_every=100)
    end = 4 * net(x[:1]).detach().square()
    losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert losses[-1] < losses[0]
    # S of the last layer is of d = 2 u(x_1) alone, not of the 1 that the slope begins with.
    torch.testing.assert_close(optimizer.state[net[2].weight]["factor_out"][0], end)


@both
def test_a_side_that_is_too_large_keeps_its_mean_diagonal(cls):
    x, y = batch(9, 5, 2)
    layer = nn.Linear(5, 2).double()
    step = taken(
        cls(layer, lr=1.0, rho=0.0, damping=0.04, max_dim=3, **EXACT), (half_squares(layer, x, y))
    )
    fresh = nn.Linear(5, 2).double()
    with torch.no_grad():
        fresh.weight.copy_(layer.weight + step[:10].view(2, 5))
        fresh.bias.copy_(layer.bias + step[10:])
    a = torch.cat([x, torch.ones(9, 1).double()], 1)
    d = (fresh(x) - y).detach()
    scale = a.square().mean() + 0.2
    s = d.T @ d / 9 + 0.2 * torch.eye(2).double()
    expected = torch.linalg.solve(s, d.T @ a / 9) / scale
    torch.testing.assert_close(step[:10].view(2, 5), expected[:, :5], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(step[10:], expected[:, 5], rtol=1e-8, atol=1e-10)


def test_hooks_are_there_for_a_refresh_only():
    seen: list[int] = []
    layer = nn.Linear(3, 2).double()
    optimizer = RENG(layer, factor_every=3)
    x, y = batch(5, 3, 2)

    def closure():
        seen.append(len(layer._forward_hooks))
        return half_squares(layer, x, y)()

    for _ in range(5):
        optimizer.step(closure)
        assert not layer._forward_hooks
    assert seen == [1, 0, 0, 1, 0]

    def broken():
        raise KeyError("a mistake of the user's")

    optimizer.step(closure)
    with pytest.raises(KeyError):
        optimizer.step(broken)
    assert not layer._forward_hooks
    assert optimizer.state[layer.weight]["refreshes"] == 2


@both
def test_factors_that_are_not_finite_are_not_taken(cls):
    layer = nn.Linear(3, 2).double()
    x, y = batch(5, 3, 2)
    optimizer = cls(layer, factor_every=1, lr=0.01)
    optimizer.step(half_squares(layer, x, y))
    state = optimizer.state[layer.weight]
    kept = {key: state[key].clone() for key in (*FACTORS, "inverse_in", "inverse_out")}
    weights = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer.step(half_squares(layer, x * torch.inf, y))
    for key, value in kept.items():
        assert torch.equal(optimizer.state[layer.weight][key], value)
    with torch.no_grad():
        layer.weight.copy_(weights[0])
        layer.bias.copy_(weights[1])
    optimizer.step(half_squares(layer, x, y))
    assert layer.weight.isfinite().all()


def test_narrow_parameters_have_float32_factors():
    layer = nn.Linear(4, 2).bfloat16()
    optimizer = RENG(layer, momentum=0.9)
    x, y = torch.randn(6, 4).bfloat16(), torch.randn(6, 2).bfloat16()
    optimizer.step(lambda: functional.mse_loss(layer(x), y))
    state = optimizer.state[layer.weight]
    assert {v.dtype for v in state.values() if isinstance(v, torch.Tensor)} == {torch.float32}
    assert layer.weight.dtype == torch.bfloat16


def test_autocast_does_not_reach_the_factors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    optimizer = RING(model, rho=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step(lambda: functional.mse_loss(model(x).float(), y))
    state = optimizer.state[model[0].weight]
    expected = torch.cat([x, torch.ones(16, 1)], 1)
    torch.testing.assert_close(state["factor_in"][0], expected.T @ expected / 16)
    assert state["inverse_in"].dtype == torch.float32
    assert max(inversion.residual for inversion in optimizer.inversions) <= 1e-3


def test_a_tally_of_nothing_has_no_factors():
    assert Tally(True, (False, False), True, torch.float32).factors() is None
