"""What there is to see of a run: its newest values, short curves, and alerts.

Nothing in here reads a file or knows a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.live.spark import binned
from gradwise.live.text import one_line, shown
from gradwise.live.values import last_known, newest, pace
from gradwise.watch.alerts import Alert
from gradwise.watch.block import Block

__all__ = ["SEVERITIES", "Snapshot", "snapshot_of", "words_about"]

Array = npt.NDArray[Any]

SEVERITIES = ("", "warning", "error")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is known of a run at one moment.

    Attributes:
        title: what the run is called, usually its folder.
        names: the L layers.
        step: the last recorded step; None before the first.
        scalars: step metric -> its newest value that is not NaN.
        curves: step metric -> [W], means over stretches of steps, the newest last.
        layers: layer metric -> [L], the newest values; NaN where there is none, and where
            the gradient was not finite.
        metric: the layer metric that `history` is of; None where there is none.
        history: [L, W], as `curves`.
        covered: the first and the last step of the history; None where there is none.
        alerts: all alerts of the run, in the order in which they were found.
        rate: steps a second; None where it is not known.
        about: words on the run: model, optimizer, transform.
        closed: whether the run has ended in good order.
        damaged: how many of its files cannot be read.

    Examples:
        >>> block = Block(("a",), np.arange(2), {"norm": np.array([[1.0], [2.0]])}, {})
        >>> snapshot_of(block).layers
        {'norm': array([2.])}
    """

    title: str
    names: tuple[str, ...]
    step: int | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Array] = field(default_factory=dict)
    layers: Mapping[str, Array] = field(default_factory=dict)
    metric: str | None = None
    history: Array = field(default_factory=lambda: np.empty((0, 0)))
    covered: tuple[int, int] | None = None
    alerts: tuple[Alert, ...] = ()
    rate: float | None = None
    about: tuple[str, ...] = ()
    closed: bool = False
    damaged: int = 0

    @cached_property
    def active(self) -> tuple[Alert, ...]:
        """The alerts that last, errors first and then the newest first."""
        lasting = [alert for alert in self.alerts if alert.ended is None]
        return tuple(sorted(lasting, key=lambda one: (one.severity != "error", -one.step)))

    @cached_property
    def told(self) -> tuple[Alert, ...]:
        """All alerts: those that last, and then those that are over, the newest first."""
        over = [alert for alert in self.alerts if alert.ended is not None]
        return (*self.active, *sorted(over, key=lambda one: -(one.ended or 0)))

    @cached_property
    def marks(self) -> npt.NDArray[np.int8]:
        """[L], what the alerts that last say of each layer, as an index of `SEVERITIES`."""
        found = np.zeros(len(self.names), np.int8)
        places = _places(self.names)
        for alert in self.active:
            at = places.get(alert.layer) if alert.layer is not None else None
            if at is not None:
                found[at] = max(found[at], SEVERITIES.index(alert.severity))
        return found

    def row(self, layer: str | None) -> int | None:
        """The index of the layer that an alert names; None where the run has no such layer.

        Args:
            layer: as in `Alert.layer`.
        """
        return None if layer is None else _places(self.names).get(layer)


def snapshot_of(
    block: Block,
    *,
    title: str = "",
    alerts: Sequence[Alert] = (),
    metric: str = "norm",
    width: int = 24,
    about: Sequence[str] = (),
    closed: bool = False,
) -> Snapshot:
    """What there is to see of records that are in memory.

    Args:
        block: the newest records.
        title: what the run is called.
        alerts: what the rules have said, see `Alert`.
        metric: the layer metric of the curves; where it is missing, the first one.
        width: how many values a curve has.
        about: words on the run, see `words_about`.
        closed: whether the run has ended.
    """
    steps = block.steps
    window = max(len(steps), 1)
    names = [*block.scalars]
    stacked = np.stack([block.scalars[name] for name in names], 1) if names else np.empty((0, 0))
    curves = binned(steps, stacked, window, width) if names else stacked
    chosen = metric if metric in block.layers else next(iter(block.layers), None)
    bare = np.empty((len(block.names), 0))
    history = bare if chosen is None else binned(steps, block.layers[chosen], window, width)
    latest: dict[str, Array] = {}
    newest(latest, block.layers)
    return Snapshot(
        title=title,
        names=block.names,
        step=int(steps[-1]) if len(steps) else None,
        scalars=last_known(block.scalars),
        curves=dict(zip(names, curves, strict=True)),
        layers=latest,
        metric=chosen,
        history=history,
        covered=(int(steps[0]), int(steps[-1])) if len(steps) else None,
        alerts=tuple(alerts),
        rate=pace(steps, block.scalars.get("time")),
        about=tuple(about),
        closed=closed,
    )


def words_about(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The words on a run that stand beside its title.

    Args:
        meta: what the run's writer noted; nothing in it is trusted.

    Examples:
        >>> words_about({"model": "ResNet", "optimizer": "AdamW", "transform": None})
        ('ResNet', 'AdamW')
    """
    named = [meta.get(key) for key in ("model", "optimizer", "transform", "method")]
    words = [shown(value) for value in named if isinstance(value, str) and value]
    seed = meta.get("seed")
    if isinstance(seed, int):
        words.append(f"seed {seed}")
    return tuple(dict.fromkeys(words))


@lru_cache(maxsize=4)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    """The index of each layer, by its name and by how alerts write it."""
    return {one_line(name): at for at, name in enumerate(names)} | {
        name: at for at, name in enumerate(names)
    }
