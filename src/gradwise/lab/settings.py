"""What a comparison is asked to do, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from gradwise.errors import UserError
from gradwise.lab.augment import SETTINGS as AUGMENTATIONS
from gradwise.lab.device import check_device, resolve_device
from gradwise.lab.methods import check_optimizer, usual_lr
from gradwise.lab.seeding import MAX_SEED

SCHEDULES = ("cosine", "step", "constant")
AMP_MODES = ("auto", "off", "bf16", "fp16")
MAX_SEEDS = 1000  # a number above it is a slip, or meant as the one seed to run
MAX_THREADS = 1024
MAX_RATES = 100
VALIDATION = 0.1  # share of the training rows that is held out to choose learning rates by

Rates = float | tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a trial's numbers, but the method and the seed.

    Attributes:
        data: built-in name or `module:function`.
        data_dir: folder of the data set's files, or None.
        model: built-in name or `module:function`.
        epochs: passes over the training set.
        batch_size: rows a step; an incomplete last batch is left out.
        optimizer: name of an optimizer, under every method that is a transform.
        lr: peak learning rate; None takes the optimizer's usual one. Several in a tuple are a grid:
            every method runs with each of them, and keeps the one that does best on rows held out
            of the training set.
        momentum: of optimizers that have one.
        weight_decay: as the optimizer means it.
        schedule: "cosine" to 0, "step" (a tenth after 50 % and again after 75 %), "constant".
        warmup_epochs: epochs of linear increase from 0.
        augment: "none", "standard" or "strong".
        limit_train: use only that many training rows.
        limit_test: use only that many test rows.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        amp: "auto" (bfloat16 on a GPU that has it, float16 on an older one), "off", "bf16", "fp16".
        compile: whether forward and backward passes are compiled by torch.compile, and replayed as
            CUDA graphs on a GPU; sums are then rounded otherwise, in all trials alike.
        threads: CPU threads a trial; part of the settings because sums depend on it.
        record_every: steps between two records of the gradients' dynamics; 0 records nothing.
        validation: share of the training rows that is held out to choose learning rates by, the
            same ones in every trial; None for `VALIDATION` in a grid and none otherwise.

    Raises:
        UserError: where a value is out of its bounds, naming it and them.

    Examples:
        >>> Settings(epochs=3).learning_rate("sgd")
        0.1
        >>> Settings(epochs=0)
        Traceback (most recent call last):
        gradwise.errors.UserError: expected epochs >= 1, got epochs=0
    """

    data: str = "digits"
    data_dir: str | None = None
    model: str = "digits-resnet"
    epochs: int = 15
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: Rates | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    augment: str = "standard"
    limit_train: int | None = None
    limit_test: int | None = None
    device: str = "auto"
    amp: str = "auto"
    compile: bool = False
    threads: int = 1
    record_every: int = 1
    validation: float | None = None

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)
        for name, choices in (
            ("schedule", SCHEDULES),
            ("augment", AUGMENTATIONS),
            ("amp", AMP_MODES),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"expected {name} to be one of {', '.join(choices)}, "
                    f"got {name}={getattr(self, name)!r}"
                )
        for name, low in (("epochs", 1), ("batch_size", 2), ("threads", 1), ("record_every", 0)):
            if getattr(self, name) < low:
                raise UserError(f"expected {name} >= {low}, got {name}={getattr(self, name)}")
        if self.threads > MAX_THREADS:
            raise UserError(f"expected threads <= {MAX_THREADS}, got threads={self.threads}")
        self._check_rates()
        if not 0 <= self.momentum < 1:
            raise UserError(f"expected 0 <= momentum < 1, got momentum={self.momentum}")
        for name in ("weight_decay", "warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"expected a finite {name} >= 0, got {name}={getattr(self, name)}")
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"expected warmup_epochs <= epochs={self.epochs}, "
                f"got warmup_epochs={self.warmup_epochs}"
            )
        if self.validation is not None and not 0 < self.validation < 1:
            raise UserError(f"expected 0 < validation < 1, got validation={self.validation}")
        check_device(self.device)

    def _check_rates(self) -> None:
        listed = isinstance(self.lr, tuple)
        rates = self.lr if isinstance(self.lr, tuple) else () if self.lr is None else (self.lr,)
        for at, rate in enumerate(rates):
            if not 0 < rate < math.inf:
                raise UserError(f"expected a finite lr > 0, got lr={rate}")
            if rate in rates[:at]:
                raise UserError(f"expected every lr once, got lr={rate:g} twice")
        if listed and not 2 <= len(rates) <= MAX_RATES:
            raise UserError(
                f"expected lr to be one number or a list of 2 to {MAX_RATES}, got {len(rates)}"
            )

    @property
    def grid(self) -> tuple[float, ...]:
        """The learning rates of a grid in ascending order; empty where there is no grid."""
        return tuple(sorted(self.lr)) if isinstance(self.lr, tuple) else ()

    def at(self, rate: float | None) -> Settings:
        """The settings of a trial: with one learning rate of the grid.

        Args:
            rate: out of `grid`; None where there is no grid.
        """
        return self if rate is None else replace(self, lr=rate)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `config.json` holds them; `data_dir` is absolute."""
        values = asdict(self)
        if isinstance(self.lr, tuple):
            values["lr"] = list(self.lr)
        if self.validation is None:  # said only where there is something to say
            del values["validation"]
        if not self.compile:
            del values["compile"]
        if self.data_dir is not None:
            values["data_dir"] = str(Path(self.data_dir).expanduser().resolve())
        return values

    def resolved(self) -> Settings:
        """The same with the device and the precision that "auto" stands for on this machine.

        They decide the numbers, so a comparison that goes on elsewhere has to ask for them. So does
        the share of rows that a grid of learning rates holds out.

        Raises:
            UserError: where this machine has no such device; another may have it.
        """
        device = resolve_device(self.device)
        amp = self.amp
        if amp == "auto":
            amp = "off"
            if device.type == "cuda":
                # torch also emulates bfloat16 where the hardware lacks it, which helps nobody.
                native = torch.cuda.is_bf16_supported(including_emulation=False)
                amp = "bf16" if native else "fp16"
        held_out = VALIDATION if self.grid and self.validation is None else self.validation
        return replace(self, device=str(device), amp=amp, validation=held_out)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The settings that `to_dict` wrote; unknown keys are a newer version's."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"unknown setting {unknown[0]!r}: written by a newer gradwise?")
        if isinstance(values.get("lr"), list):
            values = {**values, "lr": tuple(values["lr"])}
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"settings are not valid: {error}") from error

    def learning_rate(self, optimizer: str) -> float:
        """The peak learning rate under an optimizer.

        Args:
            optimizer: its name.

        Raises:
            UserError: where there is a whole grid of them; see `at`.
        """
        if isinstance(self.lr, tuple):
            raise UserError(f"expected a trial to have one lr, got a list of {len(self.lr)}")
        return usual_lr(optimizer) if self.lr is None else self.lr


# What a data set is usually trained with; the user's own data has to name its model.
_USUAL: dict[str, dict[str, Any]] = {
    "digits": {"model": "digits-resnet", "epochs": 15, "batch_size": 64},
    "cifar10": {"model": "resnet20", "epochs": 30, "batch_size": 128},
    "cifar100": {"model": "resnet20", "epochs": 30, "batch_size": 128},
    "fashion-mnist": {"model": "resnet20", "epochs": 15, "batch_size": 128},
    "mnist": {"model": "resnet20", "epochs": 5, "batch_size": 128},
}


def settings_for(data: str, given: dict[str, Any]) -> Settings:
    """Settings with the usual model, epochs and batch size for a data set where none are given.

    Args:
        data: built-in name or `module:function`.
        given: other settings; None stands for the usual value.

    Raises:
        UserError: where a value is out of its bounds, or the user's own data comes without a model.
    """
    told = {key: value for key, value in given.items() if value is not None}
    if ":" in data and "model" not in told:
        raise UserError(f"data {data!r} is your own, so name a model as well, such as model='mlp'")
    return Settings(**{"data": data, **_USUAL.get(data, {}), **told})


def parse_rates(text: str) -> Rates:
    """A learning rate from "0.1", or a grid of them from "0.01,0.1,1".

    Args:
        text: what the user wrote.

    Raises:
        UserError: where the text is neither. Bounds are the settings' affair.

    Examples:
        >>> parse_rates("0.1"), parse_rates("0.01, 0.1, 1")
        (0.1, (0.01, 0.1, 1.0))
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"expected lr to be a number or a list such as 0.01,0.1,1, got {text!r}"
        ) from None
    return rates if len(rates) > 1 else rates[0]


