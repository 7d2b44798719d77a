"""What there is to see of a run: its newest values, short curves, alerts, and the order of it all.

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
from gradwise.live.text import natural, one_line, shown
from gradwise.watch.alerts import Alert
from gradwise.watch.block import Block

__all__ = [
    "ALERTS",
    "LAYER",
    "Order",
    "Snapshot",
    "arrange",
    "is_logarithmic",
    "newest",
    "pace",
    "snapshot_of",
    "words_about",
]

Array = npt.NDArray[Any]

LAYER = "layer"
"""Name of the column with the layers' names, to sort by."""

ALERTS = "alerts"
"""Name of the column that marks layers with alerts, to sort by."""

SEVERITIES = ("", "warning", "error")

# Metrics of the gradient itself: where it is not finite they have no value, which is not the same
# as not having been recorded.
_GRADIENT = {"mean", "std", "var", "norm", "max_abs", "zeros"}
# Curves that are best read on a linear scale; all others are magnitudes.
_LINEAR = {"mean", "zeros", "nonfinite", "cosine", "sign_agreement", "alpha", "skipped", "lr"}
_PACE_SECONDS = 30.0


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


@dataclass(frozen=True)
class Order:
    """How the layers are ordered.

    Attributes:
        column: `LAYER`, `ALERTS` or a layer metric; None for the model's own order.
        reverse: the other way round than is usual for that column, which is from the largest
            value down, and for names from A to Z.
    """

    column: str | None = None
    reverse: bool = False

    @property
    def descending(self) -> bool:
        """Whether the largest come first."""
        return (self.column not in (None, LAYER)) != self.reverse

    def clicked(self, column: str) -> Order:
        """The order after somebody chose a column: by it, then reversed, then the model's own.

        Args:
            column: as `column` above.

        Examples:
            >>> Order("norm").clicked("norm"), Order("norm", True).clicked("norm").column
            (Order(column='norm', reverse=True), None)
        """
        if column != self.column:
            return Order(column)
        return Order(None) if self.reverse else Order(column, reverse=True)


def arrange(
    snapshot: Snapshot, order: Order, words: str = "", *, only_alerts: bool = False
) -> npt.NDArray[np.intp]:
    """Which layers are shown, in which order.

    Args:
        snapshot: the run.
        order: the order; layers without a value come last in any.
        words: only layers whose name has all these words in it, whatever their case.
        only_alerts: only layers with alerts that last.

    Returns:
        Indices of layers.

    Examples:
        >>> run = Snapshot("a", ("conv", "head"), layers={"norm": np.array([1.0, 2.0])})
        >>> arrange(run, Order("norm")).tolist(), arrange(run, Order(), "CO").tolist()
        ([1, 0], [0])
    """
    kept = np.arange(len(snapshot.names))
    if words.strip():
        wanted = words.lower().split()
        found = [all(word in name for word in wanted) for name in _lowered(snapshot.names)]
        kept = kept[np.array(found, bool)]
    if only_alerts:
        kept = kept[snapshot.marks[kept] > 0]
    if order.column is None:
        return kept[::-1] if order.reverse else kept
    if order.column == LAYER:
        keys = _ranks(snapshot.names)[kept].astype(np.float64)
    elif order.column == ALERTS:
        keys = snapshot.marks[kept].astype(np.float64)
    else:
        values = snapshot.layers.get(order.column)
        keys = np.full(len(kept), np.nan) if values is None else values[kept].astype(np.float64)
    places = np.argsort(-keys if order.descending else keys, kind="stable")  # NaN goes last
    return kept[places]


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


def newest(latest: dict[str, Array], records: Mapping[str, Array]) -> None:
    """Bring the newest values up to date with some records.

    Args:
        latest: layer metric -> [L]; changed in place, though never the arrays in it.
        records: layer metric -> [K, L]; NaN is "not recorded", except for a gradient's own
            metrics where the last record counts entries that are not finite.
    """
    broken = records.get("nonfinite")
    bad = broken[-1] > 0 if broken is not None and len(broken) else None
    for name, values in records.items():
        now = np.array(latest.get(name, np.full(values.shape[1], np.nan)), np.float64)
        if len(values):
            known = ~np.isnan(values)
            back = np.argmax(known[::-1], axis=0)
            last = values[len(values) - 1 - back, np.arange(values.shape[1])]
            now = np.where(known.any(axis=0), last, now)
            if bad is not None and name in _GRADIENT:
                now = np.where(bad & np.isnan(values[-1]), np.nan, now)
        latest[name] = now


def last_known(columns: Mapping[str, Array]) -> dict[str, float]:
    """The newest value that is not NaN of each column that has one.

    Args:
        columns: name -> [K].

    Examples:
        >>> last_known({"loss": np.array([2.0, np.nan]), "lr": np.array([np.nan])})
        {'loss': 2.0}
    """
    found = {}
    for name, values in columns.items():
        known = np.flatnonzero(~np.isnan(values))
        if len(known):
            found[name] = float(values[known[-1]])
    return found


def pace(steps: Array, times: Array | None) -> float | None:
    """Steps a second over the last half minute of the records.

    Args:
        steps: [K].
        times: [K] in seconds, or None where no time was recorded.

    Examples:
        >>> pace(np.arange(0, 100, 10), np.arange(10.0))
        10.0
    """
    if times is None or len(steps) < 2:
        return None
    known = ~np.isnan(times)
    steps, times = steps[known], times[known]
    if len(steps) < 2:
        return None
    first = int(np.argmax(times >= times[-1] - _PACE_SECONDS))
    first = min(first, len(times) - 2)
    spent = float(times[-1] - times[first])
    return float(steps[-1] - steps[first]) / spent if spent > 0 else None


def is_logarithmic(metric: str) -> bool:
    """Whether curves of a metric are drawn on a logarithmic scale, because it is a magnitude.

    Args:
        metric: a layer metric or a step metric.

    Examples:
        >>> is_logarithmic("norm"), is_logarithmic("grad_std"), is_logarithmic("loss")
        (True, True, False)
    """
    name = metric.split("/", 1)[0]
    for prefix in ("grad_", "applied_"):
        if name.startswith(prefix):
            return name.removeprefix(prefix) not in _LINEAR
    return name in {"norm", "std", "var", "max_abs", "weight_norm", "update_ratio", "noise_scale"}


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
def _lowered(names: tuple[str, ...]) -> list[str]:
    return [shown(name).lower() for name in names]


@lru_cache(maxsize=4)
def _ranks(names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """[L], the place of each name in the alphabet of names."""
    order = sorted(range(len(names)), key=lambda at: natural(names[at]))
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    return ranks


@lru_cache(maxsize=4)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    """The index of each layer, by its name and by how alerts write it."""
    return {one_line(name): at for at, name in enumerate(names)} | {
        name: at for at, name in enumerate(names)
    }
