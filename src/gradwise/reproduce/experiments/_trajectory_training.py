"""A residual network on images, its trajectory, and the same run with norm layers alone."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradwise.analysis.trajectory import TrajectoryRecorder, TrajectoryReport, freeze_all_but_norms
from gradwise.lab.data import load
from gradwise.lab.models.resnet import ResNet
from gradwise.reproduce.cells import Tell

CHUNK = 1000  # images in a forward pass of evaluation


class Training:
    """One network under one condition, epoch by epoch.

    What an epoch draws depends on the seed and on the epoch alone: a run that is taken up again
    from a state sees the batches that the first one saw.

    Args:
        settings: of the recipe.
        decay: whether weight decay is on.
        momentum: whether momentum is on.
        seed: of weights and of what epochs draw.
    """

    def __init__(self, settings: dict[str, Any], *, decay: bool, momentum: bool, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.device = torch.device(settings["device"])
        data = load(settings["data"], settings["data_dir"])
        data = data.subset(settings["train_images"] or None, settings["test_images"] or None)
        self.mean, self.std = (z.view(1, -1, 1, 1) for z in (data.mean, data.std))
        self.x, self.y = self._prepared(data.train_x), data.train_y.to(self.device)
        self.test_x, self.test_y = self._prepared(data.test_x), data.test_y.to(self.device)
        self.flip = data.flip
        torch.manual_seed(seed)
        blocks = settings["blocks"]
        widths = [settings["width"] * 2**k for k in range(len(blocks))]
        model = ResNet(blocks, widths, num_classes=data.num_classes, in_channels=self.x.shape[1])
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings["lr"],
            momentum=settings["momentum"] if momentum else 0.0,
            weight_decay=settings["weight_decay"] if decay else 0.0,
        )
        self.batch = min(settings["batch_size"], len(self.x))
        self.each_epoch = len(self.x) // self.batch
        self.steps = self.each_epoch * settings["epochs"]
        self.order = self.mirrored = torch.empty(0)  # of the epoch under way

    def _prepared(self, x: Tensor) -> Tensor:
        # uint8 is kept in 0..255, means are of 0..1.
        x = ((x.float() / (1 if x.is_floating_point() else 255)) - self.mean) / self.std
        x = F.avg_pool2d(x, self.settings["pool"])
        return x.to(self.device).contiguous(memory_format=torch.channels_last)

    def step(self, step: int) -> Tensor:
        """The step after so many; returns the loss of its batch, on the device."""
        epoch, place = divmod(step, self.each_epoch)
        if place == 0:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self.order = torch.randperm(len(self.x), generator=generator).to(self.device)
            mirrored = torch.rand(len(self.x), generator=generator) < 0.5
            self.mirrored = mirrored.to(self.device) & self.flip
        drops = sum(step >= round(share * self.steps) for share in self.settings["drops"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["lr"] * 0.1**drops
        chosen = self.order[place * self.batch : (place + 1) * self.batch]
        x = self.x[chosen]
        if self.flip:
            x = x.flip(3).where(self.mirrored[chosen].view(-1, 1, 1, 1), x)
        loss = F.cross_entropy(self.model(x), self.y[chosen])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """A copy of all that a run goes on from."""
        return deepcopy(self.model.state_dict()), deepcopy(self.optimizer.state_dict())

    def take_up(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Go back to a state, for the first step of an epoch to follow."""
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(deepcopy(state[1]))  # which would change in place

    @torch.no_grad()
    def evaluated(self) -> dict[str, float]:
        """Test loss and accuracy, in evaluation mode."""
        self.model.eval()
        outputs = torch.cat([self.model(part) for part in torch.split(self.test_x, CHUNK)])
        self.model.train()
        right = float((outputs.argmax(1) == self.test_y).double().mean())
        return {"test_loss": float(F.cross_entropy(outputs, self.test_y)), "accuracy": right}

    def finite(self) -> bool:
        """Whether all parameters are."""
        return all(bool(z.isfinite().all()) for z in self.model.parameters())


def train(
    settings: dict[str, Any],
    *,
    decay: bool,
    momentum: bool,
    seed: int,
    frozen: bool,
    tell: Tell,
) -> dict[str, Any] | None:
    """A run with its trajectory, and its second halves with norm layers alone.

    Args:
        settings: of the recipe.
        decay: whether weight decay is on.
        momentum: whether momentum is on.
        seed: of weights and batches.
        frozen: whether there are runs with norm layers alone.
        tell: told the steps done and all.

    Returns:
        Plain numbers; None where it diverged.
    """
    training = Training(settings, decay=decay, momentum=momentum, seed=seed)
    recorder = TrajectoryRecorder(training.model)
    steps, count = training.steps, settings["checkpoints"]
    looks = {round(k * steps / count) for k in range(count + 1)}
    forks = {
        max(round(share * settings["epochs"]), 1) * training.each_epoch: share
        for share in (settings["freeze_at"] if frozen else [])
    }
    total = steps + sum(steps - fork for fork in forks)
    states: dict[int, Any] = {}
    losses: list[Tensor] = []
    course: list[float] = []
    for step in range(steps + 1):
        if step in forks:
            states[step] = training.state()
        if step in looks:
            if not training.finite():
                return None
            recorder.add(training.model, step / training.each_epoch)
            if losses:
                course.append(float(torch.stack(losses).mean()))
                losses = []
        if step < steps:
            losses.append(training.step(step))
            tell(step + 1, total)
    found = {**_hallmarks(recorder.report()), "losses": course, **training.evaluated()}
    done, branches = steps, []
    for fork, state in states.items():
        training.take_up(state)
        with freeze_all_but_norms(training.model) as handle:
            for step in range(fork, steps):
                last = training.step(step)
                done += 1
                tell(done, total)
            branches.append(
                {
                    "at": forks[fork],
                    "epoch": fork // training.each_epoch,
                    "frozen_share": handle.frozen_share,
                    "loss": float(last),
                    **training.evaluated(),
                }
            )
    return {**found, "frozen": branches}


def _hallmarks(report: TrajectoryReport) -> dict[str, Any]:
    """What is kept of a report."""
    plain = report.to_dict()
    kept = ("path_length", "displacement", "efficiency", "norms", "step_norms")
    return {
        "at": plain["steps"],
        "cosines": [[round(c, 6) for c in row] for row in plain["map"]["cosines"]],
        "mds": plain["map"]["mds"],
        "relative_mds": plain["relative_map"]["mds"],
        "turns": plain["turns"]["values"],
        "apex": plain["apex_origin"]["values"],
        **{name: plain[name] for name in kept},
    }
