"""DistributedDataParallel in two processes: local gradients against averaged ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from gradwise.watch.probes import cycle
from gradwise.watch.probes.noise import APART, MIXED
from noise import ranks
from noise.problems import regression
from noise.test_noise_truth import check

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()),
        reason="this torch has no gloo",
    ),
]

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.work, (str(folder),), nprocs=ranks.WORLD)
    paths = [Path(folder) / f"rank-{rank}.pt" for rank in range(ranks.WORLD)]
    return [torch.load(path, weights_only=False) for path in paths]


def true(micro: list[list[np.ndarray]], rank: int, passes: int, wrapped: bool) -> tuple[float, ...]:
    """In the unit of a loss that was scaled by 1024 and divided by the number of passes."""
    unit = (1024 / passes) ** 2
    seen = [g for some in micro for g in some] if wrapped else micro[rank]
    small = np.mean([(g**2).sum() for g in micro[rank]])
    big = (np.mean(seen, axis=0) ** 2).sum()
    return float(small * unit), float(big * unit), float(len(seen))


WORKING = [
    name
    for name, options in ranks.SCENARIOS.items()
    if not {"between", "part", "pieces"} & set(options) and name != "not wrapped, one pass"
]


@pytest.mark.parametrize("rank", range(ranks.WORLD))
@pytest.mark.parametrize("name", WORKING)
def test_each_process_measures_what_it_says(results: Results, name: str, rank: int) -> None:
    options = ranks.SCENARIOS[name]
    rows = results[rank][name]
    assert [row["backwards"] for row in rows] == [options["passes"]] * ranks.STEPS
    assert rows[0]["found"] == {}
    for row in rows[1:]:
        truth = true(row["micro"], rank, options["passes"], options.get("wrap", True))
        assert tuple(row["found"].values()) == pytest.approx(truth, rel=1e-9)
        assert row["reason"] is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zeroed between", cycle.CHANGED),
        ("zeroed between in views", cycle.CHANGED),
        ("not wrapped, one pass", APART),
        ("wrapped in part", MIXED),
        ("recomputed in pieces", cycle.PIECES),
    ],
)
def test_what_is_not_measured_says_why(results: Results, name: str, reason: str) -> None:
    for rank in range(ranks.WORLD):
        rows = results[rank][name]
        assert all(row["found"] == {} for row in rows)
        assert rows[-1]["reason"] == reason


def test_training_is_the_same_everywhere(results: Results) -> None:
    for name in WORKING:
        if ranks.SCENARIOS[name].get("wrap", True):
            weights = [results[rank][name][-1]["weights"] for rank in range(ranks.WORLD)]
            np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("name", ["order", "order in views"])
def test_hooks_see_local_gradients(results: Results, name: str) -> None:
    # What the probe rests on: neither hook of a parameter sees the reduction.
    seen = [results[rank][name] for rank in range(ranks.WORLD)]
    for one in seen:
        assert one["before"] == pytest.approx(one["local"])
        assert one["after"] == pytest.approx(one["local"])
        assert one["end"] != pytest.approx(one["local"])
    assert seen[0]["end"] == pytest.approx(seen[1]["end"])


@pytest.mark.parametrize("name", ["truth, 1 pass", "truth, 2 passes"])
def test_the_truth(results: Results, name: str) -> None:
    for rank in range(ranks.WORLD):
        check(results[rank][name], regression().noise())
