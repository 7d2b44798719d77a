"""Lightning runs that stop and go on, copies of the callback, and the other package's name."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gradwise as gw
from gradwise.transforms import Autoscale

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

import gradwise.integrations.lightning as under_test  # noqa: E402
from gradwise.integrations.lightning import WatchCallback  # noqa: E402
from integrations.hosted import column, same, values  # noqa: E402
from integrations.lit_models import Classifier, loader, trainer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Adam(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        self.log("number", float(self.trainer.global_step))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def every_epoch(folder: Path) -> Any:
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)


def run_of(folder: Path, epochs: int, callback: Any = None, **options: Any) -> Any:
    """A training in a folder whose logger makes a version of it each time."""
    module = Adam()
    fit = trainer(
        folder,
        WatchCallback(transforms=[Autoscale()]) if callback is None else callback,
        every_epoch(folder / "ckpt"),
        max_epochs=epochs,
        enable_checkpointing=True,
        logger=CSVLogger(folder, name="logs"),
    )
    fit.fit(module, loader(3), **options)
    return module


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole", 4)
    expected = gw.watch.load(tmp_path / "whole" / "logs" / "version_0" / "gradwise")
    run_of(tmp_path / "parts", 3)
    first = tmp_path / "parts" / "logs" / "version_0" / "gradwise"
    assert gw.watch.load(first).last_step == 8
    # From the end of the second epoch: the third one's rows are of a training that is no more.
    resumed = run_of(tmp_path / "parts", 4, ckpt_path=tmp_path / "parts" / "ckpt" / "epoch=1.ckpt")
    assert same(values(whole), values(resumed))  # the transforms' state was in the checkpoint
    run = gw.watch.load(first)
    assert not (tmp_path / "parts" / "logs" / "version_1" / "gradwise").exists()
    for name in ("grad_norm", "applied_norm", "alpha", "loss", "number"):
        assert column(run, name) == pytest.approx(column(expected, name), rel=1e-6), name
    assert column(run, "number") == list(range(12))


def test_a_checkpoint_from_the_midst_of_an_epoch(tmp_path: Path) -> None:
    def once(callback: Any, **options: Any) -> None:
        saver = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=2, save_top_k=-1)
        fit = trainer(tmp_path, callback, saver, enable_checkpointing=True, max_epochs=2)
        fit.fit(Adam(), loader(5), **options)

    once(WatchCallback(tmp_path / "run"))
    once(WatchCallback(tmp_path / "run"), ckpt_path=tmp_path / "ckpt" / "epoch=1-step=8.ckpt")
    assert column(gw.watch.load(tmp_path / "run"), "number") == list(range(10))
    assert [path.name for path in tmp_path.iterdir() if "run" in path.name] == ["run"]


def test_a_checkpoint_made_after_the_training(tmp_path: Path) -> None:
    """By then the optimizer's state has nothing of the watch, but the callback's has."""
    fit = trainer(tmp_path, WatchCallback(tmp_path / "run"))
    fit.fit(Adam(), loader(3))
    fit.save_checkpoint(tmp_path / "late.ckpt")
    groups = torch.load(tmp_path / "late.ckpt", weights_only=True)["optimizer_states"][0]
    assert not any("gradwise-watch" in str(key) for key in groups["param_groups"][0])
    again = trainer(tmp_path, WatchCallback(tmp_path / "run"), max_epochs=2)
    again.fit(Adam(), loader(3), ckpt_path=tmp_path / "late.ckpt")
    assert column(gw.watch.load(tmp_path / "run"), "number") == list(range(6))


def test_a_checkpoint_of_an_unwatched_training(tmp_path: Path) -> None:
    fit = trainer(tmp_path)
    fit.fit(Adam(), loader(3))
    fit.save_checkpoint(tmp_path / "early.ckpt")
    again = trainer(tmp_path, WatchCallback(tmp_path / "run"), max_epochs=2)
    again.fit(Adam(), loader(3), ckpt_path=tmp_path / "early.ckpt")
    steps = gw.watch.load(tmp_path / "run").steps
    assert steps["step"].to_pylist() == steps["number"].to_pylist() == [3, 4, 5]


def test_fitting_further(tmp_path: Path) -> None:
    callback = WatchCallback(tmp_path / "run")
    fit, module = trainer(tmp_path, callback), Adam()
    fit.fit(module, loader(3))
    fit.fit_loop.max_epochs = 2
    fit.fit(module, loader(3))
    assert column(gw.watch.load(tmp_path / "run"), "number") == list(range(6))
    # Another trainer begins another run, and says so.
    with pytest.warns(gw.watch.WatchWarning, match="run-2, because"):
        trainer(tmp_path, callback).fit(Adam(), loader(2))
    assert column(gw.watch.load(tmp_path / "run-2"), "number") == [0, 1]
    assert column(gw.watch.load(tmp_path / "run"), "number") == list(range(6))


def test_two_optimizers_go_on(tmp_path: Path) -> None:
    class Pair(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(self.net(batch[0]).square().mean())
            for optimizer in self.optimizers():
                optimizer.step()
            self.log("number", float(self.trainer.global_step // 2 - 1))

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[at].parameters(), lr=0.1) for at in (0, 2)]

    def once(epochs: int, **options: Any) -> None:
        fit = trainer(
            tmp_path,
            WatchCallback(),
            every_epoch(tmp_path / "ckpt"),
            enable_checkpointing=True,
            max_epochs=epochs,
            logger=CSVLogger(tmp_path, name="logs"),
        )
        fit.fit(Pair(), loader(3), **options)

    once(2)
    once(3, ckpt_path=tmp_path / "ckpt" / "epoch=0.ckpt")
    assert not (tmp_path / "logs" / "version_1" / "gradwise").exists()
    for name in ("0-SGD", "1-SGD"):
        run = gw.watch.load(tmp_path / "logs" / "version_0" / "gradwise" / name)
        assert column(run, "number") == list(range(9))


class Copier(pl.Callback):  # type: ignore[misc,name-defined]
    """Copies the callback in the midst of the training, as launchers and searches do."""

    def __init__(self, copied: Any) -> None:
        self.copied, self.copies = copied, []

    def on_train_batch_end(self, *args: Any) -> None:
        self.copies = [copy.deepcopy(self.copied), pickle.loads(pickle.dumps(self.copied))]


def test_copies_have_the_settings_and_no_watch(tmp_path: Path) -> None:
    callback = WatchCallback(tmp_path / "run", transforms=[Autoscale()], every=2, meta={"a": 1})
    copier = Copier(callback)
    trainer(tmp_path, callback, copier).fit(Adam(), loader(3))
    assert gw.watch.load(tmp_path / "run").steps["step"].to_pylist() == [0, 2]
    for number, twin in enumerate(copier.copies, start=2):
        assert repr(twin) == repr(callback)
        assert twin.watches == ()
        with pytest.warns(gw.watch.WatchWarning, match=f"run-{number}, because"):
            trainer(tmp_path, twin).fit(Adam(), loader(3))
        run = gw.watch.load(tmp_path / f"run-{number}")
        assert run.steps["step"].to_pylist() == [0, 2]
        assert run.meta["a"] == 1
        assert "Autoscale" in run.meta["transform"]


def loaded_anew() -> Any:
    spec = importlib.util.spec_from_file_location("lightning_twin", under_test.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_under_its_other_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    callback = loaded_anew().WatchCallback(tmp_path / "run", transforms=[Autoscale()])
    assert isinstance(callback, old.Callback)

    class Old(old.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(6, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    trainer(tmp_path, callback, host=old).fit(Old(), loader(3))
    assert len(column(gw.watch.load(tmp_path / "run"), "loss")) == 3


def test_without_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"^this needs lightning: pip install lightning"):
        loaded_anew()
