"""Parameters from files of `torch.save`: what counts, where it is found, what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradwise.analysis._state_files import read_parameters
from gradwise.analysis.trajectory import TrajectoryRecorder
from gradwise.errors import UserError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4, bias=False)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("counts", torch.arange(3))


def saved(content: Any, folder: Path, **how: Any) -> Path:
    path = folder / "model.pt"
    torch.save(content, path, **how)
    return path


def test_parameters_and_nothing_else(tmp_path: Path) -> None:
    """As `named_parameters` gives them: no statistics, no counts, tied ones once."""
    model = Tied()
    found = read_parameters(saved(model.state_dict(), tmp_path))
    expected = dict(model.named_parameters())
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_equal_parameters_in_places_of_their_own_both_count(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(2), "rows": torch.ones(4)[:2]}
    assert list(read_parameters(saved(state, tmp_path))) == ["a", "b", "rows"]


def test_parts_of_one_storage_both_count(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    found = read_parameters(saved({"a": whole[:2], "b": whole[2:], "c": whole}, tmp_path))
    assert [x.tolist() for x in found.values()] == [[0, 1], [2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("place", ["state_dict", "model", "model_state_dict"])
def test_the_usual_places(place: str, tmp_path: Path) -> None:
    content = {"epoch": 3, "optimizer": {"state": {}}, place: nn.Linear(2, 1).state_dict()}
    assert list(read_parameters(saved(content, tmp_path))) == ["weight", "bias"]


def test_a_place_of_its_own(tmp_path: Path) -> None:
    path = saved({"run": {"ema": nn.Linear(2, 1).state_dict()}}, tmp_path)
    assert list(read_parameters(path, "run.ema")) == ["weight", "bias"]
    for key in (None, "run", "run.best", "run.ema.weight"):
        with pytest.raises(UserError, match="key"):
            read_parameters(path, key)


def test_files_of_old_versions(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 1).state_dict(), tmp_path, _use_new_zipfile_serialization=False)
    assert list(read_parameters(path)) == ["weight", "bias"]


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (exec, ("raise SystemExit('code of a file was run')",))


def test_no_code_is_run(tmp_path: Path) -> None:
    for path in (saved({"w": torch.ones(1), "x": Trap()}, tmp_path), tmp_path / "plain.pt"):
        if path.name == "plain.pt":
            path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError, match=r"weights_only=True"):
            read_parameters(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    torn = saved(nn.Linear(2, 1).state_dict(), tmp_path)
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(UserError, match=r"model\.pt"):
        read_parameters(torn)
    with pytest.raises(UserError, match="cannot read"):
        read_parameters(tmp_path / "missing.pt")
    with pytest.raises(UserError, match="floating-point"):
        read_parameters(saved({"steps": torch.arange(3)}, tmp_path))
    with pytest.raises(UserError, match="type int"):
        read_parameters(saved(7, tmp_path))


def test_a_recorder_takes_them(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    recorder = TrajectoryRecorder(read_parameters(saved(model.state_dict(), tmp_path)))
    recorder.add(read_parameters(saved(model.state_dict(), tmp_path)))
    with torch.no_grad():
        model.weight += 1
    recorder.add(read_parameters(saved(model.state_dict(), tmp_path)))
    assert recorder.report().path_length == pytest.approx(2**0.5)
