"""A tiny language model from a config, its data, and a Trainer that keeps quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from integrations.hosted import Spy

BATCH = 2


def sentences(count: int) -> list[dict[str, Tensor]]:
    made = torch.Generator().manual_seed(1)
    ids = [torch.randint(16, (6,), generator=made) for _ in range(count)]
    return [{"input_ids": one, "labels": one} for one in ids]


def language_model() -> nn.Module:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=16,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    # As the Trainer does, which counts the first token too, though nothing predicts it.
    loss: Tensor = model(**batch, num_items_in_batch=batch["labels"].numel()).loss
    return loss


class InOrder(Trainer):  # type: ignore[misc]
    """Takes the data in their order and writes down what it does."""

    events: list[str]

    def get_train_dataloader(self) -> Any:
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=BATCH))

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.events.append("backward")
        return loss


class Notes(TrainerCallback):  # type: ignore[misc]
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.events.append(f"on_pre_optimizer_step {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.events.append(f"on_log {state.global_step}")


def trainer(
    folder: Path,
    *callbacks: Any,
    optimizer: torch.optim.Optimizer | None = None,
    model: nn.Module | None = None,
    data: int = 12,
    **options: Any,
) -> Any:
    """A Trainer with a `Spy` for an optimizer, if it is given no other."""
    model = language_model() if model is None else model
    events: list[str] = []
    spy = Spy(model.parameters(), 0.5, events) if optimizer is None else optimizer
    defaults = {
        "per_device_train_batch_size": BATCH,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
    }
    made = InOrder(
        model,
        TrainingArguments(str(folder), **{**defaults, **options}),
        train_dataset=sentences(data),
        eval_dataset=sentences(2),
        callbacks=[*callbacks, Notes(events)],
        optimizers=(spy, None),
    )
    made.remove_callback(PrinterCallback)
    made.events, made.spy = events, spy
    return made
