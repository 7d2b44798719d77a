"""Rules that speak up about a run's gradients, each with a streak to begin and one to end.

    rules = [Exploding(factor=30, action="raise"), *default_rules()]

A rule judges records; `Rules` runs them all, live or over a stored run.
"""

from gradwise.watch.rules.base import (
    Action,
    AnyRule,
    Found,
    Judgement,
    Rule,
    Seen,
    Words,
)
from gradwise.watch.rules.clipped import AlreadyClipped, ClippedBeforeUnscale
from gradwise.watch.rules.dead import Dead
from gradwise.watch.rules.defaults import default_rules
from gradwise.watch.rules.dominating import Dominating
from gradwise.watch.rules.engine import Rules
from gradwise.watch.rules.exploding import Exploding
from gradwise.watch.rules.frozen import Frozen
from gradwise.watch.rules.nonfinite import NonFinite
from gradwise.watch.rules.nostep import NoStep, StepClock
from gradwise.watch.rules.ratio import LargeUpdates, SmallUpdates
from gradwise.watch.rules.stale import Stale
from gradwise.watch.rules.vanishing import Vanishing
from gradwise.watch.rules.view import View

__all__ = [
    "Action",
    "AlreadyClipped",
    "AnyRule",
    "ClippedBeforeUnscale",
    "Dead",
    "Dominating",
    "Exploding",
    "Found",
    "Frozen",
    "Judgement",
    "LargeUpdates",
    "NoStep",
    "NonFinite",
    "Rule",
    "Rules",
    "Seen",
    "SmallUpdates",
    "Stale",
    "StepClock",
    "Vanishing",
    "View",
    "Words",
    "default_rules",
]
