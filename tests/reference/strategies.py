"""What gradients look like in the wild, as Hypothesis strategies, and the bridge to the oracles.

Values come from a seeded generator, so an example is a handful of small draws that shrink well:
shapes, dtype, memory layout, scale, and how far the mean lies from zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

COMMON = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
# For what runs once a transform: enough to meet every shape, few enough to stay quick.
FEW = settings(COMMON, max_examples=15)

DOUBLE = (torch.float64,)
WIDE = (torch.float32, torch.float64, torch.complex64)
ALL = (*WIDE, torch.float16, torch.bfloat16)

SHAPES = st.one_of(
    st.sampled_from(
        [
            *[
                (),
                (0,),
                (1,),
                (7,),
                (300,),
                (1, 1),
                (1, 6),
                (6, 1),
                (0, 3),
                (3, 0),
                (2, 3),
                (9, 40),
            ],
            *[
                (4, 3, 2),
                (3, 1, 1),
                (2, 0, 4),
                (2, 3, 4, 5),
                (4, 4, 3, 3),
                (1, 1, 1, 1),
                (5, 2, 1, 1),
            ],
        ]
    ),
    st.lists(st.integers(1, 5), max_size=4).map(tuple),
)
# Shapes that every method has something to do on.
SOLID = st.lists(st.integers(2, 5), min_size=2, max_size=4).map(tuple)
# Those and the smallest ones that some methods leave alone.
SIZES = st.one_of(SOLID, st.sampled_from([(4,), (1,), (1, 1), (3, 1)]))

LAYOUTS = ("contiguous", "permuted", "strided", "shifted", "channels_last")
KINDS = ("normal", "constant", "zeros", "spiky", "integers")


def rounding(dtype: torch.dtype) -> float:
    """Half the gap between 1 and the next number: the largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def values(
    shape: Sequence[int], dtype: torch.dtype, seed: int, scale: float, offset: float, kind: str
) -> Tensor:
    """Random numbers of the kind, `scale` wide around `offset * scale`, as the dtype holds them."""
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, 2) if dtype.is_complex else tuple(shape)
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    if kind == "constant":
        x = torch.ones_like(x)
    elif kind == "zeros":
        x, offset = torch.zeros_like(x), 0.0
    elif kind == "spiky":
        x = x**5
    elif kind == "integers":
        x = x.round()
    x = scale * (x + offset)
    if dtype.is_complex:
        return torch.view_as_complex(x).to(dtype)
    top = torch.finfo(dtype).max
    return x.clamp(-top, top).to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another place or order of memory."""
    if layout == "permuted" and x.ndim >= 2:
        order = tuple(reversed(range(x.ndim)))
        return x.permute(order).contiguous().permute(order)
    if layout == "strided" and x.ndim >= 1:
        room = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 77.0)
        room[..., ::2] = x
        return room[..., ::2]
    if layout == "shifted":
        room = x.new_full((x.numel() + 3,), 77.0)
        return room[3:].view(x.shape).copy_(x)
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


@st.composite
def tensors(
    draw: st.DrawFn,
    *,
    shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES,
    dtypes: Sequence[torch.dtype] = ALL,
    kinds: Sequence[str] = KINDS,
    scales: tuple[int, int] = (-8, 8),
    offsets: Sequence[float] = (0.0, 1.0, -30.0, 1e4),
) -> Tensor:
    """One gradient."""
    dtype = draw(st.sampled_from(dtypes))
    scale = 10.0 ** draw(st.integers(*scales))
    if dtype == torch.float16:
        scale = min(max(scale, 1e-4), 1.0)
    x = values(
        draw(shapes),
        dtype,
        draw(st.integers(0, 10_000)),
        scale,
        draw(st.sampled_from(offsets)),
        draw(st.sampled_from(kinds)),
    )
    return laid_out(x, draw(st.sampled_from(LAYOUTS)))


@st.composite
def gradients(
    draw: st.DrawFn, *, absent: bool = True, max_size: int = 5, **how: object
) -> list[Tensor | None]:
    """A list of gradients, some of them None where `absent`."""
    one = tensors(**how)  # type: ignore[arg-type]  # keywords are passed on unseen
    entry = st.one_of(one, one, one, st.none()) if absent else one
    return draw(st.lists(entry, min_size=1, max_size=max_size))


@st.composite
def sequences(
    draw: st.DrawFn,
    *,
    steps: tuple[int, int] = (1, 6),
    shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    offsets: Sequence[float] = (0.0, 1.0),
    spread: int = 2,
) -> list[list[Tensor]]:
    """The gradients of one model over several steps: fixed shapes and dtypes, moving scale."""
    sizes = draw(st.lists(shapes, min_size=1, max_size=4))
    # At least one tensor that every method works on.
    sizes.append(draw(SOLID))
    kinds = [draw(st.sampled_from(dtypes)) for _ in sizes]
    powers = st.integers(-spread, spread)
    offset = draw(st.sampled_from(offsets))
    return [
        [
            values(size, dtype, draw(st.integers(0, 10_000)), 10.0**power, offset, "normal")
            for size, dtype in zip(sizes, kinds, strict=True)
        ]
        for power in draw(st.lists(powers, min_size=steps[0], max_size=steps[1]))
    ]


def as_array(x: Tensor | None) -> np.ndarray | None:
    """What a tensor holds, exactly, in float64 or complex128."""
    if x is None:
        return None
    wide = torch.complex128 if x.is_complex() else torch.float64
    return x.detach().to(wide).resolve_conj().contiguous().numpy().copy()


def as_arrays(grads: Sequence[Tensor | None]) -> list[np.ndarray | None]:
    """`as_array` of each."""
    return [as_array(g) for g in grads]


def largest(x: np.ndarray | None) -> float:
    """The largest magnitude; 0 where there is none."""
    return float(np.abs(x).max()) if x is not None and x.size else 0.0


def bits(x: Tensor | None) -> bytes:
    """What a tensor holds, to be compared bit by bit, NaN included."""
    if x is None:
        return b""
    # A fresh tensor: one element of a strided one still has its stride after `contiguous`.
    flat = torch.empty(x.numel(), dtype=x.dtype).copy_(x.detach().flatten())
    return flat.view(torch.uint8).numpy().tobytes()


def gamma(n: int, dtype: torch.dtype) -> float:
    """Relative error allowed to a sum of n numbers that is accumulated in float32 or wider.

    Adding in a tree costs log2(n) roundings; eight more pay for the few additions that a kernel
    makes in a row, for the division and for the square.
    """
    u = rounding(dtype if dtype == torch.float64 else torch.float32)
    return (8 + math.log2(max(n, 1))) * u
