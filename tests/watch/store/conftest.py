"""Runs whose every value follows from its step, so that any part of one can be checked."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradwise.watch.store import Run, RunWriter, housekeeping, merge

LAYERS = ("conv1.weight", "conv1.bias", "head.weight")
METRICS = ("mean", "norm")


def layer_values(steps: npt.NDArray[Any], metric: int, width: int) -> npt.NDArray[np.float32]:
    """[K, width] values that float32 holds exactly."""
    layer = np.arange(width)
    mixed = (np.asarray(steps)[:, None] * 131 + layer * 17 + metric * 7) % 1009
    return (mixed / 8 - 40).astype(np.float32)


def scalar_values(steps: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[K] values."""
    return (np.asarray(steps) * 37 % 1013) / 3


class Maker:
    """Writes and checks runs of the known values."""

    layers = LAYERS
    metrics = METRICS

    def writer(self, out: Path, **options: Any) -> RunWriter:
        settings = {"layer_metrics": self.metrics, "step_metrics": ("loss",), "flush_every": 0.0}
        return RunWriter(out, self.layers, **(settings | options))

    def append(self, writer: RunWriter, steps: Sequence[int] | npt.NDArray[Any]) -> None:
        numbers = np.asarray(steps, np.int64)
        columns = {
            name: layer_values(numbers, i, len(self.layers)) for i, name in enumerate(self.metrics)
        }
        writer.append(numbers, columns, {"loss": scalar_values(numbers)})

    def check(self, run: Run, steps: Sequence[int] | npt.NDArray[Any]) -> None:
        """Every way of reading gives exactly these steps, and their values."""
        numbers = np.asarray(steps, np.int64)
        assert run.last_step == (int(numbers[-1]) if len(numbers) else None)
        for i, name in enumerate(self.metrics):
            found, values = run.metric(name)
            np.testing.assert_array_equal(found, numbers)
            np.testing.assert_array_equal(values, layer_values(numbers, i, len(self.layers)))
        table = run.steps
        np.testing.assert_array_equal(table["step"].to_numpy(), numbers)
        np.testing.assert_array_equal(table["loss"].to_numpy(), scalar_values(numbers))
        one = run.layer(self.layers[1])
        np.testing.assert_array_equal(one["step"].to_numpy(), numbers)
        expected = layer_values(numbers, 1, len(self.layers))[:, 1]
        np.testing.assert_array_equal(one[self.metrics[1]].to_numpy(), expected)
        self.check_downsampled(run, numbers)

    def check_downsampled(self, run: Run, numbers: npt.NDArray[Any], points: int = 7) -> None:
        """The bins cover all steps once, and hold what a plain loop finds."""
        bins = run.downsampled(self.metrics[0], points)
        assert len(bins.first_step) <= points
        values = layer_values(numbers, 0, len(self.layers)).astype(np.float64)
        total = 0
        for i, (first, last) in enumerate(zip(bins.first_step, bins.last_step, strict=True)):
            inside = values[(numbers >= first) & (numbers <= last)]
            total += len(inside)
            np.testing.assert_array_equal(bins.min[i], inside.min(0))
            np.testing.assert_array_equal(bins.max[i], inside.max(0))
            np.testing.assert_allclose(bins.mean[i], inside.mean(0), rtol=1e-5, atol=1e-4)
            np.testing.assert_array_equal(bins.count[i], len(inside))
        assert total == len(numbers)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges and pyramids at a size where a test of some hundred steps sees all of them."""
    monkeypatch.setattr(merge, "FAN_IN", 3)
    monkeypatch.setattr(merge, "LEFT", 0)
    monkeypatch.setattr(housekeeping, "CHUNK", 32)


@pytest.fixture(autouse=True)
def _no_sync(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a disk makes no test truer, except those that ask whether we wait."""
    if "syncs" not in request.fixturenames:
        monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk is asked to do, in order."""
    told: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(fd: int) -> None:
        told.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        fsync(fd)

    def rename(source: Path, target: Path) -> None:
        told.append(f"rename {Path(target).parent.name}")
        replace(source, target)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("os.replace", rename)
    return told
