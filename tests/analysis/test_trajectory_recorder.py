"""The trajectory recorder's bookkeeping: pieces, folders, resumption, mistakes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.trajectories import check, drift, flat, network, report_of, walk
from gradwise.analysis import _products, trajectory
from gradwise.analysis.trajectory import TrajectoryRecorder
from gradwise.errors import UserError

# --- pieces, stores, resumption ---


@pytest.mark.parametrize("memory", [1, 400, 10_000])
def test_pieces_of_any_size_give_the_same(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_products, "_ROWS", 3)
    points = walk(8, p=50)
    check(report_of(points, memory=memory), points.numpy())


def test_pieces_of_files_are_read_from_where_they_are(tmp_path: Path) -> None:
    points = walk(5, p=40)
    parts = [{"a": p[:13], "b": p[13:].view(3, 9)} for p in points]
    recorder = TrajectoryRecorder(parts[0], folder=tmp_path, memory=8 * 5 * 5 * 4)  # 4 entries
    for part in parts:
        recorder.add(part)
    check(recorder.report(), points.numpy())


def test_what_is_held_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[int] = []
    original = torch.empty

    def empty(*size: int, **kwargs: object) -> Tensor:
        result = original(*size, **kwargs)
        made.append(result.numel() * result.element_size())
        return result

    memory, n = 100_000, 10
    recorder = TrajectoryRecorder({"w": torch.zeros(20_000)}, folder=tmp_path, memory=memory)
    for _ in range(n):
        recorder.add({"w": torch.randn(20_000)})
    monkeypatch.setattr(torch, "empty", empty)
    recorder.report()
    assert len(made) == -(-20_000 // (memory // (8 * 5 * n)))
    assert max(made) <= memory / 5


@pytest.mark.parametrize("stops", [(1, 2, 3, 9), (2, 9), (4, 5, 9), (3, 8, 9)])
@pytest.mark.parametrize("on_disk", [True, False])
def test_reports_in_between_change_nothing(
    stops: tuple[int, ...], on_disk: bool, tmp_path: Path
) -> None:
    points = walk(9, p=6)
    recorder = TrajectoryRecorder({"w": points[0]}, folder=tmp_path / "t" if on_disk else None)
    for point in points:
        recorder.add({"w": point})
        if len(recorder) in stops and len(recorder) > 2:
            check(recorder.report(), points[: len(recorder)].numpy())
        elif len(recorder) in stops:
            recorder.report()


def test_a_later_report_computes_new_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[int] = []
    original = trajectory.accumulate

    def spy(into: object, before: int, *rest: object) -> None:
        known.append(before)
        original(into, before, *rest)

    monkeypatch.setattr(trajectory, "accumulate", spy)
    recorder = TrajectoryRecorder({"w": torch.ones(3)})
    for _ in range(3):
        recorder.add({"w": torch.randn(3)})
    recorder.report()
    recorder.report()
    recorder.add({"w": torch.randn(3)})
    recorder.report()
    assert known == [0, 3]


def test_a_folder_is_continued(tmp_path: Path) -> None:
    model, rows = network(), []
    for begin in (0, 10):
        recorder = TrajectoryRecorder(network(seed=9), folder=tmp_path / "run")
        assert len(recorder) == len(rows)
        for step in range(begin, begin + 3):
            recorder.add(model, step=step)
            rows.append(flat(model))
            drift(model)
        recorder.report()
    again = TrajectoryRecorder(model, folder=tmp_path / "run")
    assert again.steps == (0, 1, 2, 10, 11, 12)
    check(again.report(), np.stack(rows))


def test_other_layers_on_the_same_folder_are_not_mixed_up(tmp_path: Path) -> None:
    model, rows = network(), []
    recorder = TrajectoryRecorder(model, folder=tmp_path)
    for _ in range(4):
        recorder.add(model)
        rows.append(flat(model))
        drift(model)
    recorder.report()
    other = TrajectoryRecorder(model, folder=tmp_path, layers=lambda name: name.split(".")[1])
    assert other.layers == ("weight", "bias")
    check(other.report(), np.stack(rows))


@pytest.mark.parametrize("on_disk", [True, False])
def test_rewinding(on_disk: bool, tmp_path: Path) -> None:
    first, second = walk(6), walk(6, seed=1)
    recorder = TrajectoryRecorder({"w": first[0]}, folder=tmp_path / "t" if on_disk else None)
    for point in first:
        recorder.add({"w": point})
    recorder.report()
    recorder.rewind(2)
    assert recorder.steps == (0, 1)
    for point in second[2:]:
        recorder.add({"w": point})
    check(recorder.report(), torch.cat([first[:2], second[2:]]).numpy())
    for count in (-1, 7):
        with pytest.raises(UserError, match="0 <= count <= 6"):
            recorder.rewind(count)


def test_a_checkpoint_is_a_copy_and_the_model_is_left_alone() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recorder = TrajectoryRecorder(model)
    recorder.add(model)
    state = torch.get_rng_state()
    recorder.report()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    drift(model)
    recorder.add(model)
    assert recorder.report().displacement > 0


def test_progress_counts_entries() -> None:
    model, seen = network(), []
    recorder = TrajectoryRecorder(model)
    recorder.add(model)
    recorder.report(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(24, 47), (32, 47), (47, 47)]


# --- mistakes ---


def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = TrajectoryRecorder({"w": torch.ones(2)}, folder=tmp_path)
    recorder.add({"w": torch.ones(2)})

    def full(*args: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            recorder.add({"w": torch.ones(2)})
    assert len(recorder) == len(TrajectoryRecorder({"w": torch.ones(2)}, folder=tmp_path)) == 1
    assert not list(tmp_path.glob("*.tmp"))
    recorder.add({"w": torch.ones(2)})


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    weights = {"w": torch.ones(3)}
    recorder = TrajectoryRecorder(weights, folder=tmp_path / "a")
    recorder.add(weights)
    with pytest.raises(UserError, match="other parameters"):
        TrajectoryRecorder({"w": torch.ones(4)}, folder=tmp_path / "a")
    with pytest.raises(UserError, match="other parameters"):
        TrajectoryRecorder({"w": torch.ones(3).double()}, folder=tmp_path / "a")
    path = tmp_path / "a" / "checkpoint-000000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged: expected 28 bytes"):
        TrajectoryRecorder(weights, folder=tmp_path / "a")
    with pytest.raises(UserError, match="it ends early"):
        recorder.report()
    (tmp_path / "a" / "trajectory.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        TrajectoryRecorder(weights, folder=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="to be empty or to hold a trajectory"):
        TrajectoryRecorder(weights, folder=tmp_path / "b")
    with pytest.raises(UserError, match="it is a file"):
        TrajectoryRecorder(weights, folder=tmp_path / "b" / "thesis.tex")


def test_two_recorders_of_one_folder(tmp_path: Path) -> None:
    weights = {"w": torch.ones(3)}
    one, other = (TrajectoryRecorder(weights, folder=tmp_path) for _ in range(2))
    one.add(weights)
    with pytest.raises(UserError, match="another recorder"):
        other.add(weights)


def test_mistakes_of_add_record_nothing() -> None:
    recorder = TrajectoryRecorder({"w": torch.ones(3)})
    with pytest.raises(UserError, match="at least 1 checkpoint"):
        recorder.report()
    recorder.add({"w": torch.ones(3)}, step=5)
    for weights, step, message in (
        ({"v": torch.ones(3)}, None, "a parameter w"),
        ({"w": torch.ones(4)}, None, r"\(3,\) of torch.float32, got \(4,\)"),
        ({"w": torch.ones(3).double()}, None, "got .* of torch.float64"),
        ({"w": torch.tensor([1.0, math.nan, 0.0])}, None, "w has NaN"),
        ({"w": torch.ones(3)}, 5, "above the last checkpoint's 5, got step=5"),
        ({"w": torch.ones(3)}, math.nan, "got step=nan"),
        ({"w": torch.ones(3)}, math.inf, "got step=inf"),
    ):
        with pytest.raises(UserError, match=message):
            recorder.add(weights, step=step)
    assert recorder.steps == (5,)
    recorder.add({"w": torch.ones(3)})
    assert recorder.steps == (5, 6)
    with pytest.raises(UserError, match="one of w, got 'x'"):
        recorder.report("x")


def test_mistakes_of_the_constructor() -> None:
    with pytest.raises(UserError, match="memory >= 1"):
        TrajectoryRecorder(network(), memory=0)
    with pytest.raises(UserError, match="with parameters"):
        TrajectoryRecorder(nn.ReLU())
    with pytest.raises(UserError, match="w to be real and floating-point"):
        TrajectoryRecorder({"w": torch.ones(2).long()})


def test_numbers_too_large_to_square() -> None:
    recorder = TrajectoryRecorder({"w": torch.ones(1).double()})
    recorder.add({"w": torch.tensor([1e200], dtype=torch.float64)})
    with pytest.raises(UserError, match="fit into float64"):
        recorder.report()
