"""A block of records as rules look at it: what several of them need is worked out once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from gradwise.watch.block import Block

__all__ = ["Array", "Mask", "View", "any_of", "is_bias"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class View:
    """Some consecutive records, K of them, of L layers.

    Args:
        block: the records.
        first: how many records of the run came before these.

    Attributes:
        names: the layers.
        steps: [K], the steps.
        records: [K], the place of each record in what has been seen of the run, from 0.

    Examples:
        >>> norm = np.array([[3.0, 4.0], [np.nan, np.nan]])
        >>> view = View(Block(("a", "b"), np.arange(2), {"norm": norm}, {}), 0)
        >>> view.whole.tolist(), view.measured.tolist(), view.layer("std") is None
        ([5.0, nan], [True, False], True)
    """

    def __init__(self, block: Block, first: int) -> None:
        self.names = block.names
        self.steps = np.asarray(block.steps, np.int64)
        self.records = first + np.arange(len(self.steps))
        self._block = block
        self._kept: dict[str, Array] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def layer(self, metric: str) -> Array | None:
        """A metric of all layers [K, L], NaN where it was not recorded; None where it never is.

        Args:
            metric: its name, for instance "norm".
        """
        if metric not in self._block.layers:
            return None
        if metric not in self._kept:
            self._kept[metric] = np.asarray(self._block.layers[metric], np.float64)
        return self._kept[metric]

    def scalar(self, metric: str) -> Array:
        """A step metric, or whatever the user logs, [K]; NaN where it was not recorded.

        Args:
            metric: its name, for instance "loss".
        """
        if metric not in self._block.scalars:
            return np.full(len(self), np.nan)
        return np.asarray(self._block.scalars[metric], np.float64)

    @cached_property
    def log_norm(self) -> Array | None:
        """Natural logarithm of the layers' norms [K, L]; NaN for 0 and for what is not finite."""
        norm = self.layer("norm")
        return None if norm is None else _log(norm)

    @cached_property
    def whole(self) -> Array:
        """The norm of the whole gradient [K]."""
        norm, told = self.layer("norm"), self.scalar("grad_norm")
        if norm is None or not np.isnan(told).any():
            return told
        with np.errstate(all="ignore"):
            square = np.where(np.isnan(norm), 0.0, norm) ** 2
            own = np.sqrt(square.sum(1))
        own[~any_of(~np.isnan(norm))] = np.nan
        return np.where(np.isnan(told), own, told)

    @cached_property
    def log_whole(self) -> Array:
        """Natural logarithm of the norm of the whole gradient [K]; NaN as in `log_norm`."""
        return _log(self.whole)

    @cached_property
    def measured(self) -> Mask:
        """Whether the gradients were measured at all [K]: some layer has a norm."""
        norm = self.layer("norm")
        if norm is None:
            return np.zeros(len(self), np.bool_)
        return any_of(~np.isnan(norm))

    @cached_property
    def resting(self) -> Mask:
        """Whether all learning rates are 0 [K], so that nothing is meant to move."""
        names = [n for n in self._block.scalars if n == "lr" or n.startswith("lr/")]
        found = np.full(len(self), bool(names), np.bool_)
        for name in names:
            rate = self.scalar(name)
            found &= (rate == 0.0) | np.isnan(rate)
        return found


def any_of(mask: Mask) -> Mask:
    """Whether any of the N subjects is marked, at each record: [K] from [K, N].

    Args:
        mask: the marks.
    """
    return np.asarray(mask.any(1), np.bool_)


def is_bias(name: str) -> bool:
    """Whether a layer is a bias, by its name.

    Args:
        name: the layer's.

    Examples:
        >>> [is_bias(name) for name in ("conv.bias", "attn.in_proj_bias", "rnn.bias_ih_l0", "fc")]
        [True, True, True, False]
    """
    last = name.rpartition(".")[2].lower()
    return last.endswith("bias") or last.startswith("bias")


def _log(values: Array) -> Array:
    """Logarithms of positive finite numbers, NaN for all others."""
    with np.errstate(all="ignore"):
        found = np.log(values)
    found[~np.isfinite(found)] = np.nan
    return np.asarray(found, np.float64)