def parse_seeds(text: str) -> list[int]:
    """Seeds from "5" (0 to 4) or "3,7,11"; a single one is "7,".

    Args:
        text: what the user wrote.

    Raises:
        UserError: where the text is neither, or `check_seeds` refuses the seeds.

    Examples:
        >>> parse_seeds("3"), parse_seeds("4,9"), parse_seeds("7,")
        ([0, 1, 2], [4, 9], [7])
    """
    listed = "," in text
    parts = text.strip().removesuffix(",").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if not numbers or (not listed and numbers[0] < 1):
        raise UserError(f"expected seeds to be a number >= 1 or a list such as 0,1,2, got {text!r}")
    if not listed and numbers[0] > MAX_SEEDS:
        raise UserError(
            f"expected at most {MAX_SEEDS} seeds, got seeds={text}; the one seed {numbers[0]} "
            f"is written '{numbers[0]},'"
        )
    seeds = numbers if listed else list(range(numbers[0]))
    check_seeds(seeds)
    return seeds


def check_seeds(seeds: Sequence[int]) -> None:
    """At least one seed, every one once and in bounds.

    Args:
        seeds: what the user asked for.

    Raises:
        UserError: otherwise.
    """
    if not seeds:
        raise UserError("expected at least one seed, got none")
    if len(seeds) > MAX_SEEDS:
        raise UserError(f"expected at most {MAX_SEEDS} seeds, got {len(seeds)}")
    for at, seed in enumerate(seeds):
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"expected 0 <= seed <= {MAX_SEED}, got seed {seed}")
        if seed in seeds[:at]:
            raise UserError(f"expected every seed once, got {seed} twice")
