"""A compare run as it lies on the disk: what was asked for, what has come out, what is missing."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.report.values import number, numbers, read_object, whole

__all__ = ["STATUSES", "CompareRun", "Trial", "read_run"]

STATUSES = ("finished", "diverged", "failed", "missing")
"""What can have become of a trial; "missing" has not been run, or not to its end."""


@dataclass(frozen=True)
class Trial:
    """One training: one method with one seed, and one of the learning rates of a grid.

    Attributes:
        method: the method's name.
        seed: the seed.
        status: one of `STATUSES`.
        folder: where its files are; None where it has none.
        result: what `result.json` holds; empty where it is not there.
        reason: why it failed, as far as is known.
        summed: whether the summary knows what became of it.
        rate: its learning rate, where methods ran with a grid of them.
    """

    method: str
    seed: int
    status: str
    folder: Path | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    summed: bool = True
    rate: float | None = None

    @property
    def ended(self) -> str:
        """How it ended, as a reader should see it."""
        return "not finished" if self.status == "missing" else self.status

    @property
    def watch(self) -> Path | None:
        """The folder with the gradients' dynamics, if there is one."""
        if self.folder is None or not (self.folder / "watch").is_dir():
            return None
        return self.folder / "watch"


@dataclass(frozen=True)
class CompareRun:
    """What a run folder holds.

    Attributes:
        path: the folder.
        config: the content of `config.json`.
        summary: the content of `summary.json`; empty while there is none.
        methods: their names, in the order they were asked for.
        seeds: in the order they were asked for.
        baseline: name of the method that the others are compared with.
        trials: by method, in the order of `seeds`; in a grid those of the chosen learning rate.
        troubles: sentences on what could not be read.
        rates: the learning rates of a grid in ascending order; empty where there is none.
        others: the trials with the learning rates that were not chosen.
    """

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str
    trials: Mapping[str, tuple[Trial, ...]]
    troubles: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    others: tuple[Trial, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What every trial was trained with, by name."""
        return _object(self.config.get("settings"))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be run."""
        return all(trial.status != "missing" for trial in (*self.all_trials(), *self.others))

    def facts(self, method: str) -> dict[str, Any]:
        """What the summary says about one method; empty where it says nothing.

        Args:
            method: its name.
        """
        return _object(_object(self.summary.get("methods")).get(method))

    def rate_facts(self, method: str, rate: float) -> dict[str, Any]:
        """What the summary says about a method with one learning rate of a grid; or empty.

        Args:
            method: its name.
            rate: the learning rate.
        """
        return _at_rate(self.facts(method), rate)

    def all_trials(self) -> Iterator[Trial]:
        """Every trial that the page is about, method by method."""
        for trials in self.trials.values():
            yield from trials


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_run(path: Path) -> CompareRun:
    """Read a run folder; what is missing in it is told by the result, not by an error.

    Args:
        path: the folder that `gradwise compare` wrote.

    Raises:
        UserError: where it is no folder of a compare run, or its `config.json` or
            `summary.json` is damaged or was written by a newer version.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"expected the folder of a compare run, but {path} {what}")
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not the folder of a compare run: it has no config.json")
    config = read_object(path / "config.json")
    summary = read_object(path / "summary.json") if (path / "summary.json").is_file() else {}
    methods, seeds, baseline = _asked(path / "config.json", config)
    rates = _rates(path / "config.json", config)
    troubles: list[str] = []
    found = _scan(path, troubles)
    listed = _object(summary.get("methods"))
    trials: dict[str, tuple[Trial, ...]] = {}
    others: list[Trial] = []
    for method in methods:
        facts = _object(listed.get(method))
        chosen: float | None = None
        if rates:
            told = number(facts.get("learning_rate"))
            chosen = told if told in rates else rates[0]
        trials[method] = tuple(_trial(path, method, seed, chosen, facts, found) for seed in seeds)
        for rate in rates:
            if rate != chosen:
                own = _at_rate(facts, rate)
                others += [_trial(path, method, seed, rate, own, found) for seed in seeds]
    return CompareRun(
        *(path, config, summary, methods, seeds, baseline, trials),
        tuple(troubles),
        rates,
        tuple(others),
    )


def _rates(path: Path, config: Mapping[str, Any]) -> tuple[float, ...]:
    """The learning rates of a grid in ascending order; none where there is no grid."""
    listed = _object(config.get("settings")).get("lr")
    if not isinstance(listed, list):
        return ()
    rates = [rate for rate in numbers(listed) if rate is not None and rate > 0]
    if not rates or len(set(rates)) < len(listed):
        raise UserError(
            f"{path} is damaged: expected lr to be a number or a list of different ones"
        )
    return tuple(sorted(rates))


def _at_rate(facts: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """What a method's facts say about one learning rate of a grid, with the seeds it is about."""
    grid = facts.get("grid")
    for entry in grid if isinstance(grid, list) else []:
        if isinstance(entry, dict) and number(entry.get("learning_rate")) == rate:
            return {**entry, "seeds": facts.get("seeds")}
    return {}


def _asked(path: Path, config: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """The methods, the seeds and the baseline of a configuration."""
    methods, seeds = config.get("methods"), config.get("seeds")
    baseline = config.get("baseline")
    if (
        not isinstance(methods, list)
        or not methods
        or not all(isinstance(name, str) for name in methods)
    ):
        raise UserError(f"{path} is damaged: expected methods to be a list of names")
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(whole(seed) is not None for seed in seeds)
    ):
        raise UserError(f"{path} is damaged: expected seeds to be a list of whole numbers >= 0")
    if len(set(methods)) < len(methods) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path} is damaged: a method or a seed appears twice")
    if not isinstance(baseline, str) or baseline not in methods:
        raise UserError(f"{path} is damaged: expected baseline to be one of the methods")
    return tuple(methods), tuple(seeds), baseline


