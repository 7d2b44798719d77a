"""Around a point: the loss along a line, the margin against 2/lambda_max, dense eigenvalues."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.func import functional_call

from analysis.measured_models import (
    ONE,
    Quadratic,
    Wandering,
    as_loss,
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


def matrix(eigenvalues: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors as columns."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.tensor(eigenvalues).double()) @ basis.T, basis


def dense(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Eigenvalues of the whole Hessian by torch's own second derivatives, descending."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    params = [p for p in model.parameters() if p.requires_grad]

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [p.numel() for p in params])
        at = {n: v.view(p.shape) for n, v, p in zip(names, parts, params, strict=True)}
        return MSE(functional_call(model, at, (data[0],)), data[1])

    flat = torch.cat([p.detach().flatten() for p in params])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).flip(0)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


# --- sharpness ---


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("seed", range(3))
def test_sharpness_is_the_largest_dense_eigenvalue(method: Any, seed: int) -> None:
    model, data = network(seed), regression()
    exact = dense(model, data)
    found = sharpness(model, MSE, data, method=method, chunk_size=7)
    assert found.value == pytest.approx(float(exact[0]), rel=1e-3)
    assert found.critical_step == pytest.approx(2 / found.value)
    vector = torch.cat([v.flatten() for v in found.vector])
    assert float(vector.norm()) == pytest.approx(1)
    assert [v.shape for v in found.vector] == [p.shape for p in model.parameters()]
    assert found.residual <= 2e-3 * found.value
    json.dumps(found.to_dict())


def test_several_eigenvalues_and_small_models_whole() -> None:
    model, data = network(), regression()
    found = sharpness(model, MSE, data, count=4, tolerance=1e-8)
    torch.testing.assert_close(found.values, dense(model, data)[:4])
    small = nn.Linear(4, 1).double()  # five parameters
    found = sharpness(small, MSE, data, count=5)
    torch.testing.assert_close(found.values, dense(small, data))
    assert found.products == 6
    assert found.residual < 1e-12


@settings(max_examples=15)
@given(
    st.lists(st.integers(-40, 40), min_size=25, max_size=25, unique=True),
    st.sampled_from(["lanczos", "power"]),
)
def test_any_spectrum(values: list[int], method: Any) -> None:
    """The largest is found also where the most negative one leads."""
    top = max(values)
    spectrum = [float(v) for v in values if v <= top - 4 or v == top]
    spectrum += [float(top - 10)] * (25 - len(spectrum))  # a gap, so that power iteration ends
    model = Quadratic(matrix(spectrum)[0], torch.ones(25))
    found = sharpness(model, as_loss, ONE, method=method, max_products=3000)
    assert found.value == pytest.approx(top, abs=0.1)


@pytest.mark.parametrize("spectrum", [[5.0, -5.0, 1.0], [-3.0, -3.0, -3.0], [-1.0, -5.0, -4.0]])
def test_power_iteration_with_ties_and_nothing_positive(spectrum: list[float]) -> None:
    model = Quadratic(matrix(spectrum)[0], torch.ones(3))
    found = sharpness(model, as_loss, ONE, method="power")
    assert found.value == pytest.approx(max(spectrum), rel=1e-2)
    assert (found.critical_step == math.inf) == (max(spectrum) < 0)


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("size", [3, 30])
def test_no_curvature_at_all(method: Any, size: int) -> None:
    model = nn.Linear(size, 1)
    data = torch.ones(2, size), torch.ones(2)
    found = sharpness(model, as_loss, data, method=method)
    assert (found.value, found.residual, found.critical_step) == (0.0, 0.0, math.inf)


def test_layers_without_a_simple_second_derivative() -> None:
    """Fused attention and frozen parameters; a loader gives what its tensors give."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64)
    model = nn.Sequential(nn.Unflatten(1, (2, 4)), layer, nn.Flatten(), nn.Linear(8, 1).double())
    layer.linear1.weight.requires_grad_(False)
    x, y = regression(12, 8)
    data = x, y
    model.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = dense(model, data)
    found = sharpness(model.train(), MSE, data)
    assert found.value == pytest.approx(float(exact[0]), rel=1e-3)
    again = sharpness(model, MSE, shuffled(data, 5))
    assert again.value == pytest.approx(found.value, rel=1e-3)


def test_recurrent_layers_are_measured_without_cudnn() -> None:
    seen = []

    class Last(nn.GRU):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.enabled)
            return super().forward(inputs[..., None])[0][:, -1]

    before = torch.backends.cudnn.enabled
    sharpness(Last(1, 1, batch_first=True).double(), MSE, regression(6))
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.enabled == before


def test_the_same_seed_and_no_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(), regression()
    seen: list[tuple[int, int]] = []
    one, two = (
        sharpness(model, MSE, data, progress=lambda *x: seen.append(x), seed=1) for _ in range(2)
    )
    assert one.to_dict() == two.to_dict()
    assert [done for done, _ in seen] == [*range(1, one.products + 1)] * 2
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ModuleNotFoundError, match=r"gradwise\[lab\]"):
        sharpness(model, MSE, data)
    assert sharpness(model, MSE, data, method="power").value == pytest.approx(one.value, rel=1e-3)


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
    assert (up.step, up.curvature) == (0.0, math.inf)
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
