"""Around a point: the loss along a line, the margin against 2/lambda_max, what is left alone."""

from __future__ import annotations

import json
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from analysis.measured_models import (
    ONE,
    Quadratic,
    Wandering,
    as_loss,
    matrix,
    network,
    regression,
    shuffled,
    untouched,
)
from gradwise.analysis.landscape import (
    Update,
    learning_rate_margin,
    loss_along,
    record_update,
    sharpness,
)
from gradwise.errors import UserError

MSE = nn.MSELoss()


# --- along a line ---


def test_losses_along_the_gradient_and_a_recorded_update() -> None:
    model, data = network(), regression()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = float(MSE(model(data[0]), data[1]).detach())
    MSE(model(data[0]), data[1]).backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    line = loss_along(model, MSE, data, [0.0, 1e-6], chunk_size=5)
    assert float(line.losses[0]) == pytest.approx(before)
    fall = float(line.losses[0] - line.losses[1])
    assert fall == pytest.approx(1e-6 * float(flat @ flat), rel=1e-3)
    with record_update(model) as recorder:
        optimizer.step()
        with pytest.raises(UserError, match="with block"):
            _ = recorder.update
    seen: list[tuple[int, int]] = []
    line = loss_along(
        model, MSE, shuffled(data, 5), [1, 0, -1.0], update=recorder.update,
        progress=lambda *x: seen.append(x),
    )  # fmt: skip
    assert float(line.losses[0]) == pytest.approx(float(MSE(model(data[0]), data[1]).detach()))
    assert float(line.losses[1]) == pytest.approx(before)
    assert float(line.losses[2]) > before
    assert seen == [(1, 3), (2, 3), (3, 3)]
    json.dumps(line.to_dict())


@settings(max_examples=20)
@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    st.integers(0, 100),
    st.floats(1.1, 8.0),
)
def test_the_margin_on_quadratics(spectrum: list[float], seed: int, growth: float) -> None:
    hessian, basis = matrix(spectrum, seed)
    at = torch.randn(len(spectrum), dtype=torch.float64) + 0.1
    found = learning_rate_margin(
        Quadratic(hessian, at), as_loss, ONE, tolerance=1e-6, growth=growth
    )
    g = hessian @ at
    exact = float(2 * g @ g / (g @ hessian @ g))
    assert found.step == pytest.approx(exact, rel=1e-5)
    assert found.step >= 2 / max(spectrum) * (1 - 1e-5)
    assert found.curvature == pytest.approx(float(g @ hessian @ g / (g @ g)), rel=1e-5)
    assert found.slope == pytest.approx(float(g @ g))
    # along the top eigenvector it is 2 / lambda_max itself
    top = basis[:, spectrum.index(max(spectrum))]
    model = Quadratic(hessian, top)
    found = learning_rate_margin(model, as_loss, ONE, tolerance=1e-6, growth=growth)
    critical = sharpness(model, as_loss, ONE).critical_step
    assert found.step == pytest.approx(critical, rel=1e-5)


def test_descent_ends_at_the_critical_step() -> None:
    """Gradient descent just above 2/lambda_max aligns with the sharpest direction and climbs."""
    hessian, _ = matrix([10.0, 3.0, 1.0])
    model = Quadratic(hessian, torch.tensor([1.0, 1.0, 1.0]))
    for _ in range(60):
        with torch.no_grad():
            model.theta -= 0.205 * hessian @ model.theta
    found = learning_rate_margin(model, as_loss, ONE, tolerance=1e-6)
    assert found.step == pytest.approx(0.2, rel=1e-4)
    assert found.step < 0.205


