"""From a recorder's rows to the columns of a run: what follows from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.page import Row
from gradwise.watch.probes.weights import module_of

PerLayer = Literal["parameter", "module"]
Array = npt.NDArray[Any]

WEIGHT_METRICS = ("weight_norm", "update_ratio")
DIRECTION_METRICS = ("cosine", "sign_agreement")


def layer_metrics(extremes: bool) -> tuple[str, ...]:
    """The columns of every layer that follow from moments, with or without extremes."""
    return ("mean", "std", "var", "norm", *(("max_abs", "zeros") if extremes else ()), "nonfinite")


def step_metrics(extremes: bool) -> tuple[str, ...]:
    """The columns of all layers together, before and after the transforms."""
    names = ("norm", "mean", "std", "var", *(("max_abs",) if extremes else ()))
    return tuple(f"{when}_{name}" for when in ("grad", "applied") for name in names)


@dataclass(frozen=True)
class Layers:
    """The layers of a run, and which of them a tensor belongs to.

    Attributes:
        names: the layers, each once.
        per: whether a layer is a parameter, or a module with the parameters it holds itself.
    """

    names: tuple[str, ...]
    per: PerLayer = "parameter"

    @classmethod
    def of(cls, tensors: Sequence[str], per: PerLayer = "parameter") -> Layers:
        """The layers of tensors with these names.

        Raises:
            UserError: where `per` is neither of the two.

        Examples:
            >>> Layers.of(["conv.weight", "conv.bias", "scale"], "module").names
            ('conv', 'scale')
        """
        if per not in ("parameter", "module"):
            raise UserError(f"expected per to be 'parameter' or 'module', got per={per!r}")
        return cls(tuple(dict.fromkeys(layer_of(name, per) for name in tensors)), per)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.names)}

    def groups(self, tensors: tuple[str, ...]) -> Groups:
        """Which of the layers each of the tensors belongs to."""
        if tensors not in self._known:
            self._known[tensors] = Groups(
                [self._index.get(layer_of(name, self.per), -1) for name in tensors],
                len(self.names),
            )
        return self._known[tensors]

    def strangers(self, tensors: tuple[str, ...]) -> list[str]:
        """The tensors that belong to none of the layers."""
        places = self.groups(tensors).places
        return [name for name, place in zip(tensors, places, strict=True) if place < 0]

    @cached_property
    def _known(self) -> dict[tuple[str, ...], Groups]:
        return {}


class Groups:
    """P tensors in L groups.

    Args:
        places: the group of each tensor; -1 for one that is in none.
        groups: how many groups there are.

    Attributes:
        held: [L], which groups have a tensor at all.

    Examples:
        >>> Groups([0, 0, 2, -1], 3).sum(np.array([[1.0, 2.0, 3.0, 9.0]])).tolist()
        [[3.0, 0.0, 3.0]]
    """

    def __init__(self, places: Sequence[int], groups: int) -> None:
        self.places = np.array(places, np.int64)
        self._groups = groups
        self._identity = np.array_equal(self.places, np.arange(groups))
        order = np.argsort(self.places, kind="stable")
        self._order = order[self.places[order] >= 0]
        sorted_places = self.places[self._order]
        self._present, self._starts = np.unique(sorted_places, return_index=True)
        self.held = np.isin(np.arange(groups), self._present)

    def sum(self, values: Array) -> Array:
        """[K, L, ...] from [K, P, ...]; 0 for a group without tensors."""
        return self.reduce(np.add, values, 0)

    def reduce(self, how: np.ufunc, values: Array, nothing: float) -> Array:
        """[K, L, ...] from [K, P, ...]; `nothing` for a group without tensors."""
        if self._identity:
            return values
        shape = (len(values), self._groups, *values.shape[2:])
        found = np.full(shape, nothing, values.dtype)
        if len(self._order):
            found[:, self._present] = how.reduceat(values[:, self._order], self._starts, axis=1)
        return found


def layer_of(tensor: str, per: PerLayer) -> str:
    """The layer that a tensor belongs to by its name."""
    return tensor if per == "parameter" else (module_of(tensor) or tensor)


def block_of(
    rows: Sequence[Row],
    columns: Mapping[str, Array],
    tensors: tuple[str, ...],
    layers: Layers,
    extremes: bool = False,
) -> Block:
    """The records of some rows.

    Args:
        rows: K rows.
        columns: what a `Page` has of them: "moments" and "applied" [K, 6, P], sums [K, P], and
            scalars [K].
        tensors: the P names.
        layers: the run's.
        extremes: whether min, max and zeros were measured.

    Examples:
        >>> row = Row(step=0, counts=(2, 1), plain=True)
        >>> moments = np.full((1, 6, 2), np.nan)
        >>> moments[0, :3] = [[1.0, 0.0], [2.0, 9.0], [0.0, 0.0]]
        >>> block = block_of([row], {"moments": moments}, ("a", "b"), Layers.of("ab"))
        >>> block.layers["std"].tolist(), block.scalars["grad_norm"].round(3).tolist()
        ([[1.0, 3.0]], [3.606])
    """
    scalars = {name: values for name, values in columns.items() if values.ndim == 1}
    found: dict[str, Array] = {}
    if "moments" in columns and tensors:
        count = np.zeros((len(rows), len(tensors)))
        for at, row in enumerate(rows):
            count[at, : len(row.counts)] = row.counts
        with np.errstate(all="ignore"):  # gradients that diverge are a finding, not an error
            before = _Sums.of(columns["moments"], count, extremes)
            plain = np.array([row.plain for row in rows])[:, None, None]
            applied = np.where(plain, columns["moments"], columns.get("applied", np.nan))
            after = _Sums.of(applied, count, extremes)
            groups, whole = layers.groups(tensors), Groups([0] * len(tensors), 1)
            found = before.merged(groups).layer_metrics()
            found |= _weight_metrics(columns, groups)
            found |= _direction_metrics(columns, count, groups)
            scalars |= before.merged(whole).step_metrics("grad")
            scalars |= after.merged(whole).step_metrics("applied")
    for name in dict.fromkeys(name for row in rows for name in row.scalars):
        told = np.array([row.scalars.get(name, np.nan) for row in rows])
        scalars[name] = np.where(np.isnan(told), scalars[name], told) if name in scalars else told
    steps = np.array([row.step for row in rows], np.int64)
    return Block(layers.names, steps, found, scalars)


def histograms_of(
    rows: Sequence[Row], tensors: tuple[str, ...], layers: Layers
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The steps [N] and counts [N, L, B] of the rows that have histograms, None where none has."""
    sampled = [(row.step, row.histogram.numpy()) for row in rows if row.histogram is not None]
    if not sampled:
        return None
    counts = layers.groups(tensors).sum(np.stack([counts for _, counts in sampled]))
    return np.array([step for step, _ in sampled], np.int64), counts


