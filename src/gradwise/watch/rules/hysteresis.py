"""When trouble begins and when it is over: streaks, for many subjects at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from gradwise.watch.rules.base import Judgement
from gradwise.watch.rules.view import Array, Mask

__all__ = ["Change", "Hysteresis"]

_MOST_DOUBLINGS = 6
_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Change:
    """What changed at one record.

    Attributes:
        row: the record's place in its block.
        began: subjects [B] whose trouble began.
        since: [B], the step at which their streak began.
        value: [B], the number to show, of the worst record of the streak.
        score: [B], how bad that was.
        ended: subjects [E] whose trouble is over.
        over: [E], the step from which they have been calm.
    """

    row: int
    began: _Integers
    since: _Integers
    value: Array
    score: Array
    ended: _Integers
    over: _Integers


@dataclass(eq=False)
class _Streaks:
    """The state of some subjects, an array [N] for each of its parts."""

    active: Mask  # trouble lasts
    bad: _Integers  # records of the bad streak so far
    quiet: _Integers  # records of the calm streak so far, while trouble lasts
    times: _Integers  # how often trouble has begun
    since: _Integers  # first step of the bad streak
    over: _Integers  # first step of the calm streak
    value: Array  # of the worst record of the bad streak
    score: Array

    def of(self, which: _Integers) -> Self:
        """A copy of the state of these subjects."""
        return type(self)(*(getattr(self, part.name)[which] for part in fields(self)))

    def put(self, which: _Integers, some: _Streaks) -> None:
        """Take their state back."""
        for part in fields(self):
            getattr(self, part.name)[which] = getattr(some, part.name)


class Hysteresis:
    """Streaks of N subjects.

    A block costs little where nothing is wrong: only subjects with a bad record, or with a streak
    or trouble under way, are gone through record by record.

    Args:
        subjects: N.
        streak: bad records in a row until trouble begins.
        calm: calm records in a row until it is over, the first time; twice as many each further
            time, up to 64 times as many.

    Examples:
        >>> bad = np.array([[False], [True], [True], [False], [False]])
        >>> known, value = np.ones_like(bad), np.arange(5.0)[:, None]
        >>> changes = Hysteresis(1, streak=2, calm=2).follow(
        ...     np.arange(10, 15), Judgement(known, bad, ~bad, value)
        ... )
        >>> [(c.row, c.since.tolist(), c.value.tolist(), c.over.tolist()) for c in changes]
        [(2, [11], [2.0], []), (4, [], [], [13])]
    """

    def __init__(self, subjects: int, *, streak: int, calm: int) -> None:
        self._streak, self._calm = streak, calm
        bad, quiet, times, since, over = np.zeros((5, subjects), np.int64)
        value, score = np.zeros((2, subjects))
        active = np.zeros(subjects, np.bool_)
        self._all = _Streaks(active, bad, quiet, times, since, over, value, score)

    @property
    def active(self) -> Mask:
        """Whose trouble lasts [N]."""
        return self._all.active

    def take_over(self, subjects: Sequence[int]) -> None:
        """Let subjects be in trouble that began before.

        Args:
            subjects: their indices.
        """
        index = np.array(subjects, np.int64)
        self._all.active[index] = True
        self._all.times[index] += 1

    def follow(self, steps: _Integers, judgement: Judgement) -> list[Change]:
        """Go through K records.

        Args:
            steps: their steps [K].
            judgement: of the N subjects.

        Returns:
            The changes, in order.
        """
        bad = judgement.bad & judgement.known
        which = np.flatnonzero(bad.any(0) | self._all.active | (self._all.bad > 0))
        if not len(which):
            return []
        # From here on, only those subjects.
        bad, known = bad[:, which], judgement.known[:, which]
        calm = judgement.calm[:, which] & known & ~bad
        value = judgement.value[:, which]
        score = value if judgement.score is None else judgement.score[:, which]
        streaks = self._all.of(which)
        changes = []
        for row in np.flatnonzero(known.any(1)):
            now = self._record(
                streaks, int(steps[row]), known[row], bad[row], calm[row], value[row], score[row]
            )
            if now is not None:
                began, ended = now
                changes.append(
                    Change(
                        int(row),
                        which[began],
                        streaks.since[began],
                        streaks.value[began],
                        streaks.score[began],
                        which[ended],
                        streaks.over[ended],
                    )
                )
        self._all.put(which, streaks)
        return changes

    def _record(
        self,
        all_of: _Streaks,
        step: int,
        known: Mask,
        bad: Mask,
        calm: Mask,
        value: Array,
        score: Array,
    ) -> tuple[Mask, Mask] | None:
        """Take in one record; whose trouble began and whose is over, None where nobody's."""
        s = all_of
        fresh = bad & (s.bad == 0)
        s.since[fresh] = step
        s.score[fresh] = -np.inf
        worse = bad & ((score > s.score) | fresh)
        s.value[worse], s.score[worse] = value[worse], score[worse]
        s.bad = np.where(bad, s.bad + 1, np.where(known, 0, s.bad))
        s.over[calm & (s.quiet == 0)] = step
        s.quiet = np.where(calm, s.quiet + 1, np.where(known, 0, s.quiet))
        began = ~s.active & (s.bad >= self._streak)
        enough = self._calm << np.clip(s.times - 1, 0, _MOST_DOUBLINGS)
        ended = s.active & (s.quiet >= enough)
        if not (began.any() or ended.any()):
            return None
        s.active = (s.active | began) & ~ended
        s.times[began] += 1
        return began, ended
