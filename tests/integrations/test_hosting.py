"""What the integrations share, without any of their libraries."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradwise as gw
from gradwise.attach import attached
from gradwise.integrations.hosted import HostedWatch, Part
from gradwise.integrations.hosting import Request, WatchOptions, scalars_of
from integrations.hosted import column


def test_the_options_are_those_of_a_watch() -> None:
    parameters = inspect.signature(inspect.unwrap(gw.watch.Watch.__init__)).parameters
    named_otherwise = {"self", "optimizer", "model", "out", "sinks"}
    assert set(WatchOptions.__annotations__) == set(parameters) - named_otherwise


def test_nothing_is_imported_unasked() -> None:
    code = (
        "import sys, gradwise, gradwise.watch, gradwise.integrations.hosting\n"
        "print(*{m.split('.')[0] for m in sys.modules} & {'lightning', 'pytorch_lightning', "
        "'transformers', 'accelerate'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_scalars_of_what_a_host_logs() -> None:
    found = scalars_of(
        {
            "loss": torch.tensor([0.5]),
            "lr": 0.1,
            "lr/1": 0.2,
            "transform/0.Autoscale.alpha": 1,
            "learning_rate": 0.1,
            "note": "text",
            "flag": True,
            "image": torch.zeros(2, 2),
            "spectrum": torch.zeros((), dtype=torch.complex64),
        },
        "host",
    )
    assert found.keys() == {
        *("loss", "host/lr", "host/lr/1", "host/transform/0.Autoscale.alpha"),
        *("learning_rate", "flag"),
    }


def stepped(optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn_like(param)
        optimizer.step()


def test_a_host_numbers_the_steps(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = HostedWatch(optimizer, model, tmp_path / "run")
    assert watch.state_dict() == {}
    watch.start_at(2)
    watch.start_at(1)
    for said in (None, 3, 1):  # 2 and 3 begin and are not taken; 1 has gone by
        watch.begin(said)
    stepped(optimizer, 1)
    watch.start_at(9)  # too late
    for said in (None, 6, 5):
        watch.begin(said)
    stepped(optimizer, 2)
    assert watch.state_dict()["next"] == 8
    watch.close()
    watch.begin(20)
    steps = gw.watch.load(tmp_path / "run").steps
    assert steps["step"].to_pylist() == [3, 4, 6, 7]
    norms = steps["grad_norm"].to_pylist()
    assert [norm is None or norm != norm for norm in norms] == [False, True, False, False]


def test_what_is_loaded_in_the_midst_is_for_the_next_watch(tmp_path: Path) -> None:
    """An optimizer that loads a checkpoint and is then watched anew goes on from there."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    request = Request(tmp_path / "run", [], (), {})
    request.watch(optimizer, model, tmp_path / "run")
    stepped(optimizer, 2)
    kept = optimizer.state_dict()
    stepped(optimizer, 2)
    optimizer.load_state_dict(kept)
    stepped(optimizer, 1)  # goes on after all, so what was loaded is of no account
    watch = request.watch(optimizer, model, tmp_path / "run")
    with pytest.warns(gw.watch.WatchWarning, match="run-2, because"):
        stepped(optimizer, 1)
    assert len(column(gw.watch.load(tmp_path / "run"), "grad_norm")) == 5
    watch.close()
    optimizer.load_state_dict(kept)
    watch = request.watch(optimizer, model, tmp_path / "run")
    stepped(optimizer, 1)
    watch.close()
    assert watch.path == tmp_path / "run"
    assert len(column(gw.watch.load(tmp_path / "run"), "grad_norm")) == 3


def test_the_part_of_an_optimizer() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    part = Part(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
    assert [name for name, _ in part.named_parameters()] == ["1.weight", "1.bias"]
    assert part.whole == "Sequential"


def test_transforms_that_are_there_already_keep_their_state(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = gw.autoscale(optimizer)
    stepped(optimizer, 3)
    Request(None, [gw.transforms.Autoscale()], (), {}).attach(optimizer, model)
    assert attached(optimizer) is first
    other = Request(None, [gw.transforms.ClipNorm(1.0)], (), {})
    other.attach(optimizer, model)
    stepped(optimizer, 1)
    assert first.state is not None
    assert first.state["0.Autoscale[trend].step"] == 3  # replaced
