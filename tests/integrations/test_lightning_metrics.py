"""What a Lightning module logs arrives in the run, at the step that it was logged in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gradwise as gw

pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from gradwise.integrations.lightning import WatchCallback
from integrations.hosted import noted
from integrations.lit_models import Classifier, loader, loss_of, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


class Talker(Classifier):
    """Logs a number at every occasion that there is, and keeps what it logged of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = loss_of(self.net, batch)
        self.losses.append(loss.item())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("grad_norm", 100.0 + self.seen)
        if self.seen % 3 == 1:
            self.log("rare", float(self.seen))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("after", float(self.seen))
        self.seen += 1

    def on_train_epoch_end(self) -> None:
        self.log("epoch_end", float(self.current_epoch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validated", float(self.seen))

    def on_validation_epoch_end(self) -> None:
        self.log("validated_end", -float(self.seen))


def test_each_number_has_its_step(tmp_path: Path) -> None:
    module, callback = Talker(), WatchCallback(tmp_path / "run")
    fit = trainer(tmp_path, callback, max_epochs=2, val_check_interval=2)
    fit.fit(module, loader(4), loader(1))
    run = gw.watch.load(tmp_path / "run")
    assert run.last_step == 7
    assert noted(run, "loss_step") == pytest.approx(dict(enumerate(module.losses)))
    epochs = [sum(module.losses[:4]) / 4, sum(module.losses[4:]) / 4]
    assert noted(run, "loss_epoch") == pytest.approx({3: epochs[0], 7: epochs[1]})
    assert "loss" not in run.step_metrics
    # A number of the same name as a column of gradwise's own leaves that alone.
    assert noted(run, "lightning/grad_norm") == {step: 100.0 + step for step in range(8)}
    assert max(noted(run, "grad_norm").values()) < 50
    assert noted(run, "rare") == {1: 1.0, 4: 4.0, 7: 7.0}  # not again in the steps between
    assert noted(run, "after") == {step: float(step) for step in range(8)}
    assert noted(run, "epoch_end") == {3: 0.0, 7: 1.0}
    # The sanity check before the first step is not there; the others are after steps 1, 3, 5, 7.
    assert noted(run, "validated") == {1: 2.0, 3: 4.0, 5: 6.0, 7: 8.0}
    assert noted(run, "validated_end") == {1: -2.0, 3: -4.0, 5: -6.0, 7: -8.0}


def test_of_an_accumulated_step_the_last_batch_counts(tmp_path: Path) -> None:
    module, callback = Talker(), WatchCallback(tmp_path / "run")
    trainer(tmp_path, callback, accumulate_grad_batches=2).fit(module, loader(5))
    run = gw.watch.load(tmp_path / "run")
    ends = [1, 3, 4]  # the epoch's last batch makes a step of its own
    assert noted(run, "loss_step") == pytest.approx(
        {s: module.losses[b] for s, b in enumerate(ends)}
    )
    assert noted(run, "after") == {s: float(b) for s, b in enumerate(ends)}


class Watched(Talker):
    """Has the callback log under every name that the run has itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for name in self.taken:
            self.log(name, 1234.0)
        return loss_of(self.net, batch)


def test_no_name_is_taken_twice(tmp_path: Path) -> None:
    trainer(tmp_path, WatchCallback(tmp_path / "a")).fit(Classifier(), loader(2))
    module = Watched()
    module.taken = [*gw.watch.load(tmp_path / "a").step_metrics, "step", "first_step", "lr/1"]
    trainer(tmp_path, WatchCallback(tmp_path / "b", transforms=[gw.transforms.Autoscale()])).fit(
        module, loader(2)
    )
    run = gw.watch.load(tmp_path / "b")
    for name in module.taken:
        assert noted(run, f"lightning/{name}") == {0: 1234.0, 1: 1234.0}, name
        if name in run.step_metrics:
            assert 1234.0 not in noted(run, name).values()


def test_an_exception_loses_nothing(tmp_path: Path) -> None:
    class Failing(Talker):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                raise KeyError("of the user's own")

    module, callback = Failing(), WatchCallback(tmp_path / "run")
    with pytest.raises(KeyError, match="of the user's own"):
        trainer(tmp_path, callback).fit(module, loader(5))
    run = gw.watch.load(tmp_path / "run")
    assert run.closed
    assert noted(run, "loss_step") == pytest.approx(dict(enumerate(module.losses)))
    assert run.last_step == 2
    assert not any("gradwise-watch" in k for k in module.spies[0].state_dict()["param_groups"][0])


def test_metrics_stay_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the callback does in a step asks for the value of a tensor."""
    asked: list[str] = []
    callback = WatchCallback(tmp_path / "run")
    for name in ("on_train_batch_start", "on_before_optimizer_step"):
        whole = getattr(callback, name)

        def careful(*args: Any, _whole: Any = whole, _name: str = name) -> None:
            item = torch.Tensor.item
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "item", lambda t: asked.append(_name) or item(t))
                patch.setattr(torch.Tensor, "__float__", lambda t: asked.append(_name) or item(t))
                _whole(*args)

        monkeypatch.setattr(callback, name, careful)
    module = Talker()
    trainer(tmp_path, callback).fit(module, loader(4))
    assert asked == []
    assert len(noted(gw.watch.load(tmp_path / "run"), "loss_step")) == 4
