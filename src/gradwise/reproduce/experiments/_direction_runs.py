"""A training whose search-direction noise is looked at on the way, and noise at a point at rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradwise.analysis.noise import Direction, gradient_noise, search_direction_noise
from gradwise.errors import UserError
from gradwise.lab.data import load
from gradwise.lab.models.resnet import ResNet
from gradwise.reproduce.cells import Tell

RULES = ("sgd", "shb", "nshb")
CRITERIA = ("gradient", "loss")
NETWORKS = ("resnet18", "cnn", "mlp")
CHUNK = 1000  # samples in one pass
LOOK = 4, 64  # fewest and most batches that one look draws
COMPARED = 16, 256  # and a comparison of batch sizes, which is made only twice
BURN_IN = 0.01  # share of the first buffer that is left where draws at rest begin to count


@dataclass(frozen=True)
class Images:
    """Normalised inputs [n, C, H, W] and targets [n], on the device."""

    inputs: Tensor
    targets: Tensor
    classes: int

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """As the analyses take them."""
        return self.inputs, self.targets


def images(settings: dict[str, Any]) -> Images:
    """The training set, or the first part of it, without augmentation."""
    data = load(settings["data"], settings["data_dir"])
    data = data.subset(settings["train_images"] or None, None)
    mean, std = (z.view(1, -1, 1, 1) for z in (data.mean, data.std))
    # uint8 is kept in 0..255, means are of 0..1.
    x = data.train_x.float() / (1 if data.train_x.is_floating_point() else 255)
    x = F.avg_pool2d((x - mean) / std, settings["pool"]).to(settings["device"])
    y = data.train_y.to(settings["device"])
    return Images(x.contiguous(memory_format=torch.channels_last), y, data.num_classes)


def network(name: str, data: Images) -> nn.Module:
    """One of `NETWORKS` for these images, with weights of torch's random stream."""
    channels = data.inputs.shape[1]
    if name == "resnet18":
        return ResNet(
            [2, 2, 2, 2], [64, 128, 256, 512], num_classes=data.classes, in_channels=channels
        )
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(data.inputs[0].numel(), 32),
            nn.ReLU(),
            nn.Linear(32, data.classes),
        )
    # Group norm is the same function in training and in evaluation mode.
    layers: list[nn.Module] = []
    for ins, outs, stride in ((channels, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.GroupNorm(4, outs), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, data.classes)]
    return nn.Sequential(*layers)


def optimizer_of(rule: str, model: nn.Module, lr: float, beta: float) -> torch.optim.SGD:
    """SGD by one of `RULES`, whose buffer starts at 0 as the authors' does [V].

    Left to itself torch puts the first gradient into the buffer without damping it.
    """
    momentum = 0.0 if rule == "sgd" else beta
    dampening = beta if rule == "nshb" else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, dampening=dampening)
    if momentum:
        for param in model.parameters():
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
    return optimizer


@dataclass(frozen=True)
class Trained:
    """A training that came to its end; `found` are its plain values."""

    model: nn.Module
    found: dict[str, Any]


def train(
    settings: dict[str, Any],
    data: Images,
    rule: str,
    size: int,
    seed: int,
    tell: Tell,
    *,
    also: Sequence[int] = (),
) -> Trained | None:
    """Train with one rule at one batch size, and look at the noise of coming steps.

    Args:
        settings: of the recipe.
        data: to train on.
        rule: one of `RULES`.
        size: b, in samples.
        seed: of weights and batches, the same for all rules.
        tell: told the steps done and all.
        also: batch sizes whose gradient noise is measured at the first and the last look too.

    Returns:
        None where it diverged.
    """
    n = len(data.inputs)
    each_epoch = n // size
    steps = each_epoch * settings["epochs"]
    torch.manual_seed(seed)
    model = network(settings["network"], data).to(settings["device"])
    optimizer = optimizer_of(rule, model, settings["lr"], settings["beta"])
    generator = torch.Generator().manual_seed(seed)
    looks = _spaced(steps, settings["looks"])
    checks = {0, *_spaced(steps, settings["checks"])}
    gate = _Threshold(settings, each_epoch)
    found: dict[str, Any] = {"at": looks, "courses": [], "noises": [], "losses": []}
    order = torch.empty(0)
    for step in range(steps + 1):
        if step in checks and not gate.check(model, data, step):
            return None
        if step in looks:
            loss = mean_loss(model, data)
            if not math.isfinite(loss):
                return None
            found["losses"].append(loss)
            found["courses"].append(_look(settings, data, model, optimizer, size, seed + step))
            if also and step in (looks[0], looks[-1]):
                found["noises"].append(_noises(settings, data, model, also, seed + step))
        if step == steps:
            break
        place = step % each_epoch * size
        if place == 0:
            order = torch.randperm(n, generator=generator).to(data.inputs.device)
        chosen = order[place : place + size]
        loss_now = F.cross_entropy(model(data.inputs[chosen]), data.targets[chosen])
        optimizer.zero_grad()
        loss_now.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tell(step + 1, steps)
    return Trained(model, {**found, "steps": steps, "reached": gate.reached})


