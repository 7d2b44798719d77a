"""Sharpness against dense eigenvalues, and where it could go astray."""

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
    as_loss,
    matrix,
    network,
    regression,
    shuffled,
)
from gradwise.analysis.landscape import (
    sharpness,
)

MSE = nn.MSELoss()


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


def test_a_loose_tolerance_does_not_take_the_most_negative_eigenvalue() -> None:
    model = Quadratic(matrix([-5.0, 2.0, 1.9])[0], torch.ones(3))
    found = sharpness(model, as_loss, ONE, method="power", tolerance=0.15)
    assert found.value > 0


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
