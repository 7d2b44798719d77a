"""Feature sparsity, (12.4)."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradwise.analysis.sparsity import (
    feature_sparsity,
    jacobian_rank,
    sparsity_of,
)
from gradwise.errors import UserError


def relu_features(n: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64).relu()


def counted(features: np.ndarray, threshold: float = 0.95) -> tuple[float, int, int]:
    """(12.4) in plain loops: the de-duplicated share, how many are dead, how many duplicates."""
    samples, neurons = features.shape
    left = [j for j in range(neurons) if (features[:, j] > 0).any()]
    dead, duplicates = neurons - len(left), 0

    def alike(a: int, b: int) -> bool:
        x, y = features[:, a] - features[:, a].mean(), features[:, b] - features[:, b].mean()
        scale = math.sqrt(float(x @ x) * float(y @ y))
        return (
            np.ptp(features[:, a]) > 0 < np.ptp(features[:, b]) and abs(x @ y) > threshold * scale
        )

    for j in list(left):
        if any(alike(j, other) for other in left if other != j):
            left.remove(j)
            duplicates += 1
    return float((features[:, left] > 0).sum()) / (samples * neurons), dead, duplicates


# --- features ---


@given(st.integers(3, 30), st.integers(1, 8), st.integers(0, 999), st.floats(0.3, 0.99))
def test_counts_are_those_of_plain_loops(n: int, k: int, seed: int, threshold: float) -> None:
    features = relu_features(n, k, seed)
    generator = torch.Generator().manual_seed(seed)
    mixed = features[:, torch.randint(k, (2 * k,), generator=generator)]
    mixed = mixed + 0.2 * relu_features(n, 2 * k, seed + 1) * (mixed > 0)
    features = torch.cat([features, mixed, torch.zeros(n, 1)], 1)
    found = sparsity_of(features, threshold=threshold)
    share, dead, duplicates = counted(features.numpy(), threshold)
    assert found.active == pytest.approx(float((features > 0).double().mean()))
    assert (found.dead, found.duplicates) == (dead, duplicates)
    assert found.distinct_active == pytest.approx(share)
    assert 0 <= found.distinct_active <= found.active <= 1


@given(st.integers(3, 20), st.integers(1, 6), st.integers(0, 999), st.floats(1e-3, 1e3))
def test_a_copy_of_a_neuron_leaves_the_numerator(n: int, k: int, seed: int, scale: float) -> None:
    features = relu_features(n, k, seed)
    varied = [j for j in range(k) if features[:, j].max() > features[:, j].min()]
    before = sparsity_of(features)
    for j in varied:
        copied = torch.cat([features, scale * features[:, j : j + 1]], 1)
        after = sparsity_of(copied)
        # The numerators are of possibly another member of a set of similar neurons: only where
        # nothing was similar before are they the same for sure.
        if before.duplicates == 0:
            assert after.distinct_active * n * (k + 1) == pytest.approx(
                before.distinct_active * n * k
            )
            assert after.duplicates == 1


def test_limits() -> None:
    dead = sparsity_of(torch.zeros(5, 3))
    assert (dead.active, dead.distinct_active, dead.dead, dead.rank) == (0, 0, 3, 0)
    positive = sparsity_of(1 + relu_features(50, 4))
    assert (positive.active, positive.distinct_active, positive.duplicates) == (1, 1, 0)
    # the same positive number everywhere correlates with nothing
    # (7 of them, since their mean in float64 is not quite the number, and its rounding correlates)
    numbers = torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    constant = sparsity_of(numbers.expand(7, 6))
    assert (constant.active, constant.distinct_active, constant.duplicates) == (1, 1, 0)
    assert constant.rank == 1
    opposite = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert sparsity_of(opposite).duplicates == 1  # |corr|, not corr


def test_the_scan_drops_the_earlier_of_two() -> None:
    # 0 ~ 1 ~ 2, but not 0 ~ 2: whichever comes first goes
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    a, c = t, (t - 0.45).clamp(min=0)
    b = a + 2 * c
    alike = torch.corrcoef(torch.stack([a, b, c])).abs() > 0.95
    assert alike.tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    found = sparsity_of(torch.stack([a, b, c], 1))
    assert found.duplicates == 2
    assert found.distinct_active == int((c > 0).sum()) / 303
    other = sparsity_of(torch.stack([b, a, c], 1))
    assert other.duplicates == 1


def test_a_choice_of_neurons_is_by_the_seed() -> None:
    features = relu_features(20, 300)
    one, same, other = (sparsity_of(features, limit=50, seed=s) for s in (1, 1, 2))
    assert (one.neurons, one.examined, len(one.singular_values)) == (300, 50, 50)
    assert torch.equal(one.singular_values, same.singular_values)
    assert not torch.equal(one.singular_values, other.singular_values)
    assert one.active == other.active == float((features > 0).double().mean())
    # divided by the neurons of the choice, so that it estimates the share of all
    assert abs(one.distinct_active - one.active) < 0.1


def test_rank_and_singular_values_of_features() -> None:
    features = relu_features(40, 3) @ relu_features(3, 9, seed=1)
    found = sparsity_of(features)
    assert found.rank == 3
    expected = torch.linalg.svdvals(features)
    torch.testing.assert_close(found.singular_values, expected, atol=1e-6, rtol=1e-9)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_small_spread_about_a_large_mean_is_seen() -> None:
    features = 1e6 + torch.randn(3000, 4, dtype=torch.float64)
    assert sparsity_of(features).duplicates == 0


class Net(nn.Module):
    """With all that an analysis might disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.conv(x)))
        out: Tensor = self.head(self.drop(h).flatten(1))
        h.data.mul_(-1)  # what was seen must not be changed by what comes next
        return out


