"""One trial: train one model with one method and one seed, and write down what happened."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.lab import outcome
from gradwise.lab.augment import Augment
from gradwise.lab.checkpoint import load_checkpoint, save_checkpoint
from gradwise.lab.data import Dataset
from gradwise.lab.fairness import BatchChecksum
from gradwise.lab.files import write_json
from gradwise.lab.holdout import hold_out
from gradwise.lab.learner import Learner
from gradwise.lab.methods import Arm
from gradwise.lab.outcome import History
from gradwise.lab.seeding import derived_seed, seed_everything
from gradwise.lab.settings import Settings
from gradwise.watch import Recorder
from gradwise.watch import load as load_run

REPORT_SECONDS = 0.5  # between two signs of life; each waits for the device once
Progress = Callable[[dict[str, Any]], None]


class Trial:
    """Trains a model from a seed under a method, checkpointing every epoch.

    Weights, batches and augmentation depend on the seed alone, never on the method, and every
    random stream restarts from seed and epoch, so that a trial resumed from a checkpoint gives the
    numbers of one that was never interrupted. (A model of the user's has to keep in its
    `state_dict` whatever it changes while it trains.)

    A trial diverges where the loss of a batch, or that of the test set, is no finite number: it
    ends there and counts as guessing.

    Where the settings hold rows out of the training set, the trial never trains on them, and says
    after each epoch how well it does on them, beside the test set.

    Args:
        settings: what all trials share.
        arm: the method.
        seed: of weights, order and augmentation.
        dataset: already loaded.
        folder: where checkpoint, result and records go.
        progress: told about the trial now and then.

    Raises:
        UserError: where the settings do not fit the data or the model.
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
        self.settings = settings.resolved()
        self.arm = arm
        self.seed = seed
        held: tuple[Tensor, ...] = ()
        if self.settings.validation is not None:
            dataset, *parts = hold_out(dataset, self.settings.validation)
            held = tuple(parts)
        self.dataset = dataset
        self.folder = folder
        self.progress = progress
        self.device = torch.device(self.settings.device)
        torch.set_num_threads(settings.threads)
        self.train_x, self.train_y = self._move(dataset.train_x), self._move(dataset.train_y)
        self.test_x, self.test_y = self._move(dataset.test_x), self._move(dataset.test_y)
        self.validation = tuple(map(self._move, held))  # rows and labels, or empty
        self.augment = Augment(
            dataset.mean,
            dataset.std,
            crop_padding=dataset.crop_padding,
            flip=dataset.flip,
            setting=settings.augment,
            num_classes=dataset.num_classes,
        )
        self.batch_size = min(settings.batch_size, len(self.train_x))
        self.steps_per_epoch = len(self.train_x) // self.batch_size
        self.total_steps = self.steps_per_epoch * settings.epochs
        self._begin()

    def _begin(self) -> None:
        """Make all that training changes, as it is before the first step."""
        self.learner = Learner(
            self.settings, self.arm, self.seed, self.dataset, self.augment, self.steps_per_epoch
        )
        self.history = History()
        self.batches = BatchChecksum(self.device)
        self.step = 0
        self.train_seconds = 0.0
        self.diverged_at: int | None = None
        # As they were after the last whole epoch: a trial that diverges notices it now or a
        # little later, and its result must not depend on when.
        self._counted = {"batches": 0, "skipped": 0}
        self._measured = False  # whether the device's memory has seen all that an epoch needs

    def _compile(self) -> None:
        """Compile what the settings ask for; where that fails, say so and go on without."""
        if not self.settings.compile:
            return
        generator = _generator(self.device, "compile", self.seed, 0)
        batch = torch.arange(self.batch_size, device=self.device)
        inputs, targets = self.augment(self.train_x[batch], self.train_y[batch], generator)
        reason = self.learner.prepare(inputs, targets, self.test_x)
        if reason is not None:
            self._note(f"runs without torch.compile, because {reason}", once=True)

    def run(self) -> dict[str, Any]:
        """Train to the end, from the checkpoint where there is a good one.

        Returns:
            What `result.json` holds.

        Raises:
            OSError: where the disk refuses; what was written before is whole.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._compile()
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists():
            self._resume(checkpoint)
        self._tell_step()
        recorder = self._recorder()
        with recorder or nullcontext():
            for epoch in range(len(self.history.epoch), self.settings.epochs):
                self._train_epoch(epoch, recorder)
                if self.diverged_at is not None:
                    break
                if recorder is not None:
                    recorder.flush()  # what the checkpoint counts as done is on disk before it
                save_checkpoint(checkpoint, self._state())
            if recorder is not None:
                recorder.close(last_step=self.diverged_at)
        result = self._result()
        write_json(self.folder / "result.json", result)
        checkpoint.unlink(missing_ok=True)
        return result

    def _train_epoch(self, epoch: int, recorder: Recorder | None) -> None:
        # Streams of their own for each epoch: nothing about them has to be checkpointed.
        order = torch.randperm(
            len(self.train_x), generator=_generator("cpu", "order", self.seed, epoch)
        ).to(self.device)
        generator = _generator(self.device, "augment", self.seed, epoch)
        seed_everything(derived_seed("model", self.seed, epoch))  # dropout and the like
        losses = torch.zeros(self.steps_per_epoch, device=self.device)
        last_report = started = time.perf_counter()
        self.learner.model.train()
        for i in range(self.steps_per_epoch):
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            inputs, targets = self.augment(self.train_x[index], self.train_y[index], generator)
            self.batches.add(inputs, targets)
            if recorder is not None:
                recorder.begin(self.step)
            lr = self.learner.lr
            losses[i] = loss = self.learner.step(inputs, targets)
            if recorder is not None:
                recorder.log(loss=loss, lr=lr)
            self.step += 1
            if time.perf_counter() - last_report > REPORT_SECONDS:
                if self._diverged(losses[: i + 1]):
                    break
                self._tell_step()
                last_report = time.perf_counter()
        else:
            self._diverged(losses)
        self.train_seconds += time.perf_counter() - started
        if self.diverged_at is None:
            self._tell_step()
            self._evaluate(epoch, float(losses.cpu().double().mean()))

    def _diverged(self, losses: Tensor) -> bool:
        """Look for the first loss of this epoch that is no number; this waits for the device."""
        bad = losses.isfinite().logical_not().nonzero()
        if len(bad):
            self.step += int(bad[0]) - len(losses)
            self.diverged_at = self.step
        return self.diverged_at is not None

    def _tell_step(self) -> None:
        told = {"event": "step", "step": self.step, "steps": self.total_steps}
        self.progress({**told, **self._memory()})

    def _memory(self) -> dict[str, Any]:
        """What those who share the device want to know, as soon as it means something."""
        memory = outcome.device_memory(self.device) if self._measured else None
        return {} if memory is None else {"memory": memory}

    def _evaluate(self, epoch: int, train_loss: float) -> None:
        loss, accuracy = self.learner.evaluate(self.test_x, self.test_y)
        if not math.isfinite(loss):  # the last update broke the model
            self.diverged_at = self.step
            return
        held_out = {}
        if self.validation:
            held_loss, held_accuracy = self.learner.evaluate(*self.validation)
            if not math.isfinite(held_loss):
                self.diverged_at = self.step
                return
            held_out = {"validation_loss": held_loss, "validation_accuracy": held_accuracy}
        self.history.add(
            step=self.step,
            epoch=epoch + 1,
            train_loss=train_loss,
            test_loss=loss,
            test_accuracy=accuracy,
            **held_out,
        )
        self._counted = {"batches": self.batches.value, "skipped": self.learner.attachment.skipped}
        self._measured = True
        told = {"event": "epoch", "epoch": epoch + 1, "accuracy": accuracy}
        self.progress({**told, **self._memory()})

    def _recorder(self) -> Recorder | None:
        """A recorder that goes on where the trial does; a record that is damaged begins anew."""
        if self.settings.record_every == 0:
            return None
        out, resume_from = self.folder / "watch", None
        if self.step > 0:
            try:
                load_run(out)
                resume_from = self.step
            except UserError as error:
                self._note(f"its record begins anew at step {self.step}, because {error}")
        if resume_from is None:
            shutil.rmtree(out, ignore_errors=True)
        return Recorder(
            self.learner.attachment,
            out,
            every=self.settings.record_every,
            meta=self._meta(),
            resume_from=resume_from,
            first_step=self.step,
        )

    def _meta(self) -> dict[str, Any]:
        meta = {"method": self.arm.name, "seed": self.seed, "model": self.settings.model}
        if self.validation:  # one learning rate of several
            meta["learning_rate"] = self.settings.learning_rate(self.arm.optimizer)
        return meta

    def _owner(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the trial that goes on from it."""
        settings = self.settings.to_dict()
        del settings["data_dir"]  # the content counts, not the place
        return {
            "method": self.arm.name,
            "seed": self.seed,
            "settings": settings,
            "dataset": self.dataset.fingerprint,
            "init_checksum": self.learner.init_checksum,
            **self._compiled(),
        }

    def _compiled(self) -> dict[str, bool]:
        """Whether it really is compiled, where that was asked for: it decides how sums round."""
        return {"compiled": self.learner.compiled is not None} if self.settings.compile else {}

    def _state(self) -> dict[str, Any]:
        return {
            **self._owner(),
            **self.learner.state_dict(),
            "history": self.history.to_dict(),
            "counted": self._counted,
            "step": self.step,
            "train_seconds": self.train_seconds,
        }

    def _resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; one that cannot be used costs time, but not the trial."""
        try:
            self._restore(load_checkpoint(checkpoint, self.device, self._owner()))
        except UserError as error:
            self._note(f"begins anew, because {error}")
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            self._note(f"begins anew, because {checkpoint.name} does not fit: {error}")
            self._begin()
            self._compile()

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
        self.history = History(**state["history"])
        self._counted = dict(state["counted"])
        self.batches = BatchChecksum(self.device, self._counted["batches"])
        self.step = state["step"]
        self.train_seconds = state["train_seconds"]

    def _note(self, text: str, *, once: bool = False) -> None:
        # What all trials of a comparison would say is told to the user once.
        self.progress({"event": "note", "text": text, **({"once": True} if once else {})})

    def _result(self) -> dict[str, Any]:
        # Steps after a divergence, until it is noticed, would spoil the figure.
        rows = 0 if self.diverged_at is not None else self.step * self.batch_size
        ended = self.history, self.diverged_at, self.dataset.num_classes
        return {
            "method": self.arm.name,
            "seed": self.seed,
            **outcome.verdict(*ended),
            **(outcome.validated(*ended) if self.validation else {}),
            "history": self.history.to_dict(),
            "steps": self.step,
            "wall_time_s": self.train_seconds,
            "samples_per_s": rows / self.train_seconds if rows else None,
            "peak_memory_bytes": outcome.peak_memory(self.device),
            "parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "skipped": self._counted["skipped"],
            "init_checksum": self.learner.init_checksum,
            "batches_checksum": f"{self._counted['batches'] & (2**64 - 1):016x}",
            "learning_rate": self.settings.learning_rate(self.arm.optimizer),
            **self._compiled(),
            "device": outcome.device_name(self.device),
            "versions": outcome.versions_here(),
        }

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


def _generator(device: str | torch.device, purpose: str, seed: int, epoch: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(purpose, seed, epoch))
