"""At a point that does not move, the noise scale is known: the estimate has to agree with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradwise.watch.noise import NoiseScale
from gradwise.watch.probes.noise import NoiseProbe
from noise.problems import BATCH, Problem, classifier, regression
from reference import noise as oracle


def samples(problem: Problem, passes: int, steps: int, seed: int) -> list[tuple[float, ...]]:
    model = problem.model()
    params = list(model.parameters())
    probe = NoiseProbe(params, every=1)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps + 1):
        model.zero_grad()
        for _ in range(passes):
            (problem.loss(model, generator) / passes).backward()
        torch.nn.utils.clip_grad_norm_(params, 1e-3)
        probe.gradients([p.grad for p in params])
        if sample := probe.end():
            found.append(tuple(float(value) for value in sample.values()))
    assert len(found) == steps
    # The loss was divided by the number of passes; the unit of the norms is its own affair.
    return [(small * passes**2, big * passes**2, ratio) for small, big, ratio in found]


def check(found: list[tuple[float, ...]], truth: oracle.Noise) -> None:
    """Both estimates and their ratio, within what chance allows."""
    noises = np.array([oracle.solve(s, b, BATCH, BATCH * ratio) for s, b, ratio in found])
    for values, exact in zip(noises.T, truth, strict=True):
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - exact) < 3.5 * error
    scale = NoiseScale(BATCH, decay=0.999)
    for sample in found:
        scale.add(*sample)
    assert scale.value is not None
    assert scale.interval is not None
    low, high = scale.interval
    width = high - low  # twice the interval of 95 % and no more than 30 % off
    assert low - width / 2 < truth.scale < high + width / 2
    assert scale.value == pytest.approx(truth.scale, rel=0.3)
    assert width < 0.6 * truth.scale


@pytest.mark.parametrize("make", [regression, classifier])
@pytest.mark.parametrize("seed", [1, 2])
def test_accumulation(make: object, seed: int) -> None:
    assert callable(make)
    problem = make()
    check(samples(problem, 8, 300, seed), problem.noise())
