"""What makes the module `gradwise.watch` callable."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from gradwise.watch.watch import Watch

if TYPE_CHECKING:
    from gradwise.watch import rules, sinks, store


class WatchModule(ModuleType):
    """A module whose call makes a `Watch`."""

    Watch = Watch
    __call__ = staticmethod(Watch)
    if TYPE_CHECKING:
        load = staticmethod(store.load)
        rules = rules
        sinks = sinks