def images(n: int = 30) -> TensorDataset:
    return TensorDataset(torch.randn(n, 1, 6, 6), torch.zeros(n))


def test_features_of_a_model_in_batches() -> None:
    model, data = Net(), images()
    x, y = data.tensors
    model.eval()
    with torch.no_grad():
        expected = model.norm(model.conv(x)).relu()
    model.train()
    whole = sparsity_of(expected)
    assert 0 < whole.active < 1
    seen: list[tuple[int, int]] = []
    for form in ((x, y), DataLoader(data, batch_size=7), [(x[:11], y[:11]), (x[11:], y[11:])]):
        found = feature_sparsity(
            model, form, ["relu", "head"], chunk_size=8, progress=lambda *a: seen.append(a)
        )
        assert list(found) == ["relu", "head"]
        relu = found["relu"]
        assert (relu.samples, relu.neurons) == (30, 96)
        assert (relu.active, relu.dead, relu.duplicates) == (
            whole.active, whole.dead, whole.duplicates,
        )  # fmt: skip
        torch.testing.assert_close(
            relu.singular_values, whole.singular_values, atol=1e-4, rtol=1e-5
        )
        assert found["head"].neurons == 3
    assert seen[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def untouched(model: nn.Module, data: DataLoader) -> tuple[dict[str, Tensor], list[object]]:
    """Copies of all tensors, random streams of torch among them, and the rest.

    Python's own stream is not: the checks of annotations in these tests draw from it.
    """
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    tensors |= {f"{n}.grad": p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    tensors |= {"rng": torch.get_rng_state(), "loader": data.generator.get_state()}
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    return tensors, [modes, flags, hooks]


@pytest.mark.parametrize("analysis", ["features", "jacobian", "error"])
def test_the_model_is_left_as_it_was(analysis: str) -> None:
    model = Net()
    data = DataLoader(images(), 7, shuffle=True, generator=torch.Generator())
    model.conv.bias.requires_grad_(False)
    model(images().tensors[0]).sum().backward()
    model.drop.eval()
    tensors, rest = untouched(model, data)
    if analysis == "features":
        feature_sparsity(model, data, "relu")
    elif analysis == "jacobian":
        with torch.no_grad():
            jacobian_rank(model, data, points=9)
    else:
        with pytest.raises(UserError):
            feature_sparsity(model, [(torch.full((2, 1, 6, 6), math.nan), 0)], "relu")
    after, rest_after = untouched(model, data)
    torch.testing.assert_close(after, tensors, rtol=0.0, atol=0.0)
    assert rest_after == rest


class Oddity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused, self.pair, self.same = nn.ReLU(), nn.LSTM(2, 2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        self.pair(x)
        self.same(x)
        return self.same(-x)


def test_the_last_output_of_a_module_counts() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert feature_sparsity(Oddity(), (x, x), "same")["same"].active == 0.25


def test_mistakes() -> None:
    x = torch.ones(2, 2)
    for modules, message in (
        ("nope", "it has no 'nope'"),
        ([], "at least 1 module"),
        ("unused", "'unused' to run"),
        ("pair", "output of 'pair' to be a tensor"),
    ):
        with pytest.raises(UserError, match=message):
            feature_sparsity(Oddity(), (x, x), modules)
    widths = [(torch.ones(2, 3), x), (torch.ones(2, 4), x)]
    with pytest.raises(UserError, match="expected 3 neurons in every batch at '0', got 4"):
        feature_sparsity(nn.Sequential(nn.ReLU()), widths, "0")
    for arguments, message in (
        ({"limit": 0}, "limit >= 1"),
        ({"threshold": 1.0}, "0 < threshold < 1"),
        ({"rtol": 1e-9}, "1e-07 <= rtol < 1"),
    ):
        with pytest.raises(UserError, match=message):
            sparsity_of(x, **arguments)
    with pytest.raises(UserError, match="to be finite"):
        sparsity_of(torch.tensor([[math.inf]]))
    with pytest.raises(UserError, match="to be real"):
        sparsity_of(x.to(torch.complex64))
    with pytest.raises(UserError, match="a tensor with samples"):
        sparsity_of(torch.ones(0, 2))
