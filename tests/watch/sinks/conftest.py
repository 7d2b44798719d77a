"""A run whose numbers say where they come from, and tools that stay on this machine."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

# The tools read some of these when they are imported: nothing is reported, nothing is asked for.
os.environ.update(
    DO_NOT_TRACK="true",
    GRADIO_ANALYTICS_ENABLED="False",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    MLFLOW_ALLOW_FILE_STORE="true",
    MLFLOW_DISABLE_TELEMETRY="true",
    WANDB_DISABLE_CODE="true",
    WANDB_ERROR_REPORTING="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)

from gradwise.watch.block import Block
from gradwise.watch.sinks import Sink, SinkFeed

NAMES = ("body.weight", "head.bias")


def make_blocks(
    steps: int = 40, *, first: int = 0, size: int = 16, names: tuple[str, ...] = NAMES
) -> list[Block]:
    """Records of `steps` steps in blocks of `size`.

    grad_norm is the step, a layer's norm is the step and a tenth of its number, std is 100 more,
    update_ratio is measured in turns (layer l at steps with step % 10 == l), a noise scale at steps
    3, 13, ..., the loss is 1000 - step.
    """
    at = np.arange(first, first + steps)
    norm = at[:, None] + np.arange(len(names)) / 10
    turn = at[:, None] % 10 == np.arange(len(names))
    layers = {
        "norm": norm,
        "std": norm + 100,
        "update_ratio": np.where(turn, norm, np.nan),
        "nonfinite": np.where(at[:, None] % 10 == 5, 1.0, 0.0) * np.ones(len(names)),
    }
    scalars = {
        "grad_norm": at.astype(float),
        "applied_norm": at / 2,
        "noise_scale": np.where(at % 10 == 3, at, np.nan),
        "lr": np.full(steps, 0.1),
        "lr/1": np.full(steps, 0.2),
        "loss": 1000.0 - at,
        "time": 1e9 + at,
    }
    cuts = [slice(begin, begin + size) for begin in range(0, steps, size)]
    return [
        Block(
            names,
            at[cut],
            {name: values[cut] for name, values in layers.items()},
            {name: values[cut] for name, values in scalars.items()},
        )
        for cut in cuts
    ]


def wait_for(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until something is true, or fail."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Collector(Sink):
    """Keeps everything."""

    def __init__(self, **wishes: Any) -> None:
        super().__init__(**wishes)
        self.rows: list[tuple[int, dict[str, float], float]] = []
        self.events: list[str] = []

    def open(self, names, meta):
        self.events.append(f"open {','.join(names)} {dict(meta)}")

    def write(self, step, values, time):
        self.rows.append((step, dict(values), time))

    def close(self):
        self.events.append("close")


@pytest.fixture
def blocks() -> Callable[..., list[Block]]:
    return make_blocks


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What gradwise warned of so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.name == "gradwise"]


@pytest.fixture
def collector() -> type[Collector]:
    return Collector


@pytest.fixture
def play(blocks: Callable[..., list[Block]]) -> Callable[..., SinkFeed]:
    """Feed a sink a whole run and close it; everything has to arrive."""

    def whole(sink: Sink, records: list[Block] | None = None) -> SinkFeed:
        feed = SinkFeed(sink, {"optimizer": "SGD"}, patience=30)
        for block in blocks() if records is None else records:
            feed.take(block)
        feed.close()
        assert (feed.errors, feed.lost) == (0, 0)
        return feed

    return whole
