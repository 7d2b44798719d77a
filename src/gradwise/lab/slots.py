"""Which trial runs on which device, and when: places, memory, and a second attempt alone.

Nothing here knows processes or GPUs: it is told what happens and says what to do next.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """A device as the process of a trial sees it.

    Attributes:
        name: for messages.
        visible: what `CUDA_VISIBLE_DEVICES` has to be for it; None leaves the variable alone.
    """

    name: str
    visible: str | None = None


@dataclass
class _Run:
    """A trial that runs.

    Attributes:
        at: the number of its place.
        held: bytes of the device's memory that it has held at most; None until it has told.
        free: bytes that were free on the device when it told last.
        told: when that was, as a count of all that was told.
        shared: whether another trial was ever there meanwhile.
        alone: whether no other may be.
    """

    at: int
    held: int | None = None
    free: int = 0
    told: int = 0
    shared: bool = False
    alone: bool = False


@dataclass
class Slots:
    """Hands out the places of devices that several trials share.

    A device takes up to `per_place` trials. The first one there always starts. Another one follows
    when somebody there has told what it holds and what is free, and if what is free is enough: for
    the most that any trial of this comparison has been seen to hold, after the trials that run
    there have grown to as much themselves. Trials are spread: the emptiest device comes first.

    A trial that ran out of memory beside another one has a second attempt, alone: a device is kept
    for it as soon as there is none empty, and nobody joins it there.

    As an empty device never refuses, somebody runs as long as somebody waits.

    Args:
        places: the devices, at least one.
        per_place: trials on one of them, >= 1.

    Attributes:
        short: where a trial had to wait for memory, the first time: which device, and the bytes
            that were expected to be free there and that were needed.

    Examples:
        >>> slots = Slots([Place("GPU 0", "0"), Place("GPU 1", "1")], per_place=2)
        >>> [slots.begin(job, slots.offer([job])[1]).name for job in ("a", "b")]
        ['GPU 0', 'GPU 1']
        >>> slots.offer(["c"]) is None  # nobody has told yet what a trial needs
        True
        >>> slots.heard("b", held=3_000, free=5_000)
        >>> slots.offer(["c"])
        ('c', Place(name='GPU 1', visible='1'))
    """

    places: Sequence[Place]
    per_place: int = 1
    short: tuple[Place, int, int] | None = None
    _runs: dict[Hashable, _Run] = field(default_factory=dict)
    _alone: set[Hashable] = field(default_factory=set)
    _need: int = 0
    _count: int = 0

    def offer(self, waiting: Iterable[Hashable]) -> tuple[Hashable, Place] | None:
        """The next trial to start, and where; None where all have to wait.

        Args:
            waiting: trials that do not run, in their order.
        """
        jobs = list(waiting)
        present = [self._at(number) for number in range(len(self.places))]
        empty = [number for number, runs in enumerate(present) if not runs]
        kept: set[int] = set()
        for job in jobs:
            if job not in self._alone:
                continue
            if empty:
                return job, self.places[empty[0]]
            # The one that will be empty first, as far as anybody can tell, takes no more.
            rest = [number for number in range(len(present)) if number not in kept]
            if rest:
                kept.add(min(rest, key=lambda number: len(present[number])))
        job = next((job for job in jobs if job not in self._alone), None)
        if job is None:
            return None
        for number in sorted(set(range(len(present))) - kept, key=lambda n: (len(present[n]), n)):
            if self._takes(number, present[number]):
                return job, self.places[number]
        return None

    def begin(self, job: Hashable, place: Place) -> Place:
        """Note that a trial starts.

        Args:
            job: the trial.
            place: where, as offered.

        Returns:
            The same place.
        """
        number = list(self.places).index(place)
        others = self._at(number)
        for run in others:
            run.shared = True
        self._runs[job] = _Run(number, shared=bool(others), alone=job in self._alone)
        return place

    def heard(self, job: Hashable, held: int, free: int) -> None:
        """Note what a running trial tells of its device's memory.

        Args:
            job: the trial.
            held: bytes that it has held there at most.
            free: bytes that are free there now.
        """
        run = self._runs.get(job)
        if run is None:
            return
        self._count += 1
        run.held, run.free, run.told = held, free, self._count
        self._need = max(self._need, held)

    def end(self, job: Hashable, *, out_of_memory: bool = False) -> bool:
        """Note that a trial has ended.

        Args:
            job: the trial.
            out_of_memory: whether it failed for lack of the device's memory.

        Returns:
            Whether it has another attempt, alone; it waits then.
        """
        run = self._runs.pop(job, None)
        if run is None or not out_of_memory or not run.shared:
            self._alone.discard(job)
            return False
        self._alone.add(job)
        return True

    def _at(self, number: int) -> list[_Run]:
        return [run for run in self._runs.values() if run.at == number]

    def _takes(self, number: int, runs: list[_Run]) -> bool:
        """Whether another trial may start beside those that run there."""
        if not runs:
            return True
        if len(runs) >= self.per_place or any(run.alone for run in runs):
            return False
        last = max(runs, key=lambda run: run.told)
        if last.held is None:
            return False  # the first one there is still finding out what it needs
        # What those there will yet take, should they need as much as the hungriest trial so far.
        # Whoever has not told may hold some of it already: then this errs on the safe side.
        growth = sum(max(self._need - (run.held or 0), 0) for run in runs)
        left = last.free - growth
        if left >= self._need:
            return True
        if self.short is None:
            self.short = self.places[number], max(left, 0), self._need
        return False
