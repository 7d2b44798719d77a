"""The channel: fading held to its moments, (8.2) to its algebra, rounds to their seed."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from scipy import stats
from torch import Tensor

from gradwise.errors import UserError
from gradwise.federated import Channel, alpha_stable

DRAWS = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- fading ---


@pytest.mark.parametrize("mean", [1.0, 0.5])
def test_rayleigh_has_the_asked_mean(mean: float) -> None:
    h = Channel("rayleigh", mean=mean, seed=0).gains(DRAWS).double()
    variance = (4 / math.pi - 1) * mean**2
    assert abs(float(h.mean()) - mean) < 5 * math.sqrt(variance / DRAWS)
    assert float(h.var()) == pytest.approx(variance, rel=0.02)
    assert float(h.min()) >= 0
    scale = mean * math.sqrt(2 / math.pi)
    assert stats.kstest(h.numpy(), "rayleigh", args=(0, scale)).pvalue > 1e-3


def test_no_fading_and_fading_of_ones_own() -> None:
    assert Channel("none", mean=0.5).gains(3).tolist() == [0.5, 0.5, 0.5]

    def uniform(n: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(n, generator=generator)

    one, two = (Channel(uniform, mean=m, seed=5).gains(4) for m in (1.0, 3.0))
    torch.testing.assert_close(3 * one, two)
    assert len(set(one.tolist())) == 4


def test_one_gain_a_client_and_round() -> None:
    """Rank 1 in the clients: the same factor for all entries of all tensors of a client."""
    channel = Channel("rayleigh", scale=0, seed=0)
    basis = [[torch.eye(3)[n], 10 * torch.eye(3)[n]] for n in range(3)]
    small, large = channel(basis)
    again, _ = channel(basis)
    torch.testing.assert_close(10 * small, large)
    h = Channel("rayleigh", seed=0).gains(3)
    torch.testing.assert_close(small, h / 3)
    assert not torch.equal(small, again)


# --- (8.2) ---


def test_equals_the_equation() -> None:
    grads = [torch.randn(3, 4, generator=seeded(n), dtype=torch.float64) for n in range(5)]
    received = Channel("rayleigh", mean=0.8, alpha=1.3, scale=0.2, seed=4)(grads)
    oracle = Channel("rayleigh", mean=0.8, seed=4)
    h = oracle.gains(5).double()
    xi = alpha_stable((3, 4), 1.3, 0.2, generator=oracle.generator, dtype=torch.float64)
    wanted = sum(float(a) * g for a, g in zip(h, grads, strict=True)) / 5 + xi
    torch.testing.assert_close(received, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_one_client_without_noise_is_the_identity(dtype: torch.dtype) -> None:
    grad = torch.randn(4, 3, dtype=dtype)
    assert torch.equal(Channel("none", scale=0)([grad]), grad)


def spread(x: Tensor) -> float:
    """Interquartile range, which heavy tails leave finite."""
    return float(x.quantile(0.75) - x.quantile(0.25))


def test_noise_floor_does_not_depend_on_the_number_of_clients() -> None:
    zeros = torch.zeros(DRAWS // 4)
    floors = [
        spread(Channel("rayleigh", alpha=1.5, scale=0.2, seed=n)([zeros] * n)) for n in (1, 4, 64)
    ]
    wanted = 2 * float(stats.levy_stable.ppf(0.75, 1.5, 0.0, scale=0.2))
    assert floors == pytest.approx([wanted] * 3, rel=0.05)


def test_fading_variance_falls_as_1_over_the_number_of_clients() -> None:
    channel = Channel("rayleigh", scale=0, seed=0)
    one = torch.ones(())
    for clients in (1, 4, 16):
        rounds = torch.stack([channel([one] * clients) for _ in range(4000)]).double()
        assert float(rounds.mean()) == pytest.approx(1.0, abs=0.05)
        assert float(rounds.var()) * clients == pytest.approx(4 / math.pi - 1, rel=0.15)


@given(st.integers(1, 5), st.floats(-3, 3), st.integers(0, 2**31))
def test_linear_in_the_gradients(clients: int, factor: float, seed: int) -> None:
    """For the same draws, received(k g) - xi = k (received(g) - xi)."""
    grads = [torch.randn(4, generator=seeded(n), dtype=torch.float64) for n in range(clients)]

    def play(k: float) -> Tensor:
        return Channel(alpha=1.5, scale=0.1, seed=seed)([k * g for g in grads])

    noise = play(0.0)
    torch.testing.assert_close(play(factor) - noise, factor * (play(1.0) - noise))


# --- forms ---


def test_all_forms_get_the_same() -> None:
    a, b = torch.randn(2, 3), torch.randn(4)

    def play(client: Any) -> Any:
        return Channel(seed=0)([client, client])

    as_list, as_tuple, as_dict = play([a, b]), play((a, b)), play({"a": a, "b": b})
    assert isinstance(as_list, list)
    assert isinstance(as_tuple, tuple)
    assert list(as_dict) == ["a", "b"]
    for x, y, z in zip(as_list, as_tuple, as_dict.values(), strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x, z)
    assert torch.equal(play(a), play([a])[0])


def test_dictionaries_are_matched_by_name() -> None:
    one, two = {"a": torch.ones(1), "b": torch.zeros(2)}, {"b": torch.ones(2), "a": torch.ones(1)}
    received = Channel("none", scale=0)([one, two])
    assert {k: v.tolist() for k, v in received.items()} == {"a": [1.0], "b": [0.5, 0.5]}


def test_silent_clients_send_nothing_but_count() -> None:
    received = Channel("none", scale=0)([[torch.ones(2), None], [None, None]])
    assert received[1] is None
    assert received[0].tolist() == [0.5, 0.5]


def test_inputs_stay_and_results_carry_no_graph() -> None:
    grad = torch.ones(3, requires_grad=True)
    received = Channel(seed=0)([grad * 1, grad * 1])
    assert not received.requires_grad
    kept = torch.ones(3)
    Channel("none", seed=0)([kept])
    assert kept.tolist() == [1.0, 1.0, 1.0]


def test_narrow_dtypes_are_summed_wide_and_saturate() -> None:
    many = [torch.full((), 1.0, dtype=torch.float16)] + [
        torch.full((), 2.0**-11, dtype=torch.float16)
    ] * 2048
    assert float(Channel("none", scale=0)(many)) * len(many) == pytest.approx(2.0, rel=1e-3)
    loud = Channel("none", alpha=1.1, scale=1e4, seed=0)([torch.zeros(1000, dtype=torch.float16)])
    assert float(loud.abs().max()) == torch.finfo(torch.float16).max
    gone = torch.tensor([math.inf, math.nan, 0.0])
    received = Channel("none", seed=0)([gone])
    assert received.isfinite().tolist() == [False, False, True]


def test_complex_gradients_get_interference_in_both_parts() -> None:
    received = Channel("none", alpha=2.0, scale=1.0, seed=0)(
        [torch.zeros(DRAWS, dtype=torch.cfloat)]
    )
    for part in (received.real, received.imag):
        assert float(part.var()) == pytest.approx(2.0, rel=0.02)
    mixed = float((received.real * received.imag).mean())
    assert abs(mixed) < 5 * 2 / math.sqrt(DRAWS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_on_an_accelerator(where: str) -> None:
    def play() -> Tensor:
        generator = torch.Generator(where).manual_seed(0)
        return Channel(alpha=1.5, scale=0.2, generator=generator)([torch.zeros(50_000).cuda()] * 2)

    received = play()
    assert received.device.type == "cuda"
    assert torch.equal(received, play())
    wanted = 2 * float(stats.levy_stable.ppf(0.75, 1.5, 0.0, scale=0.2))
    assert spread(received) == pytest.approx(wanted, rel=0.05)


# --- determinism ---


def test_seeds_generators_and_torchs_own_seed() -> None:
    grads = [torch.randn(4), torch.randn(4)]
    assert torch.equal(Channel(seed=1)(grads), Channel(generator=seeded(1))(grads))
    assert not torch.equal(Channel(seed=1)(grads), Channel(seed=2)(grads))
    assert not torch.equal(Channel()(grads), Channel()(grads))
    torch.manual_seed(0)
    first = Channel()(grads)
    torch.manual_seed(0)
    assert torch.equal(first, Channel()(grads))


def test_resuming() -> None:
    grads = [torch.randn(4), torch.randn(4)]
    channel = Channel(seed=1)
    channel(grads)
    file = io.BytesIO()
    torch.save(channel.state_dict(), file)
    wanted = [channel(grads) for _ in range(3)]
    file.seek(0)
    resumed = Channel(seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for one in wanted:
        assert torch.equal(one, resumed(grads))


def test_copies_go_on_alike_and_apart() -> None:
    channel = Channel(seed=1)
    channel([torch.ones(2)])
    twins = copy.deepcopy(channel), pickle.loads(pickle.dumps(channel))
    wanted = channel([torch.ones(2)])
    for twin in twins:
        assert torch.equal(twin([torch.ones(2)]), wanted)


def test_saved_states_are_copies() -> None:
    channel = Channel(seed=1)
    saved = channel.state_dict()
    kept = copy.deepcopy(saved)
    channel([torch.ones(2)])
    assert torch.equal(saved["generator"], kept["generator"])


def test_a_refused_call_draws_nothing() -> None:
    channel = Channel(seed=1)
    with pytest.raises(UserError):
        channel([torch.ones(2), torch.ones(3)])
    assert torch.equal(channel([torch.ones(2)]), Channel(seed=1)([torch.ones(2)]))