def _spaced(steps: int, count: int) -> list[int]:
    """So many places, the last of them at the end, as far as there are steps."""
    return sorted({max(round(k * steps / count), 1) for k in range(1, count + 1)})


def _look(
    settings: dict[str, Any],
    data: Images,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    size: int,
    seed: int,
) -> dict[str, float | None]:
    """The noise of the coming step, at the point where it begins."""
    found = search_direction_noise(
        model,
        F.cross_entropy,
        data.pair,
        Direction.of(optimizer, model),
        batch_size=size,
        batches=_batches(settings["draws"], size, LOOK),
        chunk_size=CHUNK,
        seed=seed,
    )
    noise = found.gradient
    return {
        "noise": found.noise,
        "lag2": found.lag**2,
        "spread": found.spread,
        "norm": noise.norm,
        "variance": noise.variance,
        "c2": noise.c2,
    }


def _noises(
    settings: dict[str, Any], data: Images, model: nn.Module, sizes: Sequence[int], seed: int
) -> list[float | None]:
    """E|g - G|^2 at one point by batch size, as of draws with replacement."""
    found: list[float | None] = []
    for k, size in enumerate(sizes):
        noise = gradient_noise(
            model,
            F.cross_entropy,
            data.pair,
            batch_size=size,
            batches=_batches(4 * settings["draws"], size, COMPARED),
            chunk_size=CHUNK,
            seed=seed + 7919 * (k + 1),  # draws of their own
        )
        found.append(None if noise.c2 is None else noise.c2 / size)
    return found


def _batches(samples: int, size: int, bounds: tuple[int, int]) -> int:
    return min(max(samples // size, bounds[0]), bounds[1])


class _Threshold:
    """When a training first meets the criterion, looked at in checks of the whole set."""

    def __init__(self, settings: dict[str, Any], each_epoch: int) -> None:
        self.reached: int | None = None
        self._kind, self._threshold = settings["criterion"], settings["threshold"]
        self._from = settings["not_before"] * each_epoch
        self._squares: list[float] = []

    def check(self, model: nn.Module, data: Images, step: int) -> bool:
        """Look at the point before a step; False where it is not finite."""
        if self.reached is not None:
            return True
        value = mean_loss(model, data)
        if not math.isfinite(value):
            return False
        if self._kind == "gradient":
            point = gradient_noise(
                model, F.cross_entropy, data.pair, batch_size=1, batches=1, chunk_size=CHUNK
            )
            self._squares.append(point.norm**2)
            value = math.sqrt(math.fsum(self._squares) / len(self._squares))
        if step > self._from and value <= self._threshold:
            self.reached = step
        return True


@torch.no_grad()
def mean_loss(model: nn.Module, data: Images) -> float:
    """Of the whole set, in evaluation mode."""
    model.eval()
    parts = zip(torch.split(data.inputs, CHUNK), torch.split(data.targets, CHUNK), strict=True)
    total = math.fsum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in parts)
    model.train()
    return total / len(data.inputs)


def at_rest(
    settings: dict[str, Any], data: Images, model: nn.Module, size: int, seed: int
) -> dict[str, float]:
    """Spread of each rule over that of batch gradients, all steps taken at one point.

    The rules run along the same independent batches; nothing moves.
    """
    beta = settings["beta"]
    n, params = len(data.inputs), [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    model.eval()

    def gradient(index: Tensor) -> Tensor:
        loss = F.cross_entropy(model(data.inputs[index]), data.targets[index])
        grads = torch.autograd.grad(loss, params)
        return torch.cat([g.reshape(-1) for g in grads]).double()

    device = data.inputs.device
    parts = torch.split(torch.arange(n, device=device), CHUNK)
    mean = torch.stack([gradient(part) * (len(part) / n) for part in parts]).sum(0)
    noise = torch.zeros_like(mean)  # of SHB; NSHB's is (1 - beta) times it: both are linear
    first = math.ceil(math.log(BURN_IN) / math.log(beta)) if beta > 0 else 0
    fresh, heavy = 0.0, 0.0
    for draw in range(first + settings["rest_draws"]):
        index = torch.randperm(n, generator=generator)[:size].to(device)
        off = gradient(index) - mean
        noise = beta * noise + off
        if draw >= first:
            fresh += float(off @ off)
            heavy += float(noise @ noise)
    model.train()
    if fresh == 0:
        raise UserError("expected batch gradients that differ from each other, got equal ones")
    return {"sgd": 1.0, "shb": heavy / fresh, "nshb": (1 - beta) ** 2 * heavy / fresh}
