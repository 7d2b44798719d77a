"""One trial: train one model with one method and one seed, and write down what happened."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradwise.attach import Attachment, attach
from gradwise.lab.augment import Augment
from gradwise.lab.checkpoint import load_checkpoint, save_checkpoint
from gradwise.lab.data import Dataset
from gradwise.lab.fairness import BatchChecksum, model_checksum
from gradwise.lab.files import write_json
from gradwise.lab.methods import Arm, make_optimizer
from gradwise.lab.models import build
from gradwise.lab.schedule import lr_factor
from gradwise.lab.settings import Settings, resolve_device
from gradwise.watch import Recorder

REPORT_SECONDS = 0.5  # between two signs of life; each waits for the device once
EVAL_BATCH = 1024
Progress = Callable[[dict[str, Any]], None]


@dataclass
class _History:
    """One entry an epoch."""

    step: list[int]
    epoch: list[int]
    train_loss: list[float]
    test_loss: list[float]
    test_accuracy: list[float]


class Trial:
    """Trains a model from a seed under a method, checkpointing every epoch.

    Weights, batches and augmentation depend on the seed alone, never on the method, and every
    random stream restarts from seed and epoch, so that a trial resumed from a checkpoint gives the
    numbers of one that was never interrupted.

    Args:
        settings: what all trials share.
        arm: the method.
        seed: of weights, order and augmentation.
        dataset: already loaded.
        folder: where checkpoint, result and records go.
        progress: told about the trial now and then.
    """

    def __init__(
        self,
        settings: Settings,
        arm: Arm,
        seed: int,
        dataset: Dataset,
        folder: Path,
        progress: Progress = lambda event: None,
    ) -> None:
        self.settings = settings
        self.arm = arm
        self.seed = seed
        self.folder = folder
        self.progress = progress
        self.device = resolve_device(settings.device)
        torch.set_num_threads(settings.threads)
        self.dataset = dataset
        self.train_x, self.train_y = self._move(dataset.train_x), self._move(dataset.train_y)
        self.test_x, self.test_y = self._move(dataset.test_x), self._move(dataset.test_y)
        self.augment = Augment(
            dataset.mean,
            dataset.std,
            crop_padding=dataset.crop_padding,
            flip=dataset.flip,
            setting=settings.augment,
            num_classes=dataset.num_classes,
        )
        torch.manual_seed(seed)
        model = build(settings.model, num_classes=dataset.num_classes, in_shape=dataset.in_shape)
        self.init_checksum = model_checksum(model)
        model = model.to(self.device)
        if len(dataset.in_shape) == 3:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = model
        self.batch_size = min(settings.batch_size, len(self.train_x))
        self.steps_per_epoch = len(self.train_x) // self.batch_size
        self.total_steps = self.steps_per_epoch * settings.epochs
        peak = settings.learning_rate(arm.optimizer)
        self.optimizer = make_optimizer(
            arm, self.model, peak, settings.momentum, settings.weight_decay
        )
        self.attachment: Attachment = attach(self.optimizer, arm.transform, model=self.model)
        warmup = round(settings.warmup_epochs * self.steps_per_epoch)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lr_factor(settings.schedule, self.total_steps, warmup)
        )
        self.amp_dtype = _amp_dtype(settings.amp, self.device)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype == torch.float16
        )
        self.history = _History([], [], [], [], [])
        self.batches = BatchChecksum(self.device)
        self.step = 0
        self.train_seconds = 0.0
        self.diverged_at: int | None = None

    def run(self) -> dict[str, Any]:
        """Train to the end, from the checkpoint where there is one; returns `result.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists():
            self._restore(load_checkpoint(checkpoint, self.device))
        recorder = self._recorder()
        try:
            for epoch in range(len(self.history.epoch), self.settings.epochs):
                self._train_epoch(epoch, recorder)
                if self.diverged_at is not None:
                    break
                if recorder is not None:
                    recorder.flush()  # what the checkpoint counts as done is on disk before it
                save_checkpoint(checkpoint, self._state())
        finally:
            if recorder is not None:
                recorder.close()
        result = self._result()
        write_json(self.folder / "result.json", result)
        checkpoint.unlink(missing_ok=True)
        return result

    def _train_epoch(self, epoch: int, recorder: Recorder | None) -> None:
        # A seed of its own for each epoch: nothing about the streams has to be checkpointed.
        stream = self.seed * 1_000_003 + epoch
        order = torch.randperm(
            len(self.train_x), generator=torch.Generator().manual_seed(stream)
        ).to(self.device)
        generator = torch.Generator(self.device).manual_seed(stream)
        total = torch.zeros((), device=self.device)
        last_report = started = time.perf_counter()
        self.model.train()
        for i in range(self.steps_per_epoch):
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            inputs, targets = self.augment(self.train_x[index], self.train_y[index], generator)
            self.batches.add(inputs, targets)
            loss = self._train_step(inputs, targets)
            total += loss
            if recorder is not None:
                recorder.log(loss=loss, lr=self.optimizer.param_groups[0]["lr"])
            self.scheduler.step()
            self.step += 1
            if time.perf_counter() - last_report > REPORT_SECONDS:
                if not self._report(total):
                    break
                last_report = time.perf_counter()
        if self.diverged_at is None and self._report(total):
            self.train_seconds += time.perf_counter() - started
            self._evaluate(epoch, float(total) / self.steps_per_epoch)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with self._autocast():
            outputs = self.model(inputs)
            loss = F.cross_entropy(
                outputs.float(), targets, label_smoothing=self.augment.label_smoothing
            )
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _report(self, total: Tensor) -> bool:
        """Say how far the trial is; False where the loss is no longer a number."""
        value = float(total)
        if not math.isfinite(value):
            self.diverged_at = self.step
        self.progress({"event": "step", "step": self.step, "steps": self.total_steps})
        return self.diverged_at is None

    def _evaluate(self, epoch: int, train_loss: float) -> None:
        self.model.eval()
        correct = torch.zeros((), device=self.device)
        loss = torch.zeros((), device=self.device)
        with torch.no_grad(), self._autocast():
            for start in range(0, len(self.test_x), EVAL_BATCH):
                targets = self.test_y[start : start + EVAL_BATCH]
                inputs = self.augment.prepare_eval(self.test_x[start : start + EVAL_BATCH])
                outputs = self.model(inputs).float()
                loss += F.cross_entropy(outputs, targets, reduction="sum")
                correct += (outputs.argmax(1) == targets).sum()
        history = self.history
        history.step.append(self.step)
        history.epoch.append(epoch + 1)
        history.train_loss.append(train_loss)
        history.test_loss.append(float(loss) / len(self.test_x))
        history.test_accuracy.append(float(correct) / len(self.test_x))
        self.progress({"event": "epoch", "epoch": epoch + 1, "accuracy": history.test_accuracy[-1]})

    def _recorder(self) -> Recorder | None:
        if self.settings.record_every == 0:
            return None
        out = self.folder / "watch"
        meta = {"method": self.arm.name, "seed": self.seed, "model": self.settings.model}
        return Recorder(
            self.attachment,
            out,
            every=self.settings.record_every,
            meta=meta,
            resume_from=self.step if (out / "run.json").exists() else None,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "method": self.arm.name,
            "seed": self.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "scaler": self.scaler.state_dict(),
            "history": vars(self.history),
            "batches": self.batches.value,
            "init_checksum": self.init_checksum,
            "step": self.step,
            "train_seconds": self.train_seconds,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.last_epoch = state["scheduler"]["last_epoch"]
        self.scaler.load_state_dict(state["scaler"])
        self.history = _History(**state["history"])
        self.batches = BatchChecksum(self.device, state["batches"])
        self.step = state["step"]
        self.train_seconds = state["train_seconds"]

    def _result(self) -> dict[str, Any]:
        history = self.history
        diverged = self.diverged_at is not None
        seconds = max(self.train_seconds, 1e-9)
        trained = len(history.epoch) * self.steps_per_epoch * self.batch_size
        return {
            "method": self.arm.name,
            "seed": self.seed,
            "status": "diverged" if diverged else "finished",
            # A model of NaNs knows nothing: it counts as guessing, and is not dropped.
            "test_accuracy": 1.0 / self.dataset.num_classes
            if diverged
            else history.test_accuracy[-1],
            "test_loss": None if diverged else history.test_loss[-1],
            "history": vars(history),
            "steps": self.step,
            "diverged_at_step": self.diverged_at,
            "wall_time_s": self.train_seconds,
            "samples_per_s": trained / seconds if trained else None,
            "peak_memory_bytes": _peak_memory(self.device),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "skipped": self.attachment.skipped,
            "init_checksum": self.init_checksum,
            "batches_checksum": f"{self.batches.value & (2**64 - 1):016x}",
            "learning_rate": self.settings.learning_rate(self.arm.optimizer),
            "device": torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else self.device.type,
        }

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


def _amp_dtype(mode: str, device: torch.device) -> torch.dtype | None:
    if mode == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mode]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
