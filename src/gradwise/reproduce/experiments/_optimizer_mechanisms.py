"""What distinguishes four optimizers, measured on made-up gradients where the answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise import registry
from gradwise.reproduce.claims import Claim, judge_greater

__all__ = ["PROBES", "Probe"]

_SEEDS = 8
_VALUES = 100  # parameters in a tensor
_STEPS = 600
_SKIPPED = 200  # steps at the beginning that are not counted

_PERIODS = (10, 30, 100, 300, 1000)  # of the changing gradient of SGDF, in steps
_NOISE = 1.0  # standard deviation around it; its own is 1 too
_STREAMS = (0.0, 0.3, 1.0, 3.0, 10.0)  # noise around a constant gradient of size 1
_RATES = (0.05, 0.1, 0.2, 0.4, 0.8)  # of AdaRem on quadratics whose largest curvature is 1
_SLOPE_NOISE = 0.3
_NOTICED = 0.01  # the least share that is called a change
_MUCH = 0.1  # "much fewer oscillations": the share that has to go

Maker = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Probe:
    """A mechanism in numbers.

    Attributes:
        title: what is measured, in a few words.
        caption: how, and how to read the picture.
        x_label: what is varied.
        y_label: what is measured.
        x: [K] what it is varied over.
        series: by name of the optimizer, a row of [K] for each seed.
        claims: what the paper says on it; none where it says nothing that this could judge.
        logarithmic: which axes are: "", "x", "y" or "xy".
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    series: dict[str, list[list[float]]]
    claims: tuple[Claim, ...] = ()
    logarithmic: str = "x"

    def at(self, name: str, x: float) -> list[float]:
        """One value a seed.

        Args:
            name: of a series.
            x: one of the places.
        """
        place = self.x.index(x)
        return [row[place] for row in self.series[name]]


def _own(spec: str) -> Maker:
    """An optimizer of gradwise with the arguments of a text, in its own formula's way to run."""
    method, arguments = registry.parse(spec)

    def make(params: list[Any], **given: float) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = method.factory(params, **{**arguments, **given})
        return made

    return make


def _fed(make: Maker, gradients: Tensor, lr: float = 1.0) -> Tensor:
    """The steps `[T, C, D]` that an optimizer takes on gradients, with learning rate 1.

    Args:
        make: the optimizer.
        gradients: `[T, C, D]`, of C tensors of D values each.
        lr: of the optimizer; the steps are divided by it.
    """
    params = [torch.nn.Parameter(torch.zeros_like(cell)) for cell in gradients[0]]
    optimizer = make(params, lr=lr)
    steps = torch.empty_like(gradients)
    for t, row in enumerate(gradients):
        before = torch.stack([param.detach().clone() for param in params])
        for param, cell in zip(params, row, strict=True):
            param.grad = cell.clone()
        optimizer.step()
        steps[t] = (before - torch.stack([param.detach() for param in params])) / lr
    return steps


def _rows(cells: Tensor, places: int) -> list[list[float]]:
    """A row for each seed from values of seeds x places cells."""
    rows: list[list[float]] = cells.reshape(_SEEDS, places).tolist()
    return rows


