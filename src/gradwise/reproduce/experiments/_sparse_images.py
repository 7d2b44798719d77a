"""A residual network on images, trained with large steps that decay or with small constant ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradwise.analysis.schedules import WarmupThenDecay
from gradwise.analysis.sparsity import feature_sparsity, loss_stabilisation
from gradwise.lab.data import load
from gradwise.lab.models.resnet import ResNet
from gradwise.reproduce.cells import Tell

HIGH = 0.2  # share of the largest rate from which a rate counts as large: a warm-up rises 11-fold
WINDOWS = 40  # the loss is averaged over a fortieth of all steps
CHUNK = 1000  # images in a forward pass


def train_images(
    settings: dict[str, Any], schedule: str, seed: int, tell: Tell
) -> dict[str, Any] | None:
    """Train without momentum, weight decay and augmentation, as the authors' plain run [V].

    Args:
        settings: of the recipe.
        schedule: "large" for warm-up then decay, "small" for a constant rate.
        seed: of weights and batches, the same for both schedules.
        tell: told the steps done and all.

    Returns:
        Losses, accuracy, sparsity by stage at the end and on the way; None where it diverged.
    """
    device = torch.device(settings["device"])
    pool = settings["pool"]
    data = load(settings["data"], settings["data_dir"])
    data = data.subset(settings["train_images"] or None, settings["test_images"] or None)
    mean, std = (z.view(1, -1, 1, 1) for z in (data.mean, data.std))

    def prepared(x: Tensor) -> Tensor:
        # uint8 is kept in 0..255, means are of 0..1.
        x = ((x.float() / (1 if x.is_floating_point() else 255)) - mean) / std
        return F.avg_pool2d(x, pool).to(device).contiguous(memory_format=torch.channels_last)

    x, y = prepared(data.train_x), data.train_y.to(device)
    test_x, test_y = prepared(data.test_x), data.test_y.to(device)
    watched = x[: settings["sparsity_images"]], y[: settings["sparsity_images"]]
    torch.manual_seed(seed)
    blocks = settings["blocks"]
    widths = [settings["width"] * 2**k for k in range(len(blocks))]
    model = ResNet(blocks, widths, num_classes=data.num_classes, in_channels=x.shape[1])
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it
    stages = list(model.stages)
    batch = min(settings["batch_size"], len(x))
    each_epoch = len(x) // batch
    steps = each_epoch * settings["epochs"]
    rise = WarmupThenDecay(steps, decay_at=settings["decay_at"], warmup=settings["warmup"])
    base = settings["large_rate"] if schedule == "large" else settings["small_rate"]
    optimizer = torch.optim.SGD(model.parameters(), lr=base)
    generator = torch.Generator().manual_seed(seed)
    looks = {round(k * steps / settings["looks"]) for k in range(settings["looks"] + 1)}
    losses: list[Tensor] = []
    rates: list[float] = []
    course: list[dict[str, Any]] = []
    order = torch.empty(0)
    for step in range(steps + 1):
        if step in looks:
            if not all(bool(z.isfinite().all()) for z in model.state_dict().values()):
                return None
            found = feature_sparsity(model, watched, stages, chunk_size=CHUNK)
            course.append({"step": step, "active": [found[s].active for s in stages]})
        if step == steps:
            break
        if step % each_epoch == 0:
            order = torch.randperm(len(x), generator=generator).to(device)
        rate = base * rise(step) if schedule == "large" else base
        optimizer.param_groups[0]["lr"] = rate
        place = step % each_epoch * batch
        chosen = order[place : place + batch]
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        rates.append(rate)
        tell(step + 1, steps)
    history = torch.stack(losses).double().cpu()
    if not bool(history.isfinite().all()):
        return None
    train_loss, _ = _evaluated(model, x, y)
    test_loss, accuracy = _evaluated(model, test_x, test_y)
    window = max(steps // WINDOWS, 1)
    stable = loss_stabilisation(history, rates, window=window, high=HIGH)
    averaged = history.unfold(0, window, window).mean(1)
    return {
        "train_loss": train_loss,
        "test_loss": test_loss,
        "accuracy": accuracy,
        "active": [found[s].active for s in stages],
        "distinct_active": [found[s].distinct_active for s in stages],
        "rank": [found[s].rank for s in stages],
        "share": stable.share,
        "level": stable.level,
        "at": [(k + 1) * window for k in range(len(averaged))],
        "losses": averaged.tolist(),
        "course": course,
    }


@torch.no_grad()
def _evaluated(model: ResNet, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy in evaluation mode."""
    model.eval()
    outputs = torch.cat([model(part) for part in torch.split(x, CHUNK)])
    model.train()
    right = float((outputs.argmax(1) == y).double().mean())
    return float(F.cross_entropy(outputs, y)), right
