"""Trainings on the Poisson problem over a grid of options, and how they went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradwise.errors import UserError
from gradwise.reproduce.cells import Tell
from gradwise.reproduce.experiments._poisson import Method, Poisson, Training, trial

__all__ = ["DENSE", "STABLE", "Option", "check_grid", "run_grid"]

STABLE = 10.0
"""A training is stable while its loss stays below this multiple of what it began with."""

Option = tuple[float, float]
"""A value of the tuned option, and rho."""

_GIVEN_UP = 1e6  # a loss of so many times the first is not coming back
DENSE = 1.25
"""From one point of a drawn course to the next."""


def check_grid(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse grids that do not rise.

    Args:
        settings: of the recipe.
        names: of the settings that are grids.

    Raises:
        UserError: names the setting.
    """
    for name in names:
        grid = settings[name]
        if len(grid) < 2 or sorted(set(grid)) != list(grid) or not 0 < grid[0] <= grid[-1] < 1e30:
            raise UserError(f"expected two or more rising positive numbers, got {name}={grid}")


class _Watch:
    """Notes how high the loss goes, and a course in steps that grow."""

    def __init__(self) -> None:
        self.first, self.highest, self.mark, self.step_mark = math.nan, 1.0, 0.0, 0.0
        self.unstable_at: int | None = None
        names = ("steps", "evaluations", "seconds", "loss", "error")
        self.course: dict[str, list[float]] = {name: [] for name in names}

    def see(self, training: Training, ratio: float) -> None:
        """Take in a loss over the first one."""
        self.highest = max(self.highest, ratio) if math.isfinite(ratio) else math.inf
        if self.highest > STABLE and self.unstable_at is None:
            self.unstable_at = training.steps

    def __call__(self, training: Training, loss: float) -> bool:
        if training.steps == 1:
            self.first = loss
        self.see(training, loss / self.first)
        if self.highest > _GIVEN_UP:
            return False
        if training.evaluations >= self.mark or training.steps >= self.step_mark:
            self.mark = max(self.mark, training.evaluations) * DENSE
            self.step_mark = max(self.step_mark, training.steps) * DENSE
            for name in ("steps", "evaluations", "seconds"):
                self.course[name].append(getattr(training, name))
            self.course["loss"].append(float(training.problem.loss().detach()))
            self.course["error"].append(training.problem.error())
        return True


def run_grid(
    method: Method,
    options: Sequence[Option],
    settings: Mapping[str, Any],
    seed: int,
    tell: Tell,
) -> dict[str, Any]:
    """Train with each of the options, from the same weights.

    Args:
        method: the optimizer.
        options: what to try.
        settings: k, points, width, boundary, evaluations, device, and steps where they are a
            budget.
        seed: of the weights.
        tell: told how many of the options are done.

    Returns:
        `trials`, one an option: `value`, `rho`, `highest` (largest loss over the first),
        `unstable_at` (steps after which that left `STABLE`, or None), `at` (by budget), `held_out`
        (at the end), `course`.
    """
    budgets = {name: settings[name] for name in ("steps", "evaluations") if name in settings}
    sizes = {name: settings[name] for name in ("k", "points", "width", "boundary", "device")}
    trials = []
    for done, (value, rho) in enumerate(options):
        training = Training(method, value, Poisson(**sizes, seed=seed), rho)
        watch, before = _Watch(), training.problem.loss().item()
        at = trial(training, budgets, watch)
        watch.see(training, training.problem.loss().item() / before)
        trials.append(
            {
                "value": value,
                "rho": rho,
                "highest": watch.highest,
                "unstable_at": watch.unstable_at,
                "at": at,
                "held_out": training.problem.held_out(),
                "course": watch.course,
            }
        )
        tell(done + 1, len(options))
    return {"trials": trials}