def test_the_margin_of_a_step_counts_in_steps() -> None:
    hessian = torch.diag(torch.tensor([4.0, 4.0]))
    model = Quadratic(hessian, torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # a fifth of 2 / 4
    model(ONE[0]).mean().backward()
    with record_update(model) as recorder:
        optimizer.step()
    seen: list[tuple[int, int]] = []
    found = learning_rate_margin(
        model, as_loss, ONE, update=recorder.update, tolerance=1e-6,
        progress=lambda *x: seen.append(x),
    )  # fmt: skip
    assert found.step == pytest.approx(5)
    assert found.curvature == pytest.approx(4)
    assert seen == [(k, 0) for k in range(1, found.evaluations + 1)]
    assert found.evaluations < 40
    back = Update(recorder.update.start, tuple(-d for d in recorder.update.direction))
    up = learning_rate_margin(model, as_loss, ONE, update=back)
    assert (up.step, up.curvature, up.evaluations) == (0.0, math.inf, 0)
    assert up.slope == pytest.approx(-found.slope)
    json.dumps(up.to_dict())


def test_losses_that_never_rise_or_overflow() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    flat = learning_rate_margin(
        model, lambda o, _: o.mean().exp(), (torch.ones(1, 1).double(),) * 2
    )
    assert (flat.step, flat.curvature) == (math.inf, 0.0)

    def wall(outputs: Tensor, _: Tensor) -> Tensor:
        """Falls until the output is 0, and is not a number from there on."""
        return outputs.mean().sqrt()

    found = learning_rate_margin(model, wall, (torch.ones(1, 1).double(),) * 2, tolerance=1e-6)
    assert found.step == pytest.approx(2.0, rel=1e-5)  # the slope of the root is 1/2


@pytest.mark.parametrize("curvature", [1e-20, 1e20])
def test_the_probe_starts_at_the_scale_of_the_loss(curvature: float) -> None:
    model = Quadratic(curvature * torch.eye(2), torch.tensor([1.0, 2.0]))
    found = learning_rate_margin(model, as_loss, ONE)
    assert found.step == pytest.approx(2 / curvature, rel=1e-2)
    assert found.evaluations < 20


def test_a_start_far_too_long_shrinks() -> None:
    """A loss with a large constant makes the first step of the probe far too long."""
    model = Quadratic(torch.eye(2), torch.tensor([1.0, 0.0]))
    found = learning_rate_margin(model, lambda o, t: as_loss(o, t) + 1e6, ONE, tolerance=1e-5)
    assert found.step == pytest.approx(2.0, rel=1e-4)


# --- what it leaves alone, what it refuses ---


@pytest.mark.parametrize("name", ["sharpness", "margin", "line"])
def test_nothing_of_the_model_changes(name: str) -> None:
    calls = {
        "sharpness": sharpness,
        "margin": learning_rate_margin,
        "line": lambda *args: loss_along(*args, [0.0, 0.1]),
    }
    model, (x, y) = Wandering(), regression()
    data = x.float(), y.float()
    MSE(model(data[0]), data[1]).backward()
    model.net[0].weight.requires_grad_(False)
    loader = shuffled(data, 4)
    for source in (loader, data):
        with untouched(model, loader), torch.no_grad():
            calls[name](model, MSE, source)


def test_tied_parameters_move_together() -> None:
    one, two = nn.Linear(3, 3, bias=False).double(), nn.Linear(3, 3, bias=False).double()
    two.weight = one.weight
    model, (x, _) = nn.Sequential(one, nn.Tanh(), two), regression(8, 3)
    with torch.no_grad():
        moved = one.weight - 0.3
        expected = MSE(torch.tanh(x @ moved.T) @ moved.T, x)
    update = Update((one.weight.detach(),), (torch.ones(3, 3).double(),))
    line = loss_along(model, MSE, (x, x), [0.3], update=update)
    assert float(line.losses[0]) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("call", "change", "words"),
    [
        (sharpness, {"tolerance": 0.0}, "tolerance=0.0"),
        (sharpness, {"max_products": 0}, "max_products=0"),
        (sharpness, {"count": 0}, "count=0"),
        (sharpness, {"count": 2, "method": "power"}, "1 <= count <= 1 with 'power'"),
        (sharpness, {"method": "power", "max_products": 2}, "max_products=2.*lambda_max is about"),
        (sharpness, {"loss_fn": lambda a, b: (a * math.inf).sum()}, "finite second derivatives"),
        (sharpness, {"model": nn.Linear(4, 1, dtype=torch.cdouble)}, "'weight' is torch.complex"),
        (loss_along, {"steps": []}, r"steps=\[\]"),
        (loss_along, {"steps": [math.nan]}, r"steps=\[nan\]"),
        (loss_along, {"steps": [0.0], "update": Update((), ())}, r"its start has shapes \[\]"),
        (learning_rate_margin, {"growth": 1.0}, "growth=1.0"),
        (learning_rate_margin, {"tolerance": 0.0}, "tolerance=0.0"),
        (learning_rate_margin, {"loss_fn": lambda a, b: (a * 0).sum()}, r"\|d\| = 0"),
    ],
)
def test_mistakes_are_named(call: Any, change: dict[str, Any], words: str) -> None:
    given_ = {"model": network(), "loss_fn": MSE, "data": regression(), **change}
    with pytest.raises(UserError, match=words):
        call(**given_)


def test_an_endless_lanczos_and_a_broken_update() -> None:
    generator = torch.Generator().manual_seed(0)
    hessian = matrix([1.0 + 1e-5 * k for k in range(200)])[0]
    model = Quadratic(hessian, torch.randn(200, generator=generator))
    with pytest.raises(UserError, match="no convergence within max_products=20"):
        sharpness(model, as_loss, ONE, tolerance=1e-12, max_products=20)
    broken = Update((model.theta.detach(),), (torch.full((200,), math.nan),))
    with pytest.raises(UserError, match="finite real update, its direction"):
        loss_along(model, as_loss, ONE, [1.0], update=broken)
