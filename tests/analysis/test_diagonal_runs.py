"""Runs of diagonal linear networks: records, seeds, forms of data, and mistakes."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.utils.data import DataLoader, TensorDataset

from gradwise.analysis.implicit_bias import (
    diagonal_flow,
    effective_alpha,
    hyperbolic_entropy,
    hyperbolic_entropy_gradient,
    kkt_residual,
    planted_problem,
    train_diagonal,
)
from gradwise.errors import UserError

SMALL = planted_problem(n=4, d=7, r=2, seed=3)


def test_records_are_points_of_the_run_and_longer_runs_begin_like_shorter_ones() -> None:
    kwargs = {"alpha": 0.3, "gamma": 0.05, "seeds": [1, 2]}
    long = train_diagonal(SMALL.data, steps=25, record_every=10, **kwargs)
    assert long.steps == (0, 10, 20, 25)
    assert long.betas.shape == (4, 2, 7)
    assert long.losses.shape == (4, 2)
    assert bool((long.betas[0] == 0).all())
    short = train_diagonal(SMALL.data, steps=20, **kwargs)
    assert short.steps == (0, 20)
    assert torch.equal(short.beta, long.betas[2])
    flow = diagonal_flow(SMALL.data, dt=0.1, steps=25, record_every=5, **kwargs)
    assert flow.steps == (0, 5, 10, 15, 20, 25)
    assert torch.equal(diagonal_flow(SMALL.data, dt=0.1, steps=15, **kwargs).beta, flow.betas[3])


def test_a_run_depends_on_its_seed_alone() -> None:
    several = train_diagonal(SMALL.data, alpha=0.3, gamma=0.05, steps=50, seeds=[4, 7, 4])
    alone = train_diagonal(SMALL.data, alpha=0.3, gamma=0.05, steps=50, seeds=[7])
    torch.testing.assert_close(several.beta[1:2], alone.beta, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(several.beta[0], several.beta[2], rtol=1e-9, atol=1e-12)
    assert not several.beta[0].allclose(several.beta[1], rtol=1e-3)


def test_batches_are_taken_together_and_random_streams_left_alone() -> None:
    state = torch.get_rng_state()
    whole = train_diagonal(SMALL.data, alpha=0.3, gamma=0.05, steps=20)
    diagonal_flow(SMALL.data, alpha=0.3, gamma=0.05, dt=0.05, steps=20)
    planted_problem(3, 4, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    loader = DataLoader(TensorDataset(*SMALL.data), batch_size=3)
    parts = train_diagonal(loader, alpha=0.3, gamma=0.05, steps=20)
    assert torch.equal(whole.beta, parts.beta)
    assert whole.beta.dtype == torch.float64


def test_progress_and_plain_values() -> None:
    calls: list[tuple[int, int]] = []
    runs = train_diagonal(
        SMALL.data, alpha=0.3, gamma=0.01, steps=2500, progress=lambda *a: calls.append(a)
    )
    assert calls == [(1024, 2500), (2048, 2500), (2500, 2500)]
    plain = json.loads(json.dumps(runs.to_dict()))
    assert plain["beta"] == runs.beta.tolist()
    assert plain["steps"] == [0, 2500]
    assert set(plain) >= {"predicted_alpha", "effective_alpha", "loss_integral", "losses"}
    assert json.loads(json.dumps(SMALL.to_dict()))["solution"] == SMALL.solution.tolist()


@given(st.integers(1, 6), st.integers(1, 9), st.data())
def test_planted_problems(n: int, d: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, d))
    problem = planted_problem(n, d, r, seed=data.draw(st.integers(0, 99)))
    assert problem.solution.count_nonzero() == r
    assert problem.solution.norm().item() == pytest.approx(1)
    torch.testing.assert_close(problem.inputs @ problem.solution, problem.targets)


def test_mistakes_are_told() -> None:
    x, y = SMALL.data
    ok = {"alpha": 0.1, "gamma": 0.05, "steps": 3}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"alpha": 0.0}, "0 < alpha"),
        ({"alpha": torch.tensor([0.1, -0.1])}, "0 < alpha"),
        ({"alpha": torch.ones(3)}, "broadcast"),
        ({"alpha": torch.ones(2, 7)}, "broadcast"),
        ({"gamma": 0.0}, "0 < gamma"),
        ({"gamma": math.nan}, "gamma to be finite"),
        ({"gamma": torch.ones(3)}, "gamma to be finite, one number or 1"),
        ({"steps": -1}, "steps >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"seeds": []}, "at least one seed"),
        ({"record_every": 0}, "record_every >= 1"),
        ({"gamma": 50.0, "steps": 200}, "converge"),
        ({"data": (x, y[:, None])}, r"\(n, d\)"),
        ({"data": (x, y[:2])}, "as many targets"),
        ({"data": (x, y * math.inf)}, "finite inputs"),
        ({"data": (x.to(torch.complex128), y)}, "real numbers"),
        ({"data": iter([(x, y)])}, "iterated again"),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            train_diagonal(**{"data": SMALL.data, **ok, **change})  # type: ignore[arg-type]
    for change, message in [({"dt": 0.0}, "0 < dt"), ({"gamma": -1.0}, "0 <= gamma")]:
        with pytest.raises(UserError, match=message):
            diagonal_flow(**{"data": SMALL.data, **ok, "dt": 0.1, **change})  # type: ignore[arg-type]
    for n, d, r in [(0, 3, 1), (3, 0, 1), (3, 3, 0), (3, 3, 4)]:
        with pytest.raises(UserError, match=r"expected .*got"):
            planted_problem(n, d, r, seed=0)
    beta = torch.ones(7)
    for call in (
        lambda: hyperbolic_entropy(torch.tensor(1.0), 0.1),
        lambda: hyperbolic_entropy(beta, -0.1),
        lambda: hyperbolic_entropy_gradient(beta * math.nan, 0.1),
        lambda: kkt_residual(x, torch.ones(3), 0.1),
        lambda: kkt_residual(y, beta, 0.1),
        lambda: kkt_residual(x * math.nan, beta, 0.1),
        lambda: effective_alpha(x, 0.1, -1.0, 1.0),
        lambda: effective_alpha(x, 0.1, 1.0, math.nan),
    ):
        with pytest.raises(UserError, match=r"^expected .*"):
            call()
