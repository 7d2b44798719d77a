"""How much of a comparison is done, and when the rest will be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradwise.lab.job import Work

_ENOUGH = 0.02  # trials that have to have run before a pace means anything


@dataclass
class _Course:
    """A trial in this call: when it began, when it was ready to train, and how far it is.

    Attributes:
        began: when its process was started.
        ready: when it began to train; None before.
        last: when it was last heard of.
        resumed: the share of it that earlier calls have done.
        share: the share of it that is done.
        ended: whether it has.
    """

    began: float
    ready: float | None = None
    last: float = 0.0
    resumed: float = 0.0
    share: float = 0.0
    ended: bool = False


class Estimate:
    """Counts trials and parts of trials, and says from the pace of this call when all are done.

    Args:
        trials: how many there are in all.
        clock: seconds from some beginning on.

    Attributes:
        trials: the same.
        kept: trials that had a result before this call.
        ended: trials that ended in this call, well or not.

    Examples:
        >>> from pathlib import Path
        >>> from gradwise.lab.job import Job
        >>> seconds = 0.0
        >>> estimate = Estimate(3, clock=lambda: seconds)
        >>> job = Job("sgd", 0, Path("trials"))
        >>> estimate.take(job, {"event": "start"})
        >>> seconds = 4.0  # to start up
        >>> estimate.take(job, {"event": "step", "step": 0, "steps": 8})
        >>> estimate.remaining()
        'estimating the time'
        >>> seconds = 14.0  # for half the steps: 10 s for the others, and 24 s for the other trials
        >>> estimate.take(job, {"event": "step", "step": 4, "steps": 8})
        >>> estimate.remaining()
        'about 58 s left'
    """

    def __init__(self, trials: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.trials = trials
        self.kept = 0
        self.ended = 0
        self._courses: dict[Work, _Course] = {}
        self._clock = clock

    def take(self, job: Work, event: dict[str, Any]) -> None:
        """Take in what `compare_methods` tells.

        Args:
            job: the trial.
            event: what happened.
        """
        kind, now = event["event"], self._clock()
        if kind == "kept":
            self.kept += 1
        elif kind == "start":
            self._courses[job] = _Course(began=now)
        elif kind == "step":
            course, share = self._courses[job], event["step"] / max(event["steps"], 1)
            if course.ready is None:
                course.ready, course.resumed = now, share
            course.share, course.last = share, now
        elif kind in ("done", "failed"):
            self.ended += 1
            course = self._courses[job]
            course.ended = True
            if kind == "done":  # with the evaluation after the last step
                course.share, course.last = 1.0, now

    @property
    def started(self) -> int:
        """Trials that began in this call."""
        return len(self._courses)

    @property
    def over(self) -> int:
        """Trials that need no more work in this call."""
        return self.kept + self.ended

    @property
    def done(self) -> float:
        """Trials done, running ones by their share."""
        return self.over + sum(one.share for one in self._courses.values() if not one.ended)

    def remaining(self) -> str:
        """The time left at the pace of this call, in words."""
        if self.over >= self.trials:
            return "done"
        ready = [(one, one.ready) for one in self._courses.values() if one.ready is not None]
        ran = sum(one.share - one.resumed for one, _ in ready)
        if ran < _ENOUGH:
            return "estimating the time"
        whole = sum(one.last - since for one, since in ready) / ran
        startup = sum(since - one.began for one, since in ready) / len(ready)
        now = self._clock()
        running = [
            (1.0 - one.share) * whole
            + (max(startup - (now - one.began), 0.0) if one.ready is None else 0.0)
            for one in self._courses.values()
            if not one.ended
        ]
        waiting = self.trials - self.over - len(running)
        total = sum(running) + waiting * (startup + whole)
        return f"about {duration(max([total / max(len(running), 1), *running]))} left"


def duration(seconds: float) -> str:
    """Seconds in words, to about two digits.

    Args:
        seconds: >= 0.

    Examples:
        >>> duration(8.4), duration(125), duration(7300)
        ('8 s', '2 min 05 s', '2 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
