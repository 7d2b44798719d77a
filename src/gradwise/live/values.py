"""What follows from recorded values: the newest ones, the pace, and how a metric is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["is_logarithmic", "last_known", "newest", "pace"]

Array = npt.NDArray[Any]

# Metrics of the gradient itself: where it is not finite they have no value, which is not the same
# as not having been recorded.
_GRADIENT = {"mean", "std", "var", "norm", "max_abs", "zeros"}
# Curves that are best read on a linear scale; all others are magnitudes.
_LINEAR = {"mean", "zeros", "nonfinite", "cosine", "sign_agreement", "alpha", "skipped", "lr"}
_PACE_SECONDS = 30.0


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