@dataclass
class _Sums:
    """Moments [K, L] of layers; without values they have a count of 0."""

    count: Array
    mean: Array
    m2: Array
    nonfinite: Array
    low: Array | None
    high: Array | None
    zeros: Array | None

    @classmethod
    def of(cls, moments: Array, count: Array, extremes: bool) -> _Sums:
        mean, m2, nonfinite, low, high, zeros = moments.transpose(1, 0, 2)
        ends = (low, high, zeros) if extremes else (None, None, None)
        return cls(count, mean, m2, nonfinite, *ends)

    def merged(self, groups: Groups) -> _Sums:
        """Of layers made of several tensors (Chan, Golub and LeVeque's update)."""
        # A tensor without values says nothing, whatever stands in its place.
        there = self.count > 0
        count = groups.sum(self.count)
        mean = groups.sum(np.where(there, self.count * self.mean, 0.0)) / count
        own = np.where(there, self.mean - mean[:, groups.places], 0.0)
        m2 = groups.sum(np.where(there, self.m2, 0.0) + self.count * own**2)

        def over(values: Array, how: np.ufunc, nothing: float) -> Array:
            reduced = groups.reduce(how, np.where(there, values, nothing), nothing)
            return np.where(count > 0, reduced, np.nan)

        return _Sums(
            count,
            mean,
            m2,
            over(self.nonfinite, np.add, 0.0),
            None if self.low is None else over(self.low, np.minimum, np.inf),
            None if self.high is None else over(self.high, np.maximum, -np.inf),
            None if self.zeros is None else over(self.zeros, np.add, 0.0),
        )

    def layer_metrics(self) -> dict[str, Array]:
        """By the names of `layer_metrics`; NaN for a layer without a gradient."""
        var = self.m2 / self.count
        found = {
            "mean": self.mean,
            "std": np.sqrt(var),
            "var": var,
            "norm": np.sqrt(np.where(self.count > 0, self.m2 + self.count * self.mean**2, np.nan)),
            "nonfinite": self.nonfinite,
        }
        if self.low is not None and self.high is not None:
            found["max_abs"] = np.maximum(self.high, -self.low)
        if self.zeros is not None:
            found["zeros"] = self.zeros / self.count
        return found

    def step_metrics(self, when: str) -> dict[str, Array]:
        """Of the one layer that all are merged to, `[K]`."""
        found = self.layer_metrics()
        names = [name for name in ("norm", "mean", "std", "var", "max_abs") if name in found]
        return {f"{when}_{name}": found[name][:, 0] for name in names}


def _weight_metrics(columns: Mapping[str, Array], groups: Groups) -> dict[str, Array]:
    if "weight_sumsq" not in columns:
        return {}
    weight, update = (
        np.sqrt(groups.sum(columns[name])) for name in ("weight_sumsq", "update_sumsq")
    )
    weight = np.where(groups.held, weight, np.nan)
    return {"weight_norm": weight, "update_ratio": update / weight}


def _direction_metrics(
    columns: Mapping[str, Array], count: Array, groups: Groups
) -> dict[str, Array]:
    if "direction_dot" not in columns:
        return {}
    dot, now, before, agree = (
        groups.sum(columns[f"direction_{name}"]) for name in ("dot", "now", "before", "agree")
    )
    return {"cosine": dot / np.sqrt(now * before), "sign_agreement": agree / groups.sum(count)}
