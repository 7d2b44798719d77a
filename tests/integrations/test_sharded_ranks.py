"""Two processes that share the parameters, under a host that shards, stops and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from integrations.hosted import column, norm_of, noted
from integrations.ranks import STEPS
from integrations.test_ranks import TORCHRUN, one_process, run_script

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch without gloo",
)


@pytest.fixture(scope="module", params=["lightning", "accelerate"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What both processes found, and which host's it is."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    folder: Path = tmp_path_factory.mktemp(request.param)
    for half in ("first", "second"):
        run_script(folder, *TORCHRUN, script="sharded_ranks.py", rest=(request.param, half))
    return request.param, [torch.load(folder / f"{request.param}-{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def expected() -> Any:
    return one_process()


def test_the_same_as_one_process_that_never_stopped(trained: Any, expected: Any) -> None:
    spy, _, attachment = expected
    params, state = spy.param_groups[0]["params"], attachment.state_dict()["state"]
    for found in trained[1]:
        for ours, theirs in zip(found["params"], params, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=2e-6, atol=2e-7)
        assert found["state"].keys() == state.keys()
        assert found["state"]["0.Autoscale[trend].step"] == STEPS  # nothing was forgotten
        for name, value in state.items():
            torch.testing.assert_close(found["state"][name], value, rtol=2e-6, atol=0)


def test_each_process_has_its_part(trained: Any) -> None:
    rows = [found["rows"] for found in trained[1]]
    assert [sum(pair) for pair in zip(*rows, strict=True)] == [5, 5, 3, 3]
    assert all(count > 0 for part in rows for count in part)


def test_one_run_with_the_values_of_all(trained: Any, expected: Any) -> None:
    host, (first, second) = trained
    spy, read, _ = expected
    assert second["path"] is None
    run = gw.watch.load(first["path"])
    assert run.closed
    folder = Path(first["path"])
    assert [path.parent for path in folder.parent.glob(f"{host}*/run.json")] == [folder]
    assert sorted(noted(run, "loss")) == list(range(STEPS))
    np.testing.assert_allclose(column(run, "grad_norm"), [norm_of(s) for s in read], rtol=1e-5)
    np.testing.assert_allclose(
        column(run, "applied_norm"), [norm_of(s) for s in spy.used], rtol=1e-5
    )
    largest = [max(float(g.abs().max()) for g in step) for step in read]
    np.testing.assert_allclose(column(run, "grad_max_abs"), largest, rtol=1e-5)


def test_the_trainer_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    for part in ("whole", "first", "second"):
        run_script(tmp_path, *TORCHRUN, script="sharded_ranks.py", rest=("transformers", part))
    whole = torch.load(tmp_path / "whole-0.pt")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"transformers-{rank}.pt")
        for ours, theirs in zip(found["params"], whole["params"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-7)
        assert found["state"]["0.Autoscale[trend].step"] == STEPS
        for name, value in whole["state"].items():
            torch.testing.assert_close(found["state"][name], value, rtol=2e-6, atol=0)
    ours, theirs = (gw.watch.load(tmp_path / name) for name in ("transformers", "whole"))
    np.testing.assert_allclose(column(ours, "grad_norm"), column(theirs, "grad_norm"), rtol=1e-5)
    assert ours.last_step == STEPS - 1
    assert not (tmp_path / "transformers-2").exists()
