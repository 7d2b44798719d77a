"""Every transform beside its oracle, and how to run and compare the two."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import gradwise as gw
from gradwise.transforms import AGC, AutoClip, Autoscale, Center, ClipNorm, ZClip, ZNorm
from reference import moments as om
from reference import transforms as ot
from reference.strategies import as_array, as_arrays, largest, rounding, values

RULES = ("trend", "follow", "envelope", "ratio", "damped", "log", "inverse", "center")
UNIT_FREE = ("trend", "follow", "envelope", "ratio", "center")
NEVER_AMPLIFIES = ("trend", "envelope", "damped", "center")
# (transform, oracle) with the same settings
PAIRS: dict[str, tuple[Any, Any]] = {
    **{f"autoscale-{rule}": (Autoscale(rule), ot.Autoscale(rule)) for rule in RULES},
    "center-tensor": (Center("tensor"), ot.Center("tensor")),
    "center-row": (Center("row"), ot.Center("row")),
    "znorm-tensor": (ZNorm("tensor"), ot.ZNorm("tensor")),
    "znorm-global": (ZNorm("global"), ot.ZNorm("global")),
    "znorm-eps": (ZNorm("tensor", eps=0.5), ot.ZNorm("tensor", eps=0.5)),
    "clip": (ClipNorm(0.5), ot.ClipNorm(0.5)),
    "autoclip": (AutoClip(10), ot.AutoClip(10)),
    "autoclip-median": (AutoClip(50), ot.AutoClip(50)),
    "zclip": (ZClip(), ot.ZClip()),
    "zclip-soon": (
        ZClip(warmup=2, threshold=1.0, alpha=0.8, max_norm=1e3),
        ot.ZClip(warmup=2, threshold=1.0, alpha=0.8, max_norm=1e3),
    ),
    "agc": (AGC(), ot.AGC()),
    "agc-loose": (AGC(clipping=2.0, eps=0.1), ot.AGC(clipping=2.0, eps=0.1)),
}


def weights(like: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Parameters for a list of gradients; every third is zero, so that AGC's eps has work."""
    return [values(g.shape, g.dtype, seed + i, i % 3, 0.2, "normal") for i, g in enumerate(like)]


def run(
    transform: Any, steps: list[list[Tensor]], params: list[Tensor] | None = None
) -> list[list[Tensor]]:
    """The outputs of a sequence of steps from a fresh state."""
    state, outputs = None, []
    for grads in steps:
        out, state = transform.update(grads, state, params)
        outputs.append(out)
    return outputs


def factors(transform: Any, steps: list[list[Tensor]]) -> list[float]:
    """The factor alpha that Autoscale chose at every step."""
    state, found = None, []
    for grads in steps:
        moments = gw.measure(grads)
        state = transform.init(moments) if state is None else state
        affine, state = transform(moments, state)
        assert affine.scale is not None
        assert affine.scale.shape == ()
        found.append(affine.scale.item())
    return found


def gain(g: np.ndarray, ref: np.ndarray) -> float:
    """How much an affine map of a tensor or of its rows stretches differences."""

    def spread(x: np.ndarray) -> float:
        numbers = om.reals(x)
        return max(numbers) - min(numbers) if numbers else 0.0

    parts = [(g, ref), *zip(om.rows(g), om.rows(ref), strict=True)]
    stretched = [spread(b) / spread(a) for a, b in parts if spread(a) > 0]
    return max([*stretched, largest(ref) / largest(g) if largest(g) else 0.0])


def assert_close(
    out: list[Tensor | None],
    ref: list[np.ndarray | None],
    grads: list[Tensor | None],
    *,
    cancels: bool = False,
) -> None:
    """Outputs equal the oracle's up to the rounding of `scale * (g - shift)` in each dtype.

    The two small numbers may carry the error of float32 sums where any tensor of the list is not
    float64; the map itself rounds a few times in the tensor's own dtype. Where the scale itself
    `cancels` (the logarithm of a sigma near 1), it keeps an absolute error only.
    """
    assert len(out) == len(ref)
    exact = all(g is None or g.dtype == torch.float64 for g in grads)
    small = 200 * rounding(torch.float64 if exact else torch.float32)
    for new, want, g in zip(out, ref, grads, strict=True):
        if g is None:
            assert new is None
            continue
        assert new is not None
        assert new.shape == g.shape
        assert new.dtype == g.dtype
        got, source = as_array(new), as_array(g)
        slack = 8 * rounding(g.dtype) * gain(source, want) * largest(source)
        slack += small * (largest(source) if cancels else largest(want))
        # Below the smallest normal number a dtype rounds to fixed steps.
        slack += torch.finfo(g.dtype).smallest_normal
        np.testing.assert_allclose(got, want, rtol=0, atol=slack)


def bad(g: Tensor, value: float) -> Tensor:
    """The tensor with its first element replaced."""
    new = g.clone()
    new.view(-1)[0] = value
    return new


def of_length(n: float) -> list[Tensor]:
    """Two gradients with the given length together."""
    parts = torch.tensor([0.6 * n, 0.8 * n], dtype=torch.float64)
    return [parts[:1].view(1, 1), parts[1:]]


def length(grads: list[Tensor]) -> float:
    return ot.total_norm(as_arrays(grads))


def lengths(transform: Any, norms: list[float]) -> list[float]:
    return [length(out) for out in run(transform, [of_length(n) for n in norms])]


def table() -> Tensor:
    """An embedding's sparse gradient, in which row 1 is there twice."""
    where, rows = torch.tensor([[1, 1, 3]]), torch.arange(1.0, 7.0).view(3, 2)
    return torch.sparse_coo_tensor(where, rows, (5, 2), check_invariants=False)
