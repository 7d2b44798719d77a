"""What a trial of the lab costs a step, beside a training loop as one writes it by hand.

    python benchmarks/trial_throughput.py [--rounds 60] [--threads 1] [--device cpu]

The loop by hand trains the same model on the same batches with the same augmentation, optimizer
and schedule, and keeps nothing but the running loss. A trial measures and transforms the gradients,
records every layer at every step, adds up a checksum of its batches and reports its progress.
A throughput of at least 0.9 of the loop by hand is a ratio of at most 1.11.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from gradwise.lab.data import Dataset, from_arrays, load
from gradwise.lab.methods import resolve
from gradwise.lab.models import build
from gradwise.lab.schedule import lr_factor
from gradwise.lab.settings import Settings
from gradwise.lab.trial import Trial
from gradwise.watch import Recorder
from side_by_side import environment, interleaved, save, table

EPOCHS = 10**6  # the schedule stays at its beginning, however many rounds there are


def synthetic(rows: int) -> Dataset:
    """Noise in the shape of CIFAR-10."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (rows, 3, 32, 32), generator=draw, dtype=torch.uint8)
    y = torch.randint(10, (rows,), generator=draw)
    y[:10] = torch.arange(10)
    return from_arrays("synthetic", x, y, x[:10], y[:10], crop_padding=4, flip=True)


class ByHand:
    """The loop that one would write, an epoch a call."""

    def __init__(self, settings: Settings, dataset: Dataset, trial: Trial) -> None:
        self.device = torch.device(settings.device)
        torch.manual_seed(0)
        model = build(settings.model, num_classes=dataset.num_classes, in_shape=dataset.in_shape)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.x, self.y = dataset.train_x.to(self.device), dataset.train_y.to(self.device)
        self.batch = settings.batch_size
        self.augment = trial.augment
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.lr or 0.1,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        steps = EPOCHS * (len(self.x) // self.batch)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lr_factor(settings.schedule, steps)
        )
        self.draw = torch.Generator(self.device).manual_seed(0)

    def __call__(self) -> float:
        """Train one epoch; the mean loss."""
        total = torch.zeros((), device=self.device)
        order = torch.randperm(len(self.x), generator=self.draw, device=self.device)
        self.model.train()
        batches = len(self.x) // self.batch
        for i in range(batches):
            index = order[i * self.batch : (i + 1) * self.batch]
            inputs, targets = self.augment(self.x[index], self.y[index], self.draw)
            loss = F.cross_entropy(self.model(inputs), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        return float(total) / batches


class ByTrial:
    """Epochs of a trial, an epoch a call, without evaluation and checkpoints."""

    def __init__(
        self, settings: Settings, dataset: Dataset, method: str, folder: Path, every: int
    ) -> None:
        self.trial = Trial(settings, resolve(method, settings.optimizer), 0, dataset, folder)
        self.trial._evaluate = lambda epoch, train_loss: None  # type: ignore[method-assign]
        attachment = self.trial.learner.attachment
        self.recorder = Recorder(attachment, folder / "watch", every=every) if every else None
        self.epoch = 0

    def __call__(self) -> None:
        """Train one epoch."""
        self.trial._train_epoch(self.epoch, self.recorder)
        assert self.trial.diverged_at is None
        self.epoch += 1


def compare(
    name: str, settings: Settings, dataset: Dataset, rounds: int
) -> list[dict[str, object]]:
    """Time one model: the loop by hand, and trials with and without a record."""
    with tempfile.TemporaryDirectory() as scratch:
        calls: dict[str, ByHand | ByTrial] = {
            label: ByTrial(settings, dataset, method, Path(scratch) / label, every)
            for label, method, every in (
                ("trial, sgd, recorded", "sgd", 1),
                ("trial, sgd, not recorded", "sgd", 0),
                ("trial, autoscale, recorded", "autoscale", 1),
            )
        }
        any_trial = calls["trial, sgd, recorded"]
        assert isinstance(any_trial, ByTrial)
        calls["by hand"] = ByHand(settings, dataset, any_trial.trial)
        times = interleaved(dict(calls), rounds=rounds, warmup=5)
        for call in calls.values():
            if isinstance(call, ByTrial) and call.recorder is not None:
                call.recorder.close()
    steps = len(dataset.train_x) // settings.batch_size
    rows = table(f"{name}, {steps} steps a call", times, against="by hand")
    for row in rows:
        row["throughput_of_by_hand"] = 1.0 / float(row["ratio_to_by hand"])  # type: ignore[arg-type]
        print(f"{row['call']:34s}throughput {row['throughput_of_by_hand']:.3f} of the loop by hand")
    return rows


def main() -> None:
    """Time both models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    common = {
        "device": options.device,
        "threads": options.threads,
        "epochs": EPOCHS,
        "lr": 0.01,
        "schedule": "cosine",
    }
    torch.set_num_threads(options.threads)
    print(environment())
    digits = load("digits").subset(1408, 10)
    cases = (
        ("digits-resnet on digits, batches of 64", "digits-resnet", 64, digits),
        ("resnet20 on synthetic 32x32, batches of 128", "resnet20", 128, synthetic(256)),
    )
    rows = []
    for title, model, batch, dataset in cases:
        settings = Settings(model=model, batch_size=batch, **common)
        rows += compare(title, settings, dataset, options.rounds)
    save("trial_throughput", rows)


if __name__ == "__main__":
    main()
