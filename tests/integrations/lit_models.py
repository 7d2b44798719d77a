"""Small Lightning modules, and a trainer that keeps quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from integrations.hosted import Spy

BATCH = 4


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(BATCH, 6, generator=made), torch.randint(3, (BATCH,), generator=made))
        for _ in range(count)
    ]


def loader(count: int, seed: int = 1) -> Any:
    xs, ys = zip(*batches(count, seed), strict=True)
    return DataLoader(TensorDataset(torch.cat(xs), torch.cat(ys)), batch_size=BATCH)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def loss_of(net: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(net(batch[0]), batch[1])


class Classifier(pl.LightningModule):
    """Writes down what happens to it."""

    def __init__(self, lr: float = 0.5) -> None:
        super().__init__()
        self.net, self.lr = network(), lr
        self.events: list[str] = []
        self.spies: list[Spy] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.events.append("training_step")
        return loss_of(self.net, batch)

    def on_after_backward(self) -> None:
        self.events.append("backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append("on_before_optimizer_step")

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.events.append("clip")
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        self.spies = [Spy(self.parameters(), self.lr, self.events)]
        return self.spies[0]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.named_parameters()]


class Validated(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("validation_step")


def trainer(folder: Path, *callbacks: Any, host: Any = pl, **options: Any) -> Any:
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return host.Trainer(
        default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **options}
    )
