"""What the tests of trajectories share: walks, a network, and a check against the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwise.analysis.trajectory import TrajectoryRecorder, TrajectoryReport
from reference import trajectory as oracle

ANGLE = 1e-7  # radians: what inner products resolve


def walk(n: int, p: int = 7, seed: int = 0) -> Tensor:
    """[n, p] a random walk in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, p, generator=generator, dtype=torch.float64).cumsum(0)


def report_of(points: Tensor, **kwargs: object) -> TrajectoryReport:
    recorder = TrajectoryRecorder({"w": points[0]}, **kwargs)
    for point in points:
        recorder.add({"w": point})
    return recorder.report()


def check(report: TrajectoryReport, points: np.ndarray) -> None:
    """Hold every number against the oracle."""
    start = points - points[0]
    for found, seen in ((report.map, points), (report.relative_map, start)):
        kept, cosines = oracle.cosine_map(seen)
        assert found.indices == tuple(kept)
        np.testing.assert_allclose(found.cosines.numpy(), cosines, atol=1e-12)
        assert found.mds == pytest.approx(oracle.mds(cosines), abs=1e-12)
        assert found.mds_off_diagonal == pytest.approx(oracle.mds_off_diagonal(cosines), abs=1e-12)
    for angles, expected in (
        (report.turns, oracle.turns(points)),
        (report.apex_origin, oracle.apexes(points, np.zeros_like(points[0]))),
        (report.apex_start, oracle.apexes(points[1:], points[0])),
    ):
        np.testing.assert_allclose(angles.values.numpy(), expected, atol=ANGLE)
        defined = [x for x in expected if not math.isnan(x)]
        assert angles.total == pytest.approx(sum(defined), abs=1e-6)
        assert angles.mean == pytest.approx(sum(defined) / len(defined), abs=1e-6)
    norms = np.linalg.norm
    np.testing.assert_allclose(report.norms.numpy(), norms(points, axis=1), rtol=1e-12)
    np.testing.assert_allclose(report.distances.numpy(), norms(start, axis=1), rtol=1e-12)
    steps = norms(np.diff(points, axis=0), axis=1)
    np.testing.assert_allclose(report.step_norms.numpy(), steps, rtol=1e-12)
    assert report.path_length == pytest.approx(oracle.path_length(points), rel=1e-12)
    assert report.displacement == pytest.approx(float(norms(start[-1])), rel=1e-12)
    assert report.efficiency == pytest.approx(report.displacement / report.path_length)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def drift(model: nn.Module) -> None:
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.1)


def flat(model: nn.Module, prefix: str = "") -> np.ndarray:
    named = model.named_parameters()
    parts = [p.detach().double().flatten() for n, p in named if n.startswith(prefix)]
    return torch.cat(parts).numpy()
