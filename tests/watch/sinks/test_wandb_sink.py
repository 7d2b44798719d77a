"""W&B offline, read back from the run's own file through W&B's protocol buffers."""

import contextlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.sinks import SinkFeed, WandB
from gradwise.watch.sinks import wandb as wandb_sink

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")

SIZE = 32768  # of a piece of the file; no record crosses it in one part


def records(file: Path):
    """The records of a `.wandb` file, which is a log in LevelDB's format after 7 bytes."""
    raw = file.read_bytes()
    assert raw.startswith(b":W&B")
    at, whole = 7, b""
    while at + 7 <= len(raw):
        if SIZE - at % SIZE < 7:  # too short for a head: filled up
            at += SIZE - at % SIZE
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        part = raw[at + 7 : at + 7 + length]
        at += 7 + length
        whole = part if kind in (1, 2) else whole + part  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


class Offline:
    """A run that stays on this machine."""

    def __init__(self, folder: Path):
        quiet = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
        self.run = wandb.init(project="p", mode="offline", dir=str(folder), settings=quiet)
        self.folder = folder

    def read(self):
        """History rows, those of the script without W&B's own clock, and the metrics defined."""
        self.run.finish()
        wandb.teardown()  # finish does not wait until everything is in the file
        (file,) = self.folder.glob("wandb/offline-run-*/*.wandb")
        rows, metrics = [], {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append({k: v for k, v in items.items() if k not in ("_timestamp", "_runtime")})
            elif kind == "metric":
                metric = record.metric
                metrics[metric.name or metric.glob_name] = metric.step_metric
        return rows, metrics


def children() -> set[str]:
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return set()
    found = []
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.append((task / "children").read_text())
    return set(" ".join(found).split())


@pytest.fixture
def offline(tmp_path, monkeypatch):
    before = children()
    for kind in ("", "CACHE_", "CONFIG_", "DATA_"):
        monkeypatch.setenv(f"WANDB_{kind}DIR", str(tmp_path))
    yield Offline(tmp_path)
    wandb.finish()
    wandb.teardown()
    end = time.monotonic() + 60
    while not children() <= before and time.monotonic() < end:
        time.sleep(0.1)
    assert children() <= before  # W&B's service is gone


def test_rows_join_those_of_the_script_and_its_step_is_its_own(offline, blocks, until) -> None:
    run = offline.run
    run.define_metric("*", step_metric="epoch", step_sync=False)  # as Lightning and Transformers do
    feed = SinkFeed(WandB(layers="head.*"), patience=20)
    first, second, third = blocks()  # with the rows of steps 0 and 10, 20 and 30, 39
    run.log({"loss": 1.0, "epoch": 0}, step=5)
    feed.take(first)
    until(lambda: feed.sent == 2)
    run.log({"accuracy": 0.5}, step=5)  # the same row still: W&B must not have closed it
    run.log({"loss": 2.0}, step=6)
    run.log({"loss": 3.0}, step=7)
    feed.take(second)
    until(lambda: feed.sent == 4)
    run.log({"loss": 4.0}, step=8)
    feed.take(third)
    feed.close()
    assert (feed.errors, feed.lost, feed.sent) == (0, 0, 5)
    rows, metrics = offline.read()
    layer = "grad/layer/head.bias/"

    def ours(step, noise, layers):
        return {
            "grad/step": step,
            "grad/nonfinite": 2,
            "grad/norm": step,
            "grad/applied/norm": step / 2,
            "grad/noise_scale": noise,
            "lr": 0.1,
            "lr/1": 0.2,
            layer + "norm": pytest.approx(layers),
            layer + "std": pytest.approx(layers + 100),
        }

    assert rows == [
        {"_step": 5, "epoch": 0, "loss": 1, "accuracy": 0.5, **ours(10, 3, 10.1)},
        {"_step": 6, "loss": 2},
        {"_step": 7, "loss": 3, **ours(30, 23, 30.1)},
        {"_step": 8, "loss": 4, **ours(39, 33, 39.1)},
    ]
    # Each of ours has its axis by name, so the script's pattern for all does not get it.
    drawn = ("norm", "applied/norm", "noise_scale", "nonfinite")
    assert metrics == {
        "*": "epoch",
        "grad/step": "",
        **{f"grad/{name}": "grad/step" for name in drawn},
        layer + "norm": "grad/step",
        layer + "std": "grad/step",
    }


def test_rows_of_their_own(offline, play) -> None:
    norm = np.array([1.0, np.inf, 3.0, 4.0])
    record = Block(("w",), np.arange(4), {}, {"grad_norm": norm, "loss": norm})
    sink = WandB(offline.run, every=1, own_rows=True, scalars=None)
    play(sink, [record])
    rows, _ = offline.read()
    assert rows == [
        {"_step": 0, "grad/step": 0, "grad/norm": 1, "loss": 1},
        {"_step": 1, "grad/step": 1, "grad/norm": np.inf, "loss": np.inf},
        {"_step": 2, "grad/step": 2, "grad/norm": 3, "loss": 3},
        {"_step": 3, "grad/step": 3, "grad/norm": 4, "loss": 4},
    ]


def test_a_script_that_logs_nothing_is_told_once(offline, play, blocks, said) -> None:
    play(WandB(every=1), blocks(2 * wandb_sink.ROWS_UNTIL_WORD))
    assert len(said()) == 1
    assert "own_rows=True" in said()[0]
    rows, _ = offline.read()
    assert [row["grad/step"] for row in rows] == [99]  # the latest is there all the same


def test_a_run_that_was_finished_too_early(offline, blocks, until, said) -> None:
    feed = SinkFeed(WandB(), patience=20)
    first, *others = blocks()
    feed.take(first)
    until(lambda: feed.sent == 2)
    offline.run.finish()
    for block in others:
        feed.take(block)
    feed.close()
    assert feed.sent == 2
    assert feed.lost == 3
    assert len(said()) == 1
    assert "UsageError" in said()[0]


def test_without_a_run(tmp_path) -> None:
    assert wandb.run is None
    with pytest.raises(UserError, match="there is no current W&B run: call wandb"):
        WandB()
    with pytest.raises(UserError, match="expected run to be a W&B run, got str"):
        WandB("my-run")
    assert "WANDB_MODE" in os.environ
