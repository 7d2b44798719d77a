"""What the optimizers are compared with their oracles on: options, and models with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from optim_helpers import Path
from torch import Tensor

from gradwise import optim
from reference import optimizers as oo
from reference.stepping import Method
from reference.strategies import LAYOUTS, SHAPES, laid_out, values

WIDE = (torch.float64, torch.float32, torch.complex64, torch.complex128)
NARROW = (torch.bfloat16, torch.float16)
BETA = st.sampled_from([0.5, 0.9, 0.99])
BETA1 = st.sampled_from([0.0, 0.5, 0.9])
DECAY = st.sampled_from([0.0, 0.0, 0.1])
EPS = st.sampled_from([1e-8, 1e-3, 1.0])


def options(**how: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"maximize": st.booleans(), **how})


@dataclass
class Case:
    """A method: the library's class, its oracle, and what its options may be."""

    cls: Callable[..., torch.optim.Optimizer]
    oracle: Callable[..., Method]
    options: st.SearchStrategy[dict[str, Any]]
    wide: bool = True  # float32 state for parameters of 16 bits
    scalars: tuple[str, ...] = ()
    rtol: float = 1e-11  # for float64


SGD_OPTIONS = st.one_of(
    options(
        lr=st.sampled_from([1e-3, 0.1]),
        momentum=st.sampled_from([0.0, 0.5, 0.9]),
        dampening=st.sampled_from([0.0, 0.3]),
        weight_decay=DECAY,
    ),
    options(lr=st.just(0.1), momentum=BETA, nesterov=st.just(True), weight_decay=DECAY),
)
CASES = {
    "sgd": Case(optim.SGD, oo.SGD, SGD_OPTIONS, wide=False),
    "adamw": Case(
        optim.AdamW,
        oo.AdamW,
        options(
            lr=st.sampled_from([1e-3, 0.1]),
            betas=st.tuples(BETA1, BETA),
            eps=EPS,
            weight_decay=DECAY,
            amsgrad=st.booleans(),
        ),
        wide=False,
    ),
    "sgdf": Case(
        optim.SGDF,
        oo.SGDF,
        options(
            lr=st.sampled_from([0.01, 0.5]),
            betas=st.tuples(BETA1, BETA),
            eps=EPS,
            gamma=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
            variance_factor=st.booleans(),
            weight_decay=DECAY,
            decoupled_weight_decay=st.booleans(),
        ),
    ),
    "hgm": Case(
        optim.HGM,
        oo.HGM,
        options(
            lr=st.sampled_from([1e-3, 0.1]),
            betas=st.tuples(BETA1, BETA),
            eps=EPS,
            beta_s=st.sampled_from([0.0, 0.9, 1.0]),
            gamma=st.sampled_from([0.0, 0.5, 2.0]),
            scope=st.sampled_from(["tensor", "global"]),
            weight_decay=DECAY,
        ),
        scalars=("alignment",),
        rtol=1e-7,  # the alignment is a float32 number
    ),
    "adamomentum": Case(
        optim.AdaMomentum,
        oo.AdaMomentum,
        options(
            lr=st.sampled_from([1e-3, 0.1]),
            betas=st.tuples(BETA1, BETA),
            eps=st.sampled_from([1e-16, 1e-8, 1e-2]),
            weight_decay=DECAY,
            decoupled_weight_decay=st.booleans(),
        ),
    ),
    "adarem": Case(
        optim.AdaRem,
        oo.AdaRem,
        options(
            lr=st.sampled_from([0.01, 0.1]),
            beta=BETA1,
            lam=st.sampled_from([0.0, 0.5, 0.999, 1.0]),
            eps=EPS,
            weight_decay=DECAY,
        ),
    ),
    "adagradota": Case(
        optim.AdaGradOTA,
        oo.AdaGradOTA,
        options(
            lr=st.sampled_from([1e-3, 0.1]),
            alpha=st.sampled_from([1.1, 1.5, 2.0]),
            beta1=BETA1,
            eps=st.sampled_from([1e-4, 0.1]),
        ),
    ),
    "adamota": Case(
        optim.AdamOTA,
        oo.AdamOTA,
        options(
            lr=st.sampled_from([1e-3, 0.1]),
            alpha=st.sampled_from([1.1, 1.5, 2.0]),
            betas=st.tuples(BETA1, st.sampled_from([0.3, 0.9])),
            eps=st.sampled_from([1e-4, 0.1]),
        ),
    ),
}


@st.composite
def models(
    draw: st.DrawFn,
    dtypes: Sequence[torch.dtype],
    layouts: Sequence[str] = LAYOUTS,
    alike: bool = False,
) -> tuple[list[Tensor], Path]:
    """Parameters, and their gradients over several steps."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=3))
    first = draw(st.sampled_from(dtypes))
    kinds = [first if alike else draw(st.sampled_from(dtypes)) for _ in shapes]
    seeds = st.integers(0, 10_000)

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, scale: float, kind: str) -> Tensor:
        made = values(shape, dtype, draw(seeds), scale, 0.0, kind)
        return laid_out(made, draw(st.sampled_from(layouts)))

    start = [tensor(s, d, 1.0, "normal") for s, d in zip(shapes, kinds, strict=True)]
    path: Path = []
    for _ in range(draw(st.integers(1, 5))):
        scale = 10.0 ** draw(st.integers(-2, 2))
        kind = draw(st.sampled_from(["normal", "normal", "normal", "zeros"]))
        absent = [draw(st.integers(0, 3)) == 0 for _ in shapes]
        path.append(
            [
                None if none else tensor(s, d, scale, kind)
                for s, d, none in zip(shapes, kinds, absent, strict=True)
            ]
        )
    return start, path