def _normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _sgdf(spec: str) -> Probe:
    """How far the direction of the step is from the gradient without noise."""
    places = len(_PERIODS)
    phase = (
        2
        * math.pi
        * torch.rand(
            _SEEDS, 1, _VALUES, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
    )
    time = torch.arange(_STEPS, dtype=torch.float64)[:, None, None, None]
    period = torch.tensor(_PERIODS, dtype=torch.float64)[:, None]
    wave = math.sqrt(2) * torch.sin(2 * math.pi * time / period + phase)
    signal = wave.reshape(_STEPS, _SEEDS * places, _VALUES)
    gradients = signal + _NOISE * _normal(*signal.shape, seed=2)

    def error(directions: Tensor) -> list[list[float]]:
        squares = (directions - signal)[_SKIPPED:].square()
        return _rows(squares.mean(dim=(0, 2)), places)

    average, averages = torch.zeros_like(gradients[0]), []
    for t, row in enumerate(gradients, start=1):
        average = 0.9 * average + 0.1 * row
        averages.append(average / (1 - 0.9**t))
    series = {
        "gradient itself": error(gradients),
        "fixed average, 0.9": error(torch.stack(averages)),
        "sgdf": error(_fed(_own(spec), gradients)),
    }
    slow = _less(series["gradient itself"], series["sgdf"], -1)
    fast = _less(series["fixed average, 0.9"], series["sgdf"], 0)
    judged_slow, judged_fast = (judge_greater(one, than=_NOTICED) for one in (slow, fast))
    slowest, fastest = f"period {_PERIODS[-1]}", f"period {_PERIODS[0]}"
    return Probe(
        "Error of the direction",
        "Mean squared distance of the step's direction from the gradient without noise, which is a "
        f"sine in each value with variance 1; noise of standard deviation {_NOISE:g} is added. "
        "Long periods are slow changes. The least error is not the same method's everywhere: "
        "where changes are slow a fixed average has the least.",
        "period of the gradient, steps",
        "mean squared error",
        tuple(map(float, _PERIODS)),
        series,
        (
            Claim(
                "Made-up gradients: the filter suppresses noise, so that a slowly changing "
                "gradient is estimated better than by the noisy gradient itself.",
                f"at {slowest} its mean squared error is less by a share of {judged_slow.words()}",
                judged_slow.verdict,
            ),
            Claim(
                "Made-up gradients: the filter preserves the signal, so that a fast changing "
                "gradient is estimated better than by an average with a fixed coefficient.",
                f"at {fastest} its mean squared error is less by a share of {judged_fast.words()}",
                judged_fast.verdict,
            ),
        ),
        "xy",
    )


def _streams() -> Tensor:
    """Constant gradients under noise `[T, seeds * K, D]`."""
    sign = _normal(1, _SEEDS, 1, _VALUES, seed=3).sign()
    noise = _normal(_STEPS, _SEEDS, len(_STREAMS), _VALUES, seed=4)
    scale = torch.tensor(_STREAMS, dtype=torch.float64)[:, None]
    return (sign + scale * noise).reshape(_STEPS, -1, _VALUES)


def _hgm(spec: str) -> Probe:
    """How the rate follows noise: steps of HGM over those of Adam on the same gradients."""
    steady, count = _streams(), len(_STREAMS)
    turning = steady[:, ::count].clone()  # one cell a seed, without noise
    turning[1::2] *= -1
    noise = _normal(_STEPS, _SEEDS, _VALUES, seed=5)
    gradients = torch.cat([steady, turning, noise], dim=1)
    ours = _fed(_own(spec), gradients).norm(dim=2)
    adam = _fed(torch.optim.Adam, gradients).norm(dim=2)
    factor = (ours / adam)[_SKIPPED:].mean(dim=0)
    rows = _rows(factor[: _SEEDS * count], count)
    turned, lost = factor[-2 * _SEEDS : -_SEEDS].tolist(), factor[-_SEEDS:].tolist()
    settled = _around_minimum(_own(spec))
    series = {
        "constant gradient under noise": rows,
        "nothing but noise": [[value] * count for value in lost],
        "noise around a minimum": [[value] * count for value in settled],
        "gradient that turns each step": [[value] * count for value in turned],
    }
    grown = judge_greater([row[0] - 1 for row in rows], than=_NOTICED)
    shrunk = judge_greater([1 - value for value in turned], than=_NOTICED)
    in_noise = judge_greater([1 - value for value in settled], than=_NOTICED)
    return Probe(
        "Rate relative to Adam's",
        "Length of HGM's step over that of Adam's on the same made-up gradients: 1 is Adam's "
        "rate. The lines without a signal do not depend on the axis below.",
        "noise relative to the gradient",
        "rate relative to Adam's",
        _STREAMS,
        series,
        (
            Claim(
                "Made-up gradients: the rate grows where gradients agree with the momentum.",
                f"with a constant gradient it exceeds Adam's by a share of {grown.words()}",
                grown.verdict,
            ),
            Claim(
                "Made-up gradients: the rate shrinks where gradients oscillate.",
                f"with a gradient that turns each step it is less than Adam's by a share of "
                f"{shrunk.words()}",
                shrunk.verdict,
            ),
            Claim(
                "Made-up gradients: the rate shrinks where gradients are noise.",
                "around the minimum of a noisy quadratic it is less than Adam's by a share of "
                f"{in_noise.words()}; the cosine of noise with its average is 0 in the mean",
                in_noise.verdict,
            ),
        ),
        "",
    )


def _around_minimum(make: Maker) -> list[float]:
    """The mean factor of HGM's rate, by seed, where only noise drives it from a minimum."""
    curvature = torch.logspace(-2, 0, _VALUES, dtype=torch.float64)
    params = [torch.nn.Parameter(torch.zeros_like(curvature)) for _ in range(_SEEDS)]
    optimizer = make(params, lr=0.3)  # large: what brings parameters back is strong
    gamma = float(optimizer.param_groups[0]["gamma"])
    factors = torch.zeros(_SEEDS, dtype=torch.float64)
    for t, row in enumerate(_normal(_STEPS, _SEEDS, _VALUES, seed=8)):
        for param, noise in zip(params, row, strict=True):
            param.grad = curvature * param.detach() + noise
        optimizer.step()
        if t >= _SKIPPED:
            alignment = [float(optimizer.state[param]["alignment"]) for param in params]
            factors += torch.tensor(alignment, dtype=torch.float64).mul(gamma).exp()
    return [float(value) / (_STEPS - _SKIPPED) for value in factors]


def _adamomentum(spec: str) -> Probe:
    """How the length of a step depends on noise, beside Adam's."""
    gradients = _streams()

    def length(steps: Tensor) -> list[list[float]]:
        squares = steps[_SKIPPED:].square().mean(dim=(0, 2))
        return _rows(squares.sqrt(), len(_STREAMS))

    series = {
        "adamomentum": length(_fed(_own(spec), gradients)),
        "adam": length(_fed(torch.optim.Adam, gradients)),
    }
    return Probe(
        "Length of a step",
        "Root mean square of a value's step over the learning rate, on a made-up constant gradient "
        "under noise. Adam's steps get short where noise prevails; those of AdaMomentum do not, so "
        "that the same learning rate is a larger one with it.",
        "noise relative to the gradient",
        "step / learning rate",
        _STREAMS,
        series,
        logarithmic="",
    )


def _adarem(spec: str) -> Probe:
    """How much of a parameter's path is undone again, on noisy quadratics."""
    series = {
        "adarem": _undone(_own(spec), 1.0),
        "sgd without momentum": _undone(torch.optim.SGD, 1.0),
        "sgd": _undone(lambda groups: torch.optim.SGD(groups, momentum=0.9), 0.1),
    }
    pairs = zip(series["sgd without momentum"], series["adarem"], strict=True)
    less = [1 - sum(ours) / sum(plain) for plain, ours in pairs]
    judged = judge_greater(less, than=_MUCH)
    return Probe(
        "Share of the path that is undone again",
        f"Noisy quadratics with {_VALUES} curvatures from 0.01 to 1: the share of a parameter's "
        "path that does not bring it from its first place to its last, mean of all parameters; "
        "less is fewer oscillations. SGD with momentum 0.9 has a tenth of the learning rate.",
        "learning rate",
        "share undone",
        _RATES,
        series,
        (
            Claim(
                "Made-up quadratics: parameters oscillate much less (a tenth, say) than with "
                "rates that do not look at the past.",
                "over all learning rates the share of a path that is undone again is less than "
                f"that of SGD without momentum by a part of {judged.words()}",
                judged.verdict,
            ),
        ),
    )


def _undone(make: Maker, factor: float) -> list[list[float]]:
    count = len(_RATES)
    curvature = torch.logspace(-2, 0, _VALUES, dtype=torch.float64)
    start = (_normal(_SEEDS, 1, _VALUES, seed=6) / curvature.sqrt()).expand(-1, count, -1)
    noise = _SLOPE_NOISE * _normal(_STEPS, _SEEDS, 1, _VALUES, seed=7).expand(-1, -1, count, -1)
    first = start.reshape(-1, _VALUES)
    noise = noise.reshape(_STEPS, -1, _VALUES)
    params = [torch.nn.Parameter(cell.clone()) for cell in first]
    optimizer = make(
        [{"params": [param], "lr": factor * _RATES[at % count]} for at, param in enumerate(params)]
    )
    path, now = torch.zeros_like(first), first
    for row in noise:
        for param, disturbance in zip(params, row, strict=True):
            param.grad = curvature * param.detach() + disturbance
        optimizer.step()
        before, now = now, torch.stack([param.detach().clone() for param in params])
        path += (now - before).abs()
    undone = 1 - (now - first).abs() / path
    return _rows(undone.mean(dim=1), count)


def _less(larger: list[list[float]], smaller: list[list[float]], place: int) -> list[float]:
    """By which share one is less than the other, by seed."""
    return [1 - b[place] / a[place] for a, b in zip(larger, smaller, strict=True)]


PROBES: dict[str, Callable[[str], Probe]] = {
    "sgdf": _sgdf,
    "hgm": _hgm,
    "adamomentum": _adamomentum,
    "adarem": _adarem,
}
"""By name of the optimizer; each takes its text as a comparison does, such as "hgm(gamma=0.3)"."""
