"""Games to play online: how functions change from round to round, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis.online import GradFn, Loss
from gradwise.errors import UserError

FAMILIES = ("curved", "linear")
GRID = 64  # places on a circle that Newton's method starts from
NEWTON = 6


@dataclass(frozen=True)
class Game:
    """T functions on a ball around 0.

    Attributes:
        losses: f_1..f_T.
        gradients: theirs.
        total: their sum, at once.
        variation: V_T, exactly.
        ell: `smoothness`, a function of the gradient's norm; None for functions without curvature.
    """

    losses: list[Loss]
    gradients: list[GradFn]
    total: Loss
    variation: float
    ell: Callable[[float], float] | None


def vectors(world: str, rounds: int, dim: int, seed: int) -> Tensor:
    """v_1..v_T of a world, (T, dim), float64, of norm below 1 or so.

    static: v. alternating: v, -v, v, ... independent: normal, 0.3 an entry. fading: b +- a t^-1/4
    in turns, whose variation grows as sqrt(T) only. drifting: once around a circle of radius |v|.

    Args:
        world: one of these.
        rounds: T.
        dim: >= 2.
        seed: of directions, and of |v| in 0.5..0.9.
    """
    stream = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(dim, 2, generator=stream, dtype=torch.float64)).Q
    first, second = frame.T * (0.5 + 0.4 * torch.rand(1, generator=stream, dtype=torch.float64))
    noise = torch.randn(rounds, dim, generator=stream, dtype=torch.float64)
    t = torch.arange(rounds, dtype=torch.float64)[:, None]
    signs = 1 - 2 * (t % 2)
    angle = 2 * math.pi * t / rounds
    made: dict[str, Tensor] = {
        "static": first.expand(rounds, dim),
        "alternating": first * signs,
        "independent": 0.3 * noise,
        "fading": second / 2 + first * signs * (t + 1) ** -0.25,
        "drifting": first * angle.cos() + second * angle.sin(),
    }
    if world not in made:
        raise UserError(f"expected world to be one of {', '.join(made)}, got {world!r}")
    return made[world]


def game(family: str, world: str, rounds: int, settings: dict[str, Any], seed: int) -> Game:
    """The functions of a world.

    curved: f_t(x) = |z|^4 / 4 + |z|^2 / 2, z = x - v_t: 1-strongly convex, and smooth only in the
    generalised sense, |Hess f| <= 1 + 3 |z|^2 <= 4 + 3 |grad f|. linear: f_t(x) = <v_t, x>.
    """
    if settings["dim"] < 2:
        raise UserError(f"expected dim >= 2, got dim={settings['dim']}")
    v = vectors(world, rounds, settings["dim"], seed).to(settings["device"])
    if family == "linear":
        change = v.diff(dim=0).square().sum()
        return Game(
            [partial(_line, a) for a in v],
            [partial(_constant, a) for a in v],
            partial(_line, v.sum(0)),
            float(change),
            None,
        )
    if family != "curved":
        raise UserError(f"expected family to be one of {', '.join(FAMILIES)}, got {family!r}")

    def total(x: Tensor) -> Tensor:
        square = (x - v).square().sum(1)
        value: Tensor = (square.square() / 4 + square / 2).sum()
        return value

    return Game(
        [partial(_quartic, c) for c in v],
        [partial(_slope, c) for c in v],
        total,
        float(suprema(v, settings["radius"]).sum()),
        smoothness,
    )


def suprema(centers: Tensor, radius: float) -> Tensor:
    """sup_{|x| <= radius} |grad f_t(x) - grad f_{t-1}(x)|^2 of curved functions, (T-1,), exactly.

    With the middle m of two centers, half their difference d, and y = x - m, b = <y, d>,
    A = |y|^2 + |d|^2 + 1, it is 16 b^2 |y|^2 + 16 b^2 A + 4 |d|^2 A^2. On the sphere |y|^2 is
    linear in x, and along what leaves it as it is this is convex in x, so that the largest value
    lies on the circle in the plane of m and d; there it is a trigonometric polynomial of degree 3.

    Args:
        centers: (T, dim), dim >= 2.
        radius: of the ball.
    """
    m, d = (centers[1:] + centers[:-1]) / 2, centers.diff(dim=0) / 2
    far = m.norm(dim=1)
    along = torch.where(far > 0, (m * d).sum(1) / far.clamp(min=1e-300), 0.0)
    square = d.square().sum(1)
    across = (square - along.square()).clamp(min=0).sqrt()
    far, along, across, square = (part[:, None] for part in (far, along, across, square))
    angle = 2 * math.pi * torch.arange(GRID, device=centers.device, dtype=torch.float64) / GRID
    y2 = radius**2 + far.square() - 2 * radius * far * angle.cos()
    b = radius * (along * angle.cos() + across * angle.sin()) - far * along
    a = y2 + square + 1
    values = 16 * b.square() * (y2 + a) + 4 * square * a.square()
    parts = torch.fft.rfft(values)[:, :4] / GRID  # of degree 0 to 3; no other is there
    parts[:, 1:] *= 2
    degree = torch.arange(4, device=centers.device)
    top, at = values.max(dim=1)
    theta = angle[at]
    for _ in range(NEWTON):
        waves = parts * torch.exp(1j * degree * theta[:, None])
        bend = -(waves * degree**2).real.sum(1)
        rise = -(waves * degree).imag.sum(1)
        theta = theta - torch.where(bend < 0, rise / bend, 0.0)
    found: Tensor = (parts * torch.exp(1j * degree * theta[:, None])).real.sum(1)
    return torch.maximum(found, top)


def smoothness(slope: float) -> float:
    """The ell of curved functions: 4 + 3 |grad f|."""
    return 4 + 3 * slope


def _line(a: Tensor, x: Tensor) -> Tensor:
    return a.dot(x)


def _constant(a: Tensor, x: Tensor) -> Tensor:
    return a


def _quartic(c: Tensor, x: Tensor) -> Tensor:
    z = x - c
    square = z.dot(z)
    return square * square / 4 + square / 2


def _slope(c: Tensor, x: Tensor) -> Tensor:
    z = x - c
    return z * (z.dot(z) + 1)
