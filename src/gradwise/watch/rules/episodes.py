"""From subjects in trouble to alerts: those that come together are told of together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gradwise.watch.alerts import Alert
from gradwise.watch.rules.base import Found, Judgement, Rule, Seen, Words
from gradwise.watch.rules.hysteresis import Change, Hysteresis
from gradwise.watch.rules.view import View

__all__ = ["Episodes", "Event"]

_APART = 3  # layers that begin together and get an alert each; more get one for all
_MOST_OPEN = 8  # alerts of one rule that last; from then on only when the number doubles


@dataclass(frozen=True)
class Event:
    """An alert that began, or, where it has an end, one that is over.

    Attributes:
        record: at which record of the run that was clear.
        alert: the alert.
    """

    record: int
    alert: Alert


@dataclass
class _Open:
    """An alert that lasts, and the subjects whose trouble it tells of."""

    alert: Alert
    members: set[int]
    over: int = 0  # the latest step at which one of them calmed down


class Episodes:
    """Runs one rule: judges blocks and turns streaks into alerts.

    Up to three layers whose trouble begins together have an alert each, more than that have one
    together. Trouble of the whole has its own, which tells of the layers too. Once eight alerts
    last, further layers are told of when they are as many as those in the alerts.

    Args:
        rule: a copy of it is used.
        names: the run's layers.
    """

    def __init__(self, rule: Rule, names: tuple[str, ...]) -> None:
        self.rule = copy.copy(rule)
        self._names = names
        self._subjects = self.rule.begin(names)
        self._wholes = {at for at, layer in enumerate(self._subjects) if layer is None}
        self._hysteresis = Hysteresis(len(self._subjects), streak=rule.streak, calm=rule.calm)
        self._active = np.zeros(len(self._subjects), np.bool_)
        self._open: list[_Open] = []
        self._pending: dict[int, Seen] = {}
        self._over: dict[int, int] = {}  # of those pending: they calmed down before they were told
        self._due: int | None = None  # the record at which those pending are told of
        self._told: dict[tuple[str, int, str | None], None] = {}
        self._last = (-1, 0)  # the last record, and its step

    def adopt(self, alert: Alert) -> None:
        """Go on with an alert that began before a run was resumed.

        Args:
            alert: of this rule, not ended; one about a layer that is no more is left alone.
        """
        taken = {member for one in self._open for member in one.members}
        if alert.layer is not None and alert.layer in self._subjects:
            members = {self._subjects.index(alert.layer)} - taken
        elif self._wholes:
            members = set(sorted(self._wholes - taken)[:1])
        elif alert.layer is None:
            members = set(range(len(self._subjects))) - taken
        else:
            members = set()
        if members:
            self._hysteresis.take_over(sorted(members))
            self._active[list(members)] = True
            self._open.append(_Open(alert, members))
            self._told[alert.key] = None

    def look(self, view: View) -> list[Event]:
        """Judge some records.

        Args:
            view: the records.

        Returns:
            Which alerts began and which are over, in order.
        """
        with np.errstate(all="ignore"):
            return self._look(view) if len(view) else []

    def _look(self, view: View) -> list[Event]:
        judgement = self.rule.judge(view)
        if judgement is None:
            return []
        if self.rule.warmup > view.records[0]:
            known = judgement.known.copy()
            known[view.records < self.rule.warmup] = False
            judgement = replace(judgement, known=known)
        events: list[Event] = []
        for change in self._changes(view, judgement):
            record, step = int(view.records[change.row]), int(view.steps[change.row])
            if self._due is not None and record > self._due:
                events += self._tell(self._due, self._step_of(view, self._due))
            events += self._take(change, record, step)
        last = int(view.records[-1])
        if self._due is not None and last >= self._due:
            events += self._tell(self._due, self._step_of(view, self._due))
        self._last = last, int(view.steps[-1])
        return events

    def finish(self) -> list[Event]:
        """The run is over: tell of what waits to be told with others."""
        return list(self._tell(*self._last)) if self._due is not None else []

    def _changes(self, view: View, judgement: Judgement) -> list[Change]:
        shape = (len(view), len(self._subjects))
        for part in (judgement.known, judgement.bad, judgement.calm, judgement.value):
            if part.shape != shape:
                raise ValueError(f"expected a judgement of shape {shape}, got {part.shape}")
        return self._hysteresis.follow(view.steps, judgement)

    def _step_of(self, view: View, record: int) -> int:
        return int(view.steps[max(record - int(view.records[0]), 0)])

    def _take(self, change: Change, record: int, step: int) -> Iterator[Event]:
        """The events of one record at which somebody's trouble began or is over."""
        self._active[change.began], self._active[change.ended] = True, False
        for at, over in zip(change.ended.tolist(), change.over.tolist(), strict=True):
            if at in self._pending:
                self._over[at] = over
                if self._due is None:  # it waited for others, and none of them came
                    del self._pending[at], self._over[at]
        yield from self._close(change, record)
        members = {member for one in self._open for member in one.members}
        parts = (change.began, change.since, change.value, change.score)
        for at, since, value, score in zip(*(part.tolist() for part in parts), strict=True):
            if at not in members and at not in self._pending:
                self._pending[at] = Seen(at, self._subjects[at], since, value, score)
                if self._due is None:
                    self._due = record + self.rule.gather
        if self._due is not None and (self._due <= record or self._wholes & set(self._pending)):
            yield from self._tell(record, step)

    def _close(self, change: Change, record: int) -> Iterator[Event]:
        """End the alerts of which no subject is in trouble any more."""
        for one in list(self._open):
            for at, over in zip(change.ended.tolist(), change.over.tolist(), strict=True):
                if at in one.members:
                    one.over = max(one.over, over)
            if not self._active[list(one.members)].any():
                self._open.remove(one)
                ended = max(one.over, one.alert.step)
                yield Event(record, replace(one.alert, ended=ended))

    def _tell(self, record: int, step: int) -> Iterator[Event]:
        """Make alerts of what is pending."""
        self._due = None
        pending = sorted(self._pending.values(), key=_by_badness)
        wholes = [one for one in pending if one.index in self._wholes]
        layers = [one for one in pending if one.index not in self._wholes]
        groups: list[list[Seen]] = []
        if wholes:
            groups = [[wholes[0], *layers], *([one] for one in wholes[1:])]
        elif layers:
            about_all = [one for one in self._open if self._wholes & one.members]
            open_members = sum(len(one.members) for one in self._open)
            if about_all:
                about_all[0].members.update(one.index for one in layers)
            elif len(layers) <= _APART and len(self._open) + len(layers) <= _MOST_OPEN:
                groups = [[one] for one in layers]
            elif len(self._open) < _MOST_OPEN or len(layers) >= open_members:
                groups = [layers]
            else:
                for at in self._over:
                    del self._pending[at]
                self._over.clear()
                return  # they wait until there are more of them
        over, self._over = self._over, {}
        self._pending.clear()
        for group in groups:
            yield from self._begin(group, over, record, step)

    def _begin(
        self, group: list[Seen], over: dict[int, int], record: int, step: int
    ) -> Iterator[Event]:
        found = Found(tuple(group), len(self._names), step)
        alert = self._alert(found, self.rule.explain(found))
        self._told[alert.key] = None
        while len(self._told) > 1000:
            del self._told[next(iter(self._told))]
        yield Event(record, alert)
        one = _Open(alert, {seen.index for seen in group})
        if self._active[list(one.members)].any():
            one.over = max((over[at] for at in one.members if at in over), default=0)
            self._open.append(one)
        else:  # it was all over before it was told
            ended = max([alert.step, *(over[at] for at in one.members)])
            yield Event(record, replace(alert, ended=ended))

    def _alert(self, found: Found, words: Words) -> Alert:
        layer = words.layer
        if layer is None and len(found.seen) == 1:
            layer = found.worst.layer
        step = found.step
        # Two alerts of a rule on several layers may go back to the same step.
        if (self.rule.name, step, layer) in self._told:
            step = found.known
        value = float(found.worst.value)
        return Alert(
            self.rule.name, step, layer, value, words.message, words.advice, words.severity
        )


def _by_badness(one: Seen) -> tuple[bool, float, int]:
    score = one.score if one.score == one.score else -np.inf
    return one.layer is not None, -score, one.index
