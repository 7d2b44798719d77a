"""Watch: record what every layer's gradient does, judge it, and read it back.

The module can be called: `gradwise.watch(optimizer, model, "runs/a")` makes a `Watch`, and
`gradwise.watch.load("runs/a")` reads what it wrote.
"""

import sys

from gradwise.watch import rules, sinks
from gradwise.watch.alerts import Alert, GradientAlert, read_alerts
from gradwise.watch.block import Block, Consumer
from gradwise.watch.module import WatchModule
from gradwise.watch.place import WatchWarning
from gradwise.watch.recorder import Recorder
from gradwise.watch.store import Run, RunWriter, load
from gradwise.watch.watch import Watch

__all__ = [
    "Alert",
    "Block",
    "Consumer",
    "GradientAlert",
    "Recorder",
    "Run",
    "RunWriter",
    "Watch",
    "WatchWarning",
    "load",
    "read_alerts",
    "rules",
    "sinks",
]


sys.modules[__name__].__class__ = WatchModule
