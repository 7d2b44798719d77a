"""All rules over the records of a run: the consumer that speaks up."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.alerts import Alert, AlertJournal, GradientAlert
from gradwise.watch.block import Block, Consumer
from gradwise.watch.rules.base import Action, AnyRule, Rule
from gradwise.watch.rules.episodes import Episodes, Event
from gradwise.watch.rules.nostep import NoStep
from gradwise.watch.rules.view import View

__all__ = ["Rules"]

_MOST_KEPT = 2000  # alerts in memory; the journal has all
_log = logging.getLogger("gradwise")


class Rules(Consumer):
    """Runs rules over blocks of records, however they are cut, and does what each is to do.

    Blocks are taken in a background thread. What has to happen in the training loop (calling
    functions, raising) waits there until the loop calls `deliver`. A rule that fails is left out
    from then on, with one line in the log; the others go on.

    Args:
        rules: the rules; where two have the same name, the first counts.
        journal: see `keep_in`; None for nowhere.
        on_alert: called in the training loop with every new alert, whatever its rule's action.

    Attributes:
        errors: how many rules failed.

    Raises:
        UserError: where something else than a rule is among them.

    Examples:
        >>> import numpy as np
        >>> from gradwise.watch.rules import NonFinite
        >>> rules = Rules([NonFinite(action="raise")])
        >>> count = np.array([[0.0, 0.0], [0.0, 3.0]])
        >>> [alert] = rules.look(Block(("conv", "head"), np.arange(2), {"nonfinite": count}, {}))
        >>> alert.step, alert.layer
        (1, 'head')
        >>> rules.deliver()
        Traceback (most recent call last):
        gradwise.watch.alerts.GradientAlert: step 1, non-finite: ...
    """

    def __init__(
        self,
        rules: Iterable[AnyRule] | None = None,
        *,
        journal: AlertJournal | None = None,
        on_alert: Callable[[Alert], object] | None = None,
    ) -> None:
        if rules is None:
            from gradwise.watch.rules.defaults import default_rules

            rules = default_rules()
        self._rules: dict[str, AnyRule] = {}
        for rule in rules:
            if not isinstance(rule, AnyRule):
                raise UserError(f"expected rules such as Exploding(), got {rule!r} among the rules")
            self._rules.setdefault(rule.name, rule)
        self.errors = 0
        self._journal: AlertJournal | None = None
        self._on_alert = on_alert
        self._episodes: dict[str, Episodes] = {}
        self._names: tuple[str, ...] | None = None
        self._seen = 0  # records
        self._alerts: dict[tuple[str, int, str | None], Alert] = {}
        self._waiting: deque[tuple[Alert, Action | Callable[[Alert], object]]] = deque()
        self._advised: set[str] = set()  # what the log has told: once is enough
        self._turn = threading.RLock()
        clocks = (rule.clock() for rule in self._rules.values() if isinstance(rule, NoStep))
        self._no_step = next(clocks, None)
        if journal is not None:
            self.keep_in(journal)

    def keep_in(self, journal: AlertJournal) -> None:
        """Keep the alerts on the disk, those so far as well, and go on with those that last there.

        Args:
            journal: of the run's folder.
        """
        with self._turn:
            for alert in self._alerts.values():
                journal.write(alert)
            self._journal = journal
            before = {alert.key: alert for alert in journal.lasting}
            self._alerts = before | self._alerts
            for alert in before.values():
                self._adopt(alert)

    @property
    def rules(self) -> tuple[AnyRule, ...]:
        """The rules that count."""
        return tuple(self._rules.values())

    @property
    def alerts(self) -> list[Alert]:
        """The alerts so far, in the order in which they were found: the last 2000 at least."""
        with self._turn:
            return list(self._alerts.values())

    @property
    def active(self) -> list[Alert]:
        """The alerts that last."""
        return [alert for alert in self.alerts if alert.ended is None]

    def take(self, block: Block) -> None:
        """Judge records, as `look` does.

        Args:
            block: the records.
        """
        self.look(block)

    def look(self, block: Block) -> list[Alert]:
        """Judge records, and act on what is found.

        Args:
            block: records that follow those seen so far.

        Returns:
            The alerts that are new.
        """
        with self._turn:
            if block.names != self._names:
                self._begin(block.names)
            view = View(block, self._seen)
            self._seen += len(block)
            events = [event for name in list(self._episodes) for event in self._ask(name, view)]
            # As they came to light: so the order is the same for blocks of any size.
            return self._act(sorted(events, key=lambda event: event.record))

    def no_step(self, *, step: int, backwards: float, seconds: float, usual: float | None) -> None:
        """Tell the rule `NoStep`, if it is among the rules, how the training loop gets on.

        To be called once in a while, from any thread.

        Args:
            step: the last step taken.
            backwards: backward passes since then.
            seconds: time since then.
            usual: backward passes that a step usually has; None where there was no step yet.
        """
        with self._turn:
            if self._no_step is None:
                return
            alert = self._no_step.feed(step=step, backwards=backwards, seconds=seconds, usual=usual)
            if alert is not None:
                self._act([Event(self._seen, alert)])

    def deliver(self) -> None:
        """Call the functions that wait for alerts, and raise where a rule is to raise.

        To be called in the training loop at each step; costs nothing while nothing waits. What a
        function raises goes to the training loop; what waits behind it comes with the next call.

        Raises:
            GradientAlert: for an alert of a rule with the action "raise".
        """
        while self._waiting:
            alert, action = self._waiting.popleft()
            if callable(action):
                action(alert)
            elif action == "raise":
                raise GradientAlert(alert)

    def close(self) -> None:
        """There are no more records: tell of what was still being gathered."""
        with self._turn:
            self._act([event for one in self._episodes.values() for event in one.finish()])
            self._episodes.clear()
            self._names = None
            if self._journal is not None:
                self._journal.close()

    def _begin(self, names: tuple[str, ...]) -> None:
        """Start all rules, or start them anew because the layers have changed."""
        self._act([event for one in self._episodes.values() for event in one.finish()])
        self._names, self._seen = names, 0
        self._episodes = {}
        for name, rule in self._rules.items():
            if not isinstance(rule, Rule):
                continue
            try:
                self._episodes[name] = Episodes(rule, names)
            except Exception:
                self._give_up(name)
        for alert in self.active:
            self._adopt(alert)

    def _adopt(self, alert: Alert) -> None:
        """Let a rule go on with an alert, where it has begun; those that begin later see to it."""
        if alert.rule in self._episodes:
            self._episodes[alert.rule].adopt(alert)

    def _ask(self, name: str, view: View) -> list[Event]:
        """What one rule finds; nothing, from now on, where it fails."""
        try:
            return self._episodes[name].look(view)
        except Exception:
            self._give_up(name)
            return []

    def _give_up(self, name: str) -> None:
        self.errors += 1
        self._episodes.pop(name, None)
        self._rules = {key: rule for key, rule in self._rules.items() if key != name}
        _log.warning("the rule %r failed and is left out from now on", name, exc_info=True)

    def _act(self, events: Sequence[Event]) -> list[Alert]:
        """Keep alerts and do what their rules are to do."""
        new = []
        for alert in (event.alert for event in events):
            lasts = alert.ended is None
            if self._journal is not None:
                (self._journal.write if lasts else self._journal.end)(alert)
            self._alerts[alert.key] = alert
            if not lasts:
                _log.info("%s is over since step %d: %s", alert.rule, alert.ended, alert.message)
                continue
            new.append(alert)
            action: Any = self._rules[alert.rule].action if alert.rule in self._rules else "log"
            if action == "log":
                level = logging.ERROR if alert.severity == "error" else logging.WARNING
                advice = "" if alert.advice in self._advised else f" {alert.advice}"
                self._advised.add(alert.advice)
                _log.log(level, "step %d, %s: %s%s", alert.step, alert.rule, alert.message, advice)
            else:
                self._waiting.append((alert, action))
            if self._on_alert is not None and self._on_alert != action:
                self._waiting.append((alert, self._on_alert))
        self._forget()
        return new

    def _forget(self) -> None:
        """Keep memory bounded: the oldest go first, and those that last only after all others."""
        if len(self._alerts) > _MOST_KEPT:
            spare = len(self._alerts) - _MOST_KEPT
            over = [key for key, alert in self._alerts.items() if alert.ended is not None]
            for key in [*over, *self._alerts][:spare]:
                self._alerts.pop(key, None)
