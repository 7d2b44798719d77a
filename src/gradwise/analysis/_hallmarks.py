"""Hallmarks of a trajectory, equations (11.1) to (11.4), from its inner products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis._products import Products


@dataclass(frozen=True)
class TrajectoryMap:
    """Cosines of checkpoints seen from one point, (11.1), and their mean, (11.2).

    A checkpoint at that very point has no direction: it has no row.

    Attributes:
        cosines: [m, m] float64, symmetric, 1 on the diagonal, in [-1, 1].
        indices: the m checkpoints that the rows and columns are of.
        mds: mean directional similarity, the mean of all entries, which is the squared norm of
            the mean of the unit vectors; in [0, 1], None where there is no checkpoint.
        mds_off_diagonal: the mean without the diagonal, in [-1/(m-1), 1]; None for m < 2.
    """

    cosines: Tensor
    indices: tuple[int, ...]
    mds: float | None
    mds_off_diagonal: float | None


@dataclass(frozen=True)
class Angles:
    """Angles along a trajectory, in radians.

    They are resolved to about 3e-8: below that, rounding of inner products shows.

    Attributes:
        values: float64, each in [0, pi]; NaN where one of the two vectors is 0.
        mean: of those that are defined; None where none is.
        total: their sum.
    """

    values: Tensor
    mean: float | None
    total: float


@dataclass(frozen=True)
class TrajectoryReport:
    """How a model, or a layer of it, went through parameter space in n = T + 1 checkpoints.

    After Singh, He, Hofmann, Schoelkopf, The Directionality of Optimization Trajectories in Neural
    Networks, ICLR 2025, https://arxiv.org/abs/2403.07379. Tags: the map is the paper's [V2], the
    relative map, the mean and the lengths are recalled [R], the choice of angles is ours [X].
    Lengths are in the unit of the parameters.

    Attributes:
        layer: its name, None for the whole model.
        steps: [n] where in training the checkpoints are from, as given to the recorder.
        map: seen from the origin.
        relative_map: seen from theta_0, which thus has no row.
        turns: [n-2] between consecutive updates, at theta_1..theta_{T-1}: omega of (11.3).
        apex_origin: [n-1] at the origin, between theta_t and theta_{t+1}, t = 0..T-1.
        apex_start: [n-2] at theta_0, between theta_t and theta_{t+1}, t = 1..T-1.
        norms: [n] ||theta_t||, float64.
        distances: [n] ||theta_t - theta_0||.
        step_norms: [n-1] ||theta_{t+1} - theta_t||.
        path_length: sum of step_norms, (11.4).
        displacement: ||theta_T - theta_0||.
        efficiency: displacement / path_length, in [0, 1]: 1 is a straight line, 0 a closed loop;
            None where nothing moved.
    """

    layer: str | None
    steps: tuple[float, ...]
    map: TrajectoryMap
    relative_map: TrajectoryMap
    turns: Angles
    apex_origin: Angles
    apex_start: Angles
    norms: Tensor
    distances: Tensor
    step_norms: Tensor
    path_length: float
    displacement: float
    efficiency: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, with None for what is undefined."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def report_of(products: Products, steps: Sequence[float], layer: str | None) -> TrajectoryReport:
    """Put together what the inner products say; see `TrajectoryReport`.

    Args:
        products: of n >= 1 checkpoints.
        steps: [n].
        layer: whose products these are.
    """
    squares, turning, outward, outward_start = products.near.unbind(1)
    norms2, distances2 = products.origin.diagonal(), products.start.diagonal()
    step_norms = squares[1:].sqrt()
    path_length, displacement = math.fsum(step_norms.tolist()), float(distances2[-1].sqrt())
    return TrajectoryReport(
        layer=layer,
        steps=tuple(steps),
        map=_map(products.origin),
        relative_map=_map(products.start),
        turns=_angles(
            _angle(squares[1:-1], squares[2:], turning[2:], turning[2:]), squares[1:-1], squares[2:]
        ),
        apex_origin=_apex(norms2, squares, outward),
        apex_start=_apex(distances2[1:], squares[1:], outward_start[1:]),
        norms=norms2.sqrt(),
        distances=distances2.sqrt(),
        step_norms=step_norms,
        path_length=path_length,
        displacement=displacement,
        efficiency=min(1.0, displacement / path_length) if path_length > 0 else None,
    )


def _map(gram: Tensor) -> TrajectoryMap:
    norms = gram.diagonal().sqrt()
    kept = (norms > 0).nonzero().flatten()
    scale = norms[kept]
    cosines = gram[kept][:, kept] / torch.outer(scale, scale)
    cosines = cosines.clamp(-1.0, 1.0).fill_diagonal_(1.0)
    m, total = len(kept), float(cosines.sum())
    return TrajectoryMap(
        cosines=cosines,
        indices=tuple(int(i) for i in kept),
        mds=min(1.0, max(0.0, total / m**2)) if m else None,
        mds_off_diagonal=(total - m) / (m * (m - 1)) if m > 1 else None,
    )


def _apex(norms2: Tensor, squares: Tensor, outward: Tensor) -> Angles:
    """Between a_t and a_{t+1} = a_t + d: from <a_t, d>, since 1 - cos would be all rounding."""
    before, after = norms2[:-1], norms2[1:]
    inner = before + outward[1:]
    return _angles(_angle(before, squares[1:], outward[1:], inner), before, after)


def _angle(a2: Tensor, b2: Tensor, ab: Tensor, along: Tensor) -> Tensor:
    """atan2 of the area that a and b span and of what lies along the first arm."""
    lengths = a2.sqrt() * b2.sqrt()
    cosine = (ab / lengths).nan_to_num(0.0).clamp(-1.0, 1.0)  # squares of ab might overflow
    return torch.atan2(lengths * ((1 - cosine) * (1 + cosine)).sqrt(), along)


def _angles(values: Tensor, *squared_arms: Tensor) -> Angles:
    defined = torch.stack([arm > 0 for arm in squared_arms]).all(0)
    found = values[defined].tolist()
    return Angles(
        values=values.where(defined, math.nan),
        mean=math.fsum(found) / len(found) if found else None,
        total=math.fsum(found),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
