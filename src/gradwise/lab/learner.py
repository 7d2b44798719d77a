"""A model that learns: its optimizer, schedule, precision and transforms, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradwise.attach import Attachment, attach
from gradwise.lab.augment import Augment
from gradwise.lab.compiled import Compiled, filled
from gradwise.lab.data import Dataset
from gradwise.lab.evaluation import Evaluations
from gradwise.lab.fairness import model_checksum
from gradwise.lab.methods import Arm, make_optimizer
from gradwise.lab.models import build
from gradwise.lab.schedule import lr_factor
from gradwise.lab.seeding import seed_everything
from gradwise.lab.settings import Settings

EVAL_BATCH = 1024
_AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """All that training changes, as it is before the first step, and how a step changes it.

    Args:
        settings: resolved ones, without "auto".
        arm: the method.
        seed: of the weights.
        dataset: says what goes in and what comes out.
        augment: prepares the rows that are evaluated, and says how labels are smoothed.
        steps_per_epoch: batches an epoch.

    Attributes:
        device: where the model is.
        model: in channels_last memory where it takes images.
        init_checksum: of the weights before the first step.
        optimizer: the arm's.
        attachment: the arm's transforms at work on it.
        steps: batches learned from so far.
        compiled: what passes over the model go through, once `prepare` has made it; else None.

    Raises:
        UserError: where the model does not fit the data.
    """

    def __init__(
        self,
        settings: Settings,
        arm: Arm,
        seed: int,
        dataset: Dataset,
        augment: Augment,
        steps_per_epoch: int,
    ) -> None:
        self.device = torch.device(settings.device)
        self.augment = augment
        seed_everything(seed)
        model = build(settings.model, num_classes=dataset.num_classes, in_shape=dataset.in_shape)
        self.init_checksum = model_checksum(model)
        model = model.to(self.device)
        if len(dataset.in_shape) == 3:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = model
        self.optimizer = make_optimizer(
            arm,
            self.model,
            settings.learning_rate(arm.optimizer),
            settings.momentum,
            settings.weight_decay,
        )
        self.attachment: Attachment = attach(self.optimizer, arm.transform, model=self.model)
        self.compiled: Compiled | None = None
        self._threads = settings.threads
        self._eval_batch = EVAL_BATCH
        self._closure = arm.closure
        self.steps = 0
        self._peak = settings.learning_rate(arm.optimizer)
        self._factor = lr_factor(
            settings.schedule,
            steps_per_epoch * settings.epochs,
            round(settings.warmup_epochs * steps_per_epoch),
        )
        self._amp_dtype = _AMP_DTYPES[settings.amp]
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self._amp_dtype == torch.float16
        )

    @property
    def lr(self) -> float:
        """The learning rate of the step that comes next."""
        return self._peak * self._factor(self.steps)

    def prepare(self, inputs: Tensor, targets: Tensor, rows: Tensor) -> str | None:
        """Compile the passes over the model, where that is possible; weights stay as they are.

        Streams of random numbers go on; whoever needs them seeds them afterwards.

        Args:
            inputs: augmented rows `[B, ...]`, as many as in every step to come.
            targets: as in `step`.
            rows: as the first call of `evaluate` will have them.

        Returns:
            Why the passes stay as they are, or None.

        Raises:
            torch.OutOfMemoryError: where the device has not enough memory.
        """
        if self._closure == "loss":
            return "its optimizer differentiates the loss itself"
        batch = min(EVAL_BATCH, len(rows))
        try:
            compiled = Compiled(
                self._loss, self._outputs, self.device, self._threads, graphs=self._closure is None
            )
            ready = self.augment.prepare_eval(rows[:batch])
            compiled.rehearse(self.model, inputs, targets, ready)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in all ways; what the model gets wrong by
            # itself is told when it runs without them
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        self.compiled, self._eval_batch = compiled, batch
        return None

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Learn from one batch.

        Args:
            inputs: augmented rows `[B, ...]`.
            targets: labels `[B]`, or a distribution over the classes in each row `[B, C]`.

        Returns:
            The batch's loss before the step, 0-d, on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        if self._closure is not None:
            return self._evaluated(inputs, targets, backward=self._closure == "gradient")
        self.optimizer.zero_grad()  # first of all: a replayed graph writes where gradients were
        loss = self._batch_loss(inputs, targets)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.steps += 1
        return loss.detach() if self.compiled is None else loss.detach().clone()

    def _batch_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return (self._loss if self.compiled is None else self.compiled.loss)(inputs, targets)

    def _outputs(self, inputs: Tensor) -> Tensor:
        with self._autocast():
            outputs: Tensor = self.model(inputs)
        return outputs.float()

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with self._autocast():
            outputs = self.model(inputs)
            return F.cross_entropy(
                outputs.float(), targets, label_smoothing=self.augment.label_smoothing
            )

    def _evaluated(self, inputs: Tensor, targets: Tensor, *, backward: bool) -> Tensor:
        """A step of an optimizer that evaluates the batch itself, as often as it likes."""
        batch = Evaluations(
            self.model,
            self.optimizer,
            lambda: self._batch_loss(inputs, targets),
            backward=backward,
        )
        # torch's own optimizers are annotated for a number and take a tensor.
        self.optimizer.step(batch)  # type: ignore[arg-type]
        batch.close()
        self.steps += 1
        assert batch.first is not None
        return batch.first

    def evaluate(self, rows: Tensor, labels: Tensor) -> tuple[float, float]:
        """How well the model does on rows that it does not learn from; this waits for the device.

        Args:
            rows: as stored, `[N, ...]`.
            labels: `[N]`.

        Returns:
            The mean cross entropy, and the share of rows that are classified rightly.
        """
        training = self.model.training
        self.model.eval()
        correct = torch.zeros((), device=self.device)
        total = torch.zeros((), device=self.device)
        size = self._eval_batch
        with torch.no_grad():
            for start in range(0, len(rows), size):
                targets, batch = labels[start : start + size], rows[start : start + size]
                if self.compiled is None:
                    outputs = self._outputs(self.augment.prepare_eval(batch))
                else:  # an incomplete batch would be compiled anew
                    inputs = self.augment.prepare_eval(filled(batch, size))
                    outputs = self.compiled.outputs(inputs)[: len(targets)]
                total += F.cross_entropy(outputs, targets, reduction="sum")
                correct += (outputs.argmax(1) == targets).sum()
        self.model.train(training)
        return float(total) / len(rows), float(correct) / len(rows)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; the transforms' state rides in the optimizer's."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Args:
            state: of a learner made with the same arguments.

        Raises:
            LookupError: where an entry is missing.
            RuntimeError: where the weights do not fit.
            ValueError: where the optimizer's state does not.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self._scaler.load_state_dict(state["scaler"])

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._amp_dtype)
