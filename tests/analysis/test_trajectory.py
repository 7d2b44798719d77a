"""Hallmarks of trajectories against their oracle and closed forms."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from analysis.trajectories import ANGLE, check, drift, flat, network, report_of, walk
from gradwise.analysis.trajectory import TrajectoryRecorder
from reference import trajectory as oracle

# --- equations ---


def test_a_walk_is_as_the_oracle_says() -> None:
    points = walk(12)
    points[5] = points[4]  # a step of 0
    check(report_of(points), points.numpy())


def test_a_model_and_each_of_its_layers() -> None:
    model = network()
    recorder = TrajectoryRecorder(model)
    points: dict[str, list[np.ndarray]] = {"": [], "0": [], "1": [], "3": []}
    for _ in range(6):
        recorder.add(model)
        for prefix, rows in points.items():
            rows.append(flat(model, prefix))
        drift(model)
    assert recorder.layers == ("0", "1", "3")
    check(recorder.report(), np.stack(points[""]))
    for report in recorder.layer_reports():
        check(report, np.stack(points[str(report.layer)]))
    check(recorder.report("3"), np.stack(points["3"]))


def test_layers_add_up_to_the_model() -> None:
    model = network()
    recorder = TrajectoryRecorder(model, layers=lambda name: name)
    assert recorder.layers == tuple(n for n, _ in model.named_parameters())
    for _ in range(4):
        recorder.add(model)
        drift(model)
    whole, parts = recorder.report(), list(recorder.layer_reports())
    for name in ("norms", "distances", "step_norms"):
        squares = sum(getattr(part, name) ** 2 for part in parts)
        torch.testing.assert_close(squares, getattr(whole, name) ** 2)


@given(st.integers(2, 9), st.integers(0, 2**31), st.integers(0, 2**31))
def test_what_cosines_are(n: int, seed: int, other: int) -> None:
    points = walk(n, seed=seed)
    report = report_of(points)
    cosines = report.map.cosines
    assert torch.equal(cosines, cosines.T)
    assert bool((cosines.diagonal() == 1).all())
    assert bool((cosines.abs() <= 1).all())
    assert float(torch.linalg.eigvalsh(cosines).min()) >= -1e-12
    units = points / points.norm(dim=1, keepdim=True)
    assert report.map.mds == pytest.approx(float(units.mean(0).norm()) ** 2, abs=1e-12)
    assert 0 <= report.map.mds <= 1
    generator = torch.Generator().manual_seed(other)
    # any checkpoint may be rescaled
    scales = torch.empty(n, 1, dtype=torch.float64).uniform_(-5, 5, generator=generator).exp()
    torch.testing.assert_close(
        report_of(points * scales).map.cosines, cosines, atol=1e-12, rtol=0.0
    )
    # and all turned together, which also leaves angles and lengths alone
    square = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    turned = report_of(points @ torch.linalg.qr(square)[0])
    torch.testing.assert_close(turned.map.cosines, cosines, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(
        turned.relative_map.cosines, report.relative_map.cosines, atol=1e-11, rtol=0.0
    )
    torch.testing.assert_close(turned.turns.values, report.turns.values, atol=ANGLE, rtol=0.0)
    assert turned.path_length == pytest.approx(report.path_length)
    assert report.efficiency is not None
    assert 0 <= report.efficiency <= 1


def test_a_ray_from_the_origin() -> None:
    report = report_of(torch.arange(1, 9, dtype=torch.float64)[:, None] * walk(1))
    assert report.map.mds == pytest.approx(1)
    assert report.map.mds_off_diagonal == pytest.approx(1)
    assert report.apex_origin.total == pytest.approx(0, abs=ANGLE)
    assert report.efficiency == pytest.approx(1)


def test_orthogonal_checkpoints() -> None:
    report = report_of(torch.diag(torch.arange(1.0, 6.0)))
    assert report.map.mds == pytest.approx(1 / 5)
    assert report.map.mds_off_diagonal == 0
    assert report.apex_origin.mean == pytest.approx(math.pi / 2)


def test_a_straight_line_off_the_origin() -> None:
    start, way = walk(2).unbind()
    report = report_of(start + torch.tensor([[0.0], [0.1], [0.5], [3.0]]).double() * way)
    assert report.turns.values.tolist() == pytest.approx([0, 0], abs=ANGLE)
    assert report.efficiency == pytest.approx(1)
    assert report.relative_map.indices == (1, 2, 3)
    assert report.relative_map.mds == pytest.approx(1)
    assert report.apex_start.total == pytest.approx(0, abs=ANGLE)
    assert report.map.mds < 0.99


def test_an_oscillation_of_period_two() -> None:
    a, b = walk(2).unbind()
    report = report_of(torch.stack([a, b, a, b, a]))
    assert report.turns.values.tolist() == pytest.approx([math.pi] * 3, abs=ANGLE)
    assert report.turns.total == pytest.approx(3 * math.pi, abs=3 * ANGLE)
    assert report.displacement == report.efficiency == 0
    assert report.relative_map.indices == (1, 3)
    assert bool(report.apex_start.values.isnan().all())
    assert report.apex_start.mean is None


def test_a_start_at_zero() -> None:
    points = torch.cat([torch.zeros(1, 7, dtype=torch.float64), walk(4)])
    report = report_of(points)
    check(report, points.numpy())
    assert report.map.indices == (1, 2, 3, 4)
    torch.testing.assert_close(report.map.cosines, report.relative_map.cosines)
    assert math.isnan(report.apex_origin.values[0])
    assert report.norms[0] == 0


def test_few_checkpoints_and_none_that_move() -> None:
    one = report_of(walk(1))
    assert (one.map.mds, one.map.mds_off_diagonal, one.efficiency) == (1.0, None, None)
    assert (one.relative_map.mds, len(one.turns.values), one.path_length) == (None, 0, 0.0)
    still = report_of(torch.ones(3, 2))
    assert (still.efficiency, still.turns.mean, still.apex_origin.total) == (None, None, 0.0)
    nothing = report_of(torch.zeros(3, 2))
    assert (nothing.map.mds, nothing.map.indices) == (None, ())


def test_tiny_moves_of_large_weights_are_not_lost() -> None:
    """Differences are taken before they are multiplied, not after."""
    moves = walk(6) * 1e-9
    report = report_of(moves + 2.0**20)
    exact = (moves + 2.0**20) - (moves[0] + 2.0**20)
    _, cosines = oracle.cosine_map(exact.numpy())
    torch.testing.assert_close(report.relative_map.cosines, torch.from_numpy(cosines))
    np.testing.assert_allclose(report.turns.values, oracle.turns(exact.numpy()), atol=ANGLE)
    assert report.displacement == pytest.approx(float(exact[-1].norm()))
    # 1 - cos is below float64 here, the angles at the origin are not
    assert report.map.mds == 1.0
    assert 0 < report.apex_origin.total < 1e-12


def test_half_precision_is_summed_in_float64() -> None:
    points = (100 + walk(4, p=3000)).bfloat16()
    report = report_of(points)
    check(report, points.double().numpy())


def test_a_report_is_plain_json() -> None:
    plain = report_of(torch.tensor([[0.0], [0.0], [1.0]])).to_dict()
    found = json.loads(json.dumps(plain, allow_nan=False))
    assert found["turns"] == {"values": [None], "mean": None, "total": 0.0}
    assert found["map"]["indices"] == [2]
    assert found["steps"] == [0.0, 1.0, 2.0]