Found = dict[tuple[str, int, float | None], tuple[Path, dict[str, Any]]]


def _scan(path: Path, troubles: list[str]) -> Found:
    """The folders of trials and their results, by method, seed and learning rate of a grid.

    A trial that is still running has no result yet, but its record says which one it is.
    """
    found: Found = {}
    of_grid = set(path.glob("trials/*/lr-*/seed-*"))
    for folder in sorted({*path.glob("trials/*/seed-*"), *of_grid}):
        file = folder / "result.json"
        running = not file.is_file()
        record = folder / "watch" / "run.json"
        if running and not record.is_file():
            continue
        try:
            content = _meta(record) if running else read_object(file)
        except UserError as error:
            troubles.append(str(error))
            continue
        method, seed = content.get("method"), whole(content.get("seed"))
        rate = number(content.get("learning_rate")) if folder in of_grid else None
        if isinstance(method, str) and seed is not None:
            found[method, seed, rate] = folder, {} if running else content
        elif not running:
            troubles.append(f"{file} is damaged: it does not say which method and seed it is of")
    return found


def _meta(record: Path) -> dict[str, Any]:
    """What a trial noted in its record; nothing where that cannot be read."""
    try:
        return _object(json.loads(record.read_bytes()).get("meta"))
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}


def _trial(
    path: Path,
    method: str,
    seed: int,
    rate: float | None,
    facts: Mapping[str, Any],
    found: Found,
) -> Trial:
    """One trial from what the summary says (of the seeds that it knows) and what lies there."""
    known = facts.get("seeds")
    at = known.index(seed) if isinstance(known, list) and seed in known else -1
    status = _at(facts.get("status"), at)
    named = _folder(path, _at(facts.get("folder"), at))
    folder, result = found.get((method, seed, rate), (named, {}))
    summed = status in STATUSES and not (status in ("missing", "failed") and result)
    if not summed:
        # A summary written before this trial ended knows less than the trial's own result.
        status = result.get("status") if result else "missing"
        status = status if status in STATUSES else "failed"
    reason = _object(facts.get("failures")).get(str(seed))
    told = reason if isinstance(reason, str) else ""
    return Trial(method, seed, str(status), folder, result, told, summed, rate)


def _folder(path: Path, name: object) -> Path | None:
    """The folder of a trial without a result, where the summary names one inside the run."""
    if not isinstance(name, str) or not name:
        return None
    with contextlib.suppress(OSError, ValueError):  # e.g. a null byte in the name
        folder = (path / name).resolve()
        if folder.is_relative_to(path.resolve()) and folder.is_dir():
            return folder
    return None


def _at(value: object, at: int) -> object:
    return value[at] if isinstance(value, list) and 0 <= at < len(value) else None
