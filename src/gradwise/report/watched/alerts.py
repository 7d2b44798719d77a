"""The alerts of runs, for the list of them and for the marks in the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradwise.report.encode import rounded
from gradwise.report.watched.record import Record
from gradwise.report.words import join, plural
from gradwise.watch.alerts import Alert

__all__ = ["MOST_ALERTS", "ShownAlert", "alerts_sentence", "counted", "shown_alerts"]

MOST_ALERTS = 300
"""At most so many alerts are on a page, the gravest and earliest of them."""


@dataclass(frozen=True)
class ShownAlert:
    """An alert of one of the runs.

    Attributes:
        index: its place in the page's list.
        method: index of its run.
        run: the run's name.
        alert: what the rule said.
        again: whether an alert before it came with the same advice.
    """

    index: int
    method: int
    run: str
    alert: Alert
    again: bool = False

    def payload(self, layers: Sequence[str]) -> dict[str, Any]:
        """The alert as the page's script reads it.

        Args:
            layers: the layers that the page shows.
        """
        alert = self.alert
        return {
            "method": self.method,
            "rule": alert.rule,
            "step": alert.step,
            "ended": alert.ended,
            "layer": layers.index(alert.layer) if alert.layer in layers else None,
            "whole": alert.layer is None,
            "value": rounded(alert.value),
            "message": alert.message,
            "advice": alert.advice,
            "severity": alert.severity,
        }


def shown_alerts(records: Sequence[Record]) -> tuple[list[ShownAlert], int]:
    """The alerts of all runs in the order of their steps, and how many had no room.

    Args:
        records: the runs.
    """
    found = [
        (method, one.name, alert) for method, one in enumerate(records) for alert in one.alerts
    ]
    grave = sorted(found, key=lambda entry: (entry[2].severity != "error", entry[2].step))
    kept = sorted(grave[:MOST_ALERTS], key=lambda entry: (entry[2].step, entry[0]))
    given: set[str] = set()
    shown = []
    for at, (method, run, alert) in enumerate(kept):
        shown.append(ShownAlert(at, method, run, alert, again=alert.advice in given))
        given.add(alert.advice)
    return shown, len(found) - len(kept)


def counted(alerts: Sequence[Alert]) -> str:
    """How many errors and warnings there are, in words.

    Args:
        alerts: the alerts.

    Examples:
        >>> counted([Alert("dead", 4, None, 1.0, "", "", "warning")]), counted([])
        ('1 warning', 'no alerts')
    """
    errors = sum(alert.severity == "error" for alert in alerts)
    parts = [plural(errors, "error")] if errors else []
    if len(alerts) > errors:
        parts.append(plural(len(alerts) - errors, "warning"))
    return join(parts) if parts else "no alerts"


def alerts_sentence(record: Record) -> str:
    """What the rules found, in a sentence.

    Args:
        record: the run.
    """
    if not record.alerts:
        return ""
    grave = record.gravest[0]
    which = "The gravest" if len(record.alerts) > 1 else "It"
    layer = f" in {grave.layer}" if grave.layer else ""
    rule = grave.rule.replace("_", " ")
    return f"{counted(record.alerts)}. {which} began at step {grave.step:,}: {rule}{layer}."
