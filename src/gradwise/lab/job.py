"""One trial of a comparison, as the runner sees it: where it goes and what has come of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.files import read_json
from gradwise.lab.outcome import sound_result


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Attributes:
        method: as `--methods` names it.
        seed: the trial's seed.
        folder: where its files go.
    """

    method: str
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        """How the trial is called in messages."""
        return f"{self.method} seed {self.seed}"

    @property
    def failure_file(self) -> Path:
        """Where the reason of its last failure is kept."""
        return self.folder / "failure.json"

    def result(self) -> dict[str, Any] | None:
        """The result, where the trial has come to its end; a foreign or torn file is none."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        try:
            result = read_json(path)
        except UserError:
            return None
        return result if sound_result(result, self.method, self.seed) else None
