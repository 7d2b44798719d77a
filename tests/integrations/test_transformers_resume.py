"""Trainer runs that stop and go on, in one process and in another, and copies of the callback."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import gradwise as gw
from gradwise.transforms import Autoscale, ClipNorm

pytest.importorskip("transformers", reason="Transformers is not installed")
pytest.importorskip("accelerate", reason="Accelerate is not installed")

from gradwise.integrations.transformers import WatchCallback
from integrations.hf_models import TrainerCallback, language_model, trainer
from integrations.hosted import column, same, values


def resumable(folder: Path, callback: Any, **options: Any) -> Any:
    model = language_model()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    defaults: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    return trainer(folder, callback, optimizer=adam, model=model, **{**defaults, **options})


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    def callback() -> WatchCallback:
        return WatchCallback(transforms=[Autoscale()])

    whole = resumable(tmp_path / "whole", callback())
    whole.train()
    parts = tmp_path / "parts"
    resumable(parts, callback(), max_steps=5).train()
    kept = torch.load(parts / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert kept["param_groups"][0]["gradwise-watch:next"] == 4
    # The fifth step's row is of a training that is no more.
    resumed = resumable(parts, callback())
    resumed.train(resume_from_checkpoint=str(parts / "checkpoint-4"))
    assert same(values(whole.model), values(resumed.model))
    run, expected = (gw.watch.load(at / "gradwise") for at in (parts, tmp_path / "whole"))
    for name in ("grad_norm", "applied_norm", "alpha", "loss"):
        assert column(run, name) == pytest.approx(column(expected, name), rel=1e-6), name
    assert not (parts / "gradwise-2").exists()


def test_resuming_without_the_optimizers_state(tmp_path: Path) -> None:
    """Nothing says that the run is the same, so it is left alone; the steps are right."""
    resumable(tmp_path, WatchCallback(), save_only_model=True, max_steps=4).train()
    resumed = resumable(tmp_path, WatchCallback(), max_steps=6)
    with pytest.warns(gw.watch.WatchWarning, match="gradwise-2, because"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert gw.watch.load(tmp_path / "gradwise").last_step == 3
    assert gw.watch.load(tmp_path / "gradwise-2").steps["step"].to_pylist() == [4, 5]


class Interrupting(TrainerCallback):  # type: ignore[misc]
    at: int | None = 5

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


def test_interrupted_and_resumed_in_one_process(tmp_path: Path) -> None:
    """As in a notebook: the same Trainer, optimizer and callback."""
    whole = resumable(tmp_path / "whole", WatchCallback(transforms=[Autoscale()]))
    whole.train()
    callback = WatchCallback(transforms=[Autoscale()])
    made, interrupting = resumable(tmp_path / "parts", callback), Interrupting()
    made.add_callback(interrupting)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    interrupting.at = None
    made.train(resume_from_checkpoint=True)
    run, expected = (gw.watch.load(tmp_path / at / "gradwise") for at in ("parts", "whole"))
    assert column(run, "grad_norm") == pytest.approx(column(expected, "grad_norm"), rel=1e-6)
    assert same(values(made.model), values(whole.model))
    assert not (tmp_path / "parts" / "gradwise-2").exists()


def test_training_again_is_another_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, WatchCallback(transforms=[ClipNorm(0.01)]), max_steps=2)
    made.train()
    with pytest.warns(gw.watch.WatchWarning, match="gradwise-2, because"):
        made.train()
    for name in ("gradwise", "gradwise-2"):
        run = gw.watch.load(tmp_path / name)
        assert column(run, "applied_norm") == pytest.approx([0.01, 0.01], rel=1e-3)
    attachment = gw.attach(made.optimizer)
    assert len(attachment.readers) == len(attachment.observers) == 0


def test_copies_have_the_settings_and_no_watch(tmp_path: Path) -> None:
    callback = WatchCallback(tmp_path / "run", transforms=[ClipNorm(1.0)], every=2)
    trainer(tmp_path, callback, max_steps=1).train()
    assert callback.watch is not None
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert repr(twin) == repr(callback)
        assert twin.watch is None


@pytest.mark.parametrize("transform", [Autoscale(), ClipNorm(1.0)], ids=["state", "none"])
def test_a_checkpoint_without_the_state(tmp_path: Path, transform: Any) -> None:
    def made(steps: int) -> Any:
        callback = WatchCallback(None, transforms=[transform])
        return resumable(tmp_path, callback, save_only_model=True, max_steps=steps)

    made(4).train()
    with pytest.warns(UserWarning, match="the transforms begin anew at step 4: the checkpoint has"):
        made(6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
