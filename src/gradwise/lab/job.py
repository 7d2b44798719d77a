"""What the runner runs, as it sees it: where it goes and what has come of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gradwise.errors import UserError
from gradwise.lab.files import read_json
from gradwise.lab.outcome import sound_result
from gradwise.lab.settings import Settings


@runtime_checkable
class Work(Protocol):
    """Anything that runs in a process of its own and leaves its result in a folder; hashable."""

    @property
    def folder(self) -> Path:
        """Where its files go."""

    @property
    def label(self) -> str:
        """How it is called in messages."""

    def result(self) -> dict[str, Any] | None:
        """The result, where it has come to its end."""


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Attributes:
        method: as `--methods` names it.
        seed: the trial's seed.
        folder: where its files go.
        lr: its learning rate, where methods run with several; None where the settings say it all.
    """

    method: str
    seed: int
    folder: Path
    lr: float | None = None

    @property
    def arm(self) -> str:
        """The method, and the learning rate where methods run with several."""
        return self.method if self.lr is None else f"{self.method} lr {rate_text(self.lr)}"

    @property
    def label(self) -> str:
        """How the trial is called in messages."""
        return f"{self.arm} seed {self.seed}"

    def settings(self, shared: Settings) -> Settings:
        """The trial's settings.

        Args:
            shared: what all trials share, with all learning rates.
        """
        return shared.at(self.lr)

    def result(self) -> dict[str, Any] | None:
        """The result, where the trial has come to its end; a foreign or torn file is none."""
        result = read_result(self.folder)
        sound = result is not None and sound_result(result, self.method, self.seed, self.lr)
        return result if sound else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a job's `result.json` holds; None where there is none or a torn one.

    Args:
        folder: the job's.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        return read_json(path)
    except UserError:
        return None


def rate_text(rate: float) -> str:
    """A learning rate in words and names of folders; different ones look different.

    Args:
        rate: above 0.

    Examples:
        >>> rate_text(0.1), rate_text(1.0), rate_text(1e-5)
        ('0.1', '1', '1e-05')
    """
    return repr(float(rate)).removesuffix(".0")


def trial_folder(arm: Path, seed: int, lr: float | None) -> Path:
    """Where a trial's files go.

    Args:
        arm: the method's folder.
        seed: the trial's seed.
        lr: its learning rate, where methods run with several.
    """
    return (arm if lr is None else arm / f"lr-{rate_text(lr)}") / f"seed-{seed}"
