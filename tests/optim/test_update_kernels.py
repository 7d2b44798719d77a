"""The compiled step against the methods' equations, in float64, one tensor at a time."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.backends import compiler
from gradwise.backends.update import KERNELS, Update, missing, takes
from gradwise.layout import layout_of

needs_compiler = pytest.mark.skipif(missing("sgd") is not None, reason="no C compiler here")

NUMBERS: dict[str, list[tuple[float, ...]]] = {
    "sgd": [(0.9, 0.0, 0.0), (0.9, 0.0, 1.0), (0.8, 0.3, 0.0)],
    "adamw": [(0.9, 0.999, 1e-8), (0.3, 0.5, 1e-3), (0.0, 0.9, 1e-8)],
    "sgdf": [
        (0.9, 0.999, 1e-8, 0.5, 1.0),
        (0.9, 0.999, 1e-8, 1.0, 0.0),
        (0.8, 0.99, 1e-4, 0.7, 1.0),
        (0.8, 0.99, 1e-4, 0.0, 1.0),
    ],
    "hgm": [(0.9, 0.999, 1e-8, 0.9, 0.5), (0.5, 0.9, 1e-8, 0.0, -1.0)],
    "adamomentum": [(0.9, 0.999, 1e-16), (0.4, 0.9, 1e-4)],
    "adarem": [(0.9, 0.999, 1e-8, 0.0), (0.4, 0.5, 1e-8, 0.1)],
    "ota": [
        (0.9, 0.3, 1.5, 1e-4, 1.0),
        (0.0, 0.0, 1.5, 1e-4, 0.0),
        (0.9, 0.3, 2.0, 1e-4, 1.0),
        (0.9, 0.3, 1.3, 1e-4, 0.0),
        (0.9, 0.3, 1.0, 1e-4, 1.0),
    ],
}
CASES = [(kind, numbers) for kind, several in NUMBERS.items() for numbers in several]
SHAPES = [(1,), (15,), (16, 1), (17,), (1000,), (), (0, 3), (3, 5, 7), (4, 2, 3, 3), (41, 25)]
LR = 0.1


def _method(
    kind: str, n: tuple[float, ...], p: Tensor, g: Tensor, s: list[Tensor], t: int
) -> tuple[Tensor, list[Tensor]]:
    """One step by the equations of methods 2 to 5 and 8, and of torch's SGD and AdamW."""
    if kind == "sgd":
        m = g if t == 1 else n[0] * s[0] + (1 - n[1]) * g
        return p - LR * (g + n[0] * m if n[2] else m), [m]
    b = n[0]
    m = b * s[0] + (1 - b) * g
    if kind == "adarem":
        along = g.sign() * s[0] / (s[0].abs().max() + n[2]) if g.numel() else g
        return p - LR * ((1 + n[1] ** (t - 1) * along) * g + n[3] * p), [m]
    if kind in ("adamw", "hgm"):
        v = n[1] * s[1] + (1 - n[1]) * g * g
        step = LR
        more = []
        if kind == "hgm":
            c = (g * s[0]).sum() / (g.norm() * s[0].norm() + n[2])
            more = [n[3] * s[2] + (1 - n[3]) * c]
            step = LR * torch.exp(n[4] * more[0])
        root = (v / (1 - n[1] ** t)).sqrt()
        return p - step * m / (1 - b**t) / (root + n[2]), [m, v, *more]
    if kind == "sgdf":
        v = n[1] * s[1] + (1 - n[1]) * (g - m) ** 2
        seen = 1 - n[1] ** t
        factor = (1 - b) * (1 - b ** (2 * t)) / ((1 + b) * seen) if n[4] else 1 / seen
        mean = m / (1 - b**t)
        gain = factor * v / (factor * v + (g - mean) ** 2 + n[2])
        return p - LR * (mean + gain ** n[3] * (g - mean)), [m, v]
    if kind == "adamomentum":
        v = n[1] * s[1] + (1 - n[1]) * m * m + n[2]
        return p - LR * m / (1 - b**t) / (v / (1 - n[1] ** t)).sqrt(), [m, v]
    size = m.abs() ** n[2]
    v = n[1] * s[1] + (1 - n[1]) * size if n[4] else s[1] + size
    return p - LR * m / (v ** (1 / n[2]) + n[3]), [m, v]


@dataclass
class Group:
    """Tensors of one group, with what a test does to them."""

    kind: str
    dtype: torch.dtype = torch.float64
    shapes: list[tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    maximize: bool = False
    coupled: float = 0.0
    decoupled: float = 0.0
    per: str | None = None

    def __post_init__(self) -> None:
        wide = self.dtype if self.dtype == torch.float64 else torch.float32
        self.params = [torch.randn(shape).to(self.dtype) for shape in self.shapes]
        count = max(KERNELS[self.kind].buffers)
        self.buffers = [[torch.zeros(s, dtype=wide) for s in self.shapes] for _ in range(count)]
        if KERNELS[self.kind].scalars:
            self.buffers.append([torch.zeros((), dtype=wide) for _ in self.shapes])
        self.steps = [torch.zeros(()) for _ in self.shapes]
        self.update = Update(self.kind)

    def draw(self) -> list[Tensor]:
        return [torch.randn(shape).to(self.dtype) for shape in self.shapes]

    def fold(self) -> Any:
        """A map of all but the third tensor, whose places are not those of the parameters."""
        if self.per is None:
            return None
        around = [torch.zeros(2, 2), *self.params]
        layout = layout_of(around, per="row" if self.per == "row" else "tensor")
        scale = torch.rand(layout.segments) + 0.5
        shift: Tensor | None = torch.randn(layout.segments)
        if self.per == "one":
            scale, shift = scale[0], None
        touched = tuple(i != 3 for i in range(len(around)))
        return Affine(scale, shift, touched), layout, tuple(range(1, len(around)))

    def seen(self, i: int, grad: Tensor, fold: Any, param: Tensor) -> Tensor:
        """The gradient of a parameter as the method sees it, in float64."""
        g = grad.double()
        if fold is not None and fold[0].touched[fold[2][i]]:
            affine, layout, places = fold
            first, rows = layout.offsets[places[i]], layout.rows[places[i]]
            for r in range(rows):
                part = g[r : r + 1] if rows > 1 else g
                scale = affine.scale if affine.scale.dim() == 0 else affine.scale[first + r]
                shift = 0.0 if affine.shift is None else affine.shift[first + r].double()
                part.copy_((part - shift) * scale.double())
        g = -g if self.maximize else g
        return g + self.coupled * param.double() if self.coupled else g

    def expected(
        self, numbers: tuple[float, ...], grads: list[Tensor], fold: Any, t: int
    ) -> list[tuple[Tensor, list[Tensor]]]:
        """Parameters and states after step t, in float64."""
        out = []
        for i, (param, grad) in enumerate(zip(self.params, grads, strict=True)):
            seen = self.seen(i, grad.clone(), fold, param)
            p = param.double() * (1 - LR * self.decoupled)
            state = [buffer[i].double() for buffer in self.buffers]
            out.append(_method(self.kind, numbers, p, seen, state, t))
        return out

    def step(
        self, numbers: tuple[Any, ...], grads: list[Tensor], fold: Any = None, **kw: Any
    ) -> Any:
        kw = {"lr": LR, "coupled": self.coupled, "decoupled": self.decoupled} | kw
        return self.update(
            self.params,
            grads,
            self.buffers,
            self.steps,
            numbers=numbers,
            maximize=self.maximize,
            fold=fold,
            **kw,
        )

    def check(self, wanted: list[tuple[Tensor, list[Tensor]]], rtol: float, atol: float) -> None:
        for i, (param, state) in enumerate(wanted):
            if self.dtype.itemsize > 2:
                torch.testing.assert_close(self.params[i].double(), param, rtol=rtol, atol=atol)
            else:  # the one rounding to the narrow type, and its ties
                near = torch.finfo(self.dtype).eps
                torch.testing.assert_close(self.params[i].double(), param, rtol=near, atol=atol)
            for buffer, value in zip(self.buffers, state, strict=True):
                torch.testing.assert_close(buffer[i].double(), value, rtol=rtol, atol=atol)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"maximize": True, "coupled": 0.1, "per": "tensor"},
    {"decoupled": 0.3, "per": "row"},
    {"maximize": True, "per": "one"},
]


@needs_compiler
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v) or "plain")
@pytest.mark.parametrize(("kind", "numbers"), CASES)
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [
        (torch.float64, 1e-12, 1e-14),
        (torch.float32, 2e-6, 1e-6),
        (torch.bfloat16, 2e-6, 1e-6),
        (torch.float16, 2e-6, 1e-6),
    ],
)
def test_steps_follow_the_equations(
    kind: str,
    numbers: tuple[float, ...],
    variant: dict[str, Any],
    dtype: torch.dtype,
    rtol: float,
    atol: float,
) -> None:
    group = Group(kind, dtype, **variant)
    for t in (1, 2, 3):
        grads, fold = group.draw(), group.fold()
        wanted = group.expected(numbers, grads, fold, t)
        kept = [grad.clone() for grad in grads]
        assert group.step(numbers, grads, fold) == []
        group.check(wanted, rtol, atol)
        assert all(torch.equal(a, b) for a, b in zip(grads, kept, strict=True))
        assert {step.item() for step in group.steps} == {t}


@needs_compiler
@pytest.mark.parametrize("layout", ["channels_last", "channels_last_3d", "transposed"])
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_other_orders_of_memory(layout: str, per: str) -> None:
    def arranged(tensor: Tensor) -> Tensor:
        if layout == "transposed":
            return tensor.t().contiguous().t()
        return tensor.contiguous(memory_format=getattr(torch, layout))

    shape = {"channels_last": (4, 3, 5, 5), "channels_last_3d": (2, 3, 4, 5, 2)}.get(layout, (6, 9))
    group = Group("sgdf", torch.float32, [shape, (7,), (5, 2)], per=per)
    group.params[0] = arranged(group.params[0])
    for buffer in group.buffers:
        buffer[0] = arranged(buffer[0])
    numbers = NUMBERS["sgdf"][0]
    for t in (1, 2):
        grads, fold = group.draw(), group.fold()
        assert group.step(numbers, grads, fold) == [0]  # not in the parameter's order
        group.steps[0] += 1  # somebody else's work
        grads[0] = arranged(grads[0])
        wanted = group.expected(numbers, grads, fold, t)
        if layout == "transposed" and per == "row":
            assert group.step(numbers, grads, fold) == [0]  # rows do not follow each other
            group.steps[0] -= 1
        else:
            only = Group("sgdf", torch.float32, [shape], per=None)
            only.params, only.steps = group.params[:1], group.steps[:1]
            only.buffers = [buffer[:1] for buffer in group.buffers]
            only.steps[0] -= 1
            places = None if fold is None else (*fold[:2], fold[2][:1])
            assert only.step(numbers, grads[:1], places) == []
            only.check(wanted[:1], 2e-6, 1e-6)
        assert [step.item() for step in group.steps[1:]] in ([t, t], [2 * t, 2 * t])


@needs_compiler
@pytest.mark.parametrize("kind", KERNELS)
def test_threads_change_no_bit(kind: str) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            group = Group(kind, torch.float32, [(550_001,), (3,), (700, 801), (64,)])
            group.step(NUMBERS[kind][0], group.draw())
            grads = group.draw()
            wanted = group.expected(NUMBERS[kind][0], grads, None, 2) if threads == 2 else []
            group.step(NUMBERS[kind][0], grads)
            group.check(wanted, 3e-6, 1e-6)
            results.append([*group.params, *chain(*group.buffers)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "numbers"), CASES)
def test_what_is_not_finite_goes_where_torch_lets_it(
    kind: str, numbers: tuple[float, ...], dtype: torch.dtype
) -> None:
    group = Group(kind, dtype, [(40,), (40,), (40,)])
    group.step(numbers, group.draw())
    grads = group.draw()
    grads[0][7] = float("nan")
    grads[1][3], grads[1][33] = float("inf"), -float("inf")
    for t in (2, 3):
        wanted = group.expected(numbers, grads, None, t)
        group.step(numbers, grads)
        for i, (param, state) in enumerate(wanted):
            assert torch.equal(group.params[i].isnan(), param.isnan())
            assert torch.equal(group.buffers[0][i].isfinite(), state[0].isfinite())
        assert group.params[2].isfinite().all()
        assert not group.params[0][7].isfinite()
        grads = group.draw()


@needs_compiler
@pytest.mark.parametrize("kind", KERNELS)
def test_a_state_that_is_not_finite_stays_so(kind: str) -> None:
    group = Group(kind, torch.float32, [(40,)])
    group.step(NUMBERS[kind][0], group.draw())
    group.buffers[0][0][5] = float("nan")
    grads = group.draw()
    wanted = group.expected(NUMBERS[kind][0], grads, None, 2)
    group.step(NUMBERS[kind][0], grads)
    assert torch.equal(group.params[0].isnan(), wanted[0][0].isnan())
    assert group.params[0].isnan().any()


@needs_compiler
@pytest.mark.parametrize("tensor_lr", [torch.float32, torch.float64, torch.bfloat16, None])
@pytest.mark.parametrize("maximize", [False, True])
def test_adamw_and_sgd_are_torchs(tensor_lr: torch.dtype | None, maximize: bool) -> None:
    lr: Any = 0.0625 if tensor_lr is None else torch.tensor(0.0625, dtype=tensor_lr)
    for kind, numbers, make in (
        ("adamw", (0.9, 0.99, 1e-8), lambda p, **kw: torch.optim.AdamW(p, betas=(0.9, 0.99), **kw)),
        (
            "sgd",
            (0.9, 0.25, 0.0),
            lambda p, **kw: torch.optim.SGD(p, momentum=0.9, dampening=0.25, **kw),
        ),
    ):
        group = Group(kind, torch.float32, [(1000,), (5, 7)], maximize=maximize)
        decay = "decoupled" if kind == "adamw" else "coupled"
        params = [param.clone().requires_grad_() for param in group.params]
        rate = lr.clone() if isinstance(lr, Tensor) and tensor_lr != torch.bfloat16 else 0.0625
        own = make(params, lr=rate, foreach=False, weight_decay=0.125, maximize=maximize)
        for _ in range(5):
            grads = group.draw()
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            own.step()
            group.step(numbers, grads, **{decay: 0.125, "lr": lr})
        for param, other in zip(group.params, params, strict=True):
            torch.testing.assert_close(param, other.detach(), rtol=2e-6, atol=1e-6)


@needs_compiler
def test_sgd_without_momentum_or_count() -> None:
    param, grad = torch.randn(20), torch.randn(20)
    wanted = param - 0.5 * grad
    assert Update("sgd")([param], [grad], [], [], lr=0.5, numbers=(0.0, 0.0, 0.0)) == []
    torch.testing.assert_close(param, wanted, rtol=0, atol=0)


@needs_compiler
def test_numbers_may_be_tensors_and_steps_float64() -> None:
    group, plain = Group("adamw"), Group("adamw")
    plain.params = [param.clone() for param in group.params]
    group.steps = [step.double() for step in group.steps]
    numbers = NUMBERS["adamw"][0]
    for _ in range(2):
        grads = group.draw()
        asked = (torch.tensor(numbers[0], dtype=torch.float64), *numbers[1:])
        group.step(asked, grads, decoupled=torch.tensor(0.25), lr=torch.tensor(0.5))
        plain.step(numbers, grads, decoupled=0.25, lr=0.5)
    assert all(torch.equal(a, b) for a, b in zip(group.params, plain.params, strict=True))


@needs_compiler
def test_one_cosine_for_all() -> None:
    group = Group("hgm", shapes=[(40,), (300, 300), (0,)], coupled=0.1, maximize=True, per="tensor")
    numbers = NUMBERS["hgm"][0]
    group.step(numbers, group.draw(), group.fold())
    grads, fold = group.draw(), group.fold()
    grads.append(torch.randn(4, 4, dtype=torch.float64).t())
    group.params.append(torch.randn(4, 4, dtype=torch.float64))
    for buffer in group.buffers:
        buffer.append(torch.zeros_like(group.params[-1] if buffer[0].dim() else buffer[0]))
    group.steps.append(torch.zeros(()))
    fold = group.fold()
    sums, left = group.update.sums(
        group.params, grads, group.buffers, group.steps, coupled=0.1, maximize=True, fold=fold
    )
    assert left == [3]
    assert sums.shape == (3, 4)
    assert not sums[:, 3].any()
    for i in range(3):
        g, m = group.seen(i, grads[i].clone(), fold, group.params[i]), group.buffers[0][i]
        wanted = torch.stack([(g * m).sum(), (g * g).sum(), (m * m).sum()])
        torch.testing.assert_close(sums[:, i], wanted, rtol=1e-12, atol=1e-12)
    assert [step.item() for step in group.steps] == [1, 1, 1, 0]
    before = [buffer.item() for buffer in group.buffers[2]]
    cosine = sums[0].sum() / (sums[1].sum().sqrt() * sums[2].sum().sqrt() + numbers[2])
    assert group.step(numbers, grads, fold, cosine=cosine) == [3]
    for i, kept in enumerate(before):
        now = kept if i == 3 else 0.9 * kept + 0.1 * cosine.item()
        assert group.buffers[2][i].item() == pytest.approx(now, rel=1e-12)
    with pytest.raises(ValueError, match="'hgm', got 'sgd'"):
        Update("sgd").sums([], [], [], [])


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_round_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    param, step = every.clone(), Update("sgd")
    step([param], [torch.zeros_like(every)], [], [], lr=0.0, numbers=(0.0, 0.0, 0.0))
    torch.testing.assert_close(param, every, rtol=0, atol=0, equal_nan=True)
    # Momentum 1 and dampening 1 leave the state, and a rate of -1 copies it: 0 + state, rounded.
    wide = torch.cat(
        [
            torch.randn(5000) * 2.0 ** torch.randint(-40, 20, (5000,)),
            torch.nextafter(every.float(), torch.tensor(float("inf"))),
            torch.nextafter(every.float(), torch.tensor(-float("inf"))),
            (every[1:].float() + every[:-1].float()) / 2,  # ties
            torch.tensor([65519.99, 65520.0, 65536.0, 1e38, 3.4e38, float("inf"), float("nan")]),
        ]
    )
    param = torch.zeros_like(wide, dtype=dtype)
    nothing = torch.zeros_like(param)
    step([param], [nothing], [[wide.clone()]], [], lr=-1.0, numbers=(1.0, 1.0, 0.0))
    torch.testing.assert_close(param, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("alpha", [1.0, 1.1, 1.5, 1.77, 2.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_powers_and_roots_over_the_whole_range(
    alpha: float, dtype: torch.dtype, rtol: float
) -> None:
    limits = torch.finfo(dtype)
    low = torch.tensor(limits.smallest_normal * limits.eps, dtype=torch.float64).log2()
    high = torch.tensor(limits.max, dtype=torch.float64).log2()
    x = torch.exp2(torch.linspace(float(low), float(high) - 1e-9, 20_011, dtype=torch.float64))
    x = torch.cat([x, torch.tensor([0.0, 1.0, limits.max, float("inf")])]).to(dtype)
    ones = torch.ones_like(x)
    # b2 = 1 leaves v, so a rate of -1 writes 1 / v^(1/alpha) into a parameter of 0.
    param, v = torch.zeros_like(x), x.clone()
    step = Update("ota")
    counts = [torch.zeros(())]
    numbers = (0.0, 1.0, alpha, 0.0, 1.0)
    step([param], [ones], [[ones.clone()], [v]], counts, lr=-1.0, numbers=numbers)
    assert torch.equal(v, x)
    exact = 1 / x.double() ** (1 / alpha)
    if alpha == 1.5:  # 2/3 is no float64, which a power far from 1 makes visible
        exact = 1 / torch.from_numpy(np.cbrt(x.double().numpy())) ** 2
    sound = (exact < limits.max) & (exact >= limits.smallest_normal)
    assert sound.sum() > 10_000
    torch.testing.assert_close(param.double()[sound], exact[sound], rtol=rtol, atol=0)
    assert param[-1] == 0
    assert param[-4].isinf()
    # Without a decay v is |g|^alpha.
    v = torch.zeros_like(x)
    step(
        [param],
        [-x],
        [[torch.zeros_like(x)], [v]],
        counts,
        lr=0.0,
        numbers=(0.0, 0.0, alpha, 1.0, 0.0),
    )
    exact = x.double() ** alpha
    sound = (exact < limits.max) & (exact >= limits.smallest_normal)
    torch.testing.assert_close(v.double()[sound], exact[sound], rtol=rtol, atol=0)
    assert not v[-1].isfinite()
    assert v[-4] == 0


@needs_compiler
def test_what_moved_is_noticed() -> None:
    group, fresh = Group("adamw", shapes=[(33,), (6, 6)]), Group("adamw", shapes=[(33,), (6, 6)])
    fresh.params = [param.clone() for param in group.params]
    numbers = NUMBERS["adamw"][0]
    for t in range(6):
        if t == 1:
            group.params[0].data = group.params[0].data.clone()
        if t == 2:
            group.buffers[1][1] = group.buffers[1][1].clone()
        if t == 3:
            group.steps[0] = group.steps[0].clone()
        if t == 4:
            group.params[1].set_(group.params[1].clone())
        grads = group.draw()
        if t == 5:
            spread = torch.zeros(6, 12, dtype=torch.float64)[:, ::2]
            spread.copy_(grads[1])
            assert group.step(numbers, [grads[0], spread]) == [1]
            assert fresh.step(numbers, [grads[0], spread]) == [1]
            assert [step.item() for step in group.steps] == [6, 5]
        assert group.step(numbers, grads) == []
        fresh.update = Update("adamw")
        fresh.step(numbers, grads)
    everything = zip(
        [*group.params, *chain(*group.buffers)],
        [*fresh.params, *chain(*fresh.buffers)],
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in everything)


@needs_compiler
def test_autograd_is_told() -> None:
    weight = torch.randn(5, requires_grad=True)
    loss = (weight * weight).sum()
    Update("sgd")([weight], [torch.ones(5)], [], [], lr=0.5, numbers=(0.0, 0.0, 0.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_cannot_be_taken() -> None:
    p, g, m = torch.zeros(4, 6), torch.zeros(4, 6), torch.zeros(4, 6)
    assert takes(p, g, [m])
    assert takes(p.bfloat16(), g.bfloat16(), [m])
    assert takes(torch.nn.Parameter(p), g, [])
    assert takes(torch.zeros(0, 3), torch.zeros(0, 3), [torch.zeros(0, 3)])
    assert not takes(p, g.double(), [m])
    assert not takes(p, g, [m.double()])
    assert not takes(p.bfloat16(), g.bfloat16(), [m.bfloat16()])
    assert not takes(p.int(), g.int(), [m])
    assert not takes(p.cfloat(), g.cfloat(), [])
    assert not takes(p, g, [torch.zeros(6, 4)])
    assert not takes(p, torch.zeros(6, 4).t(), [m])
    assert not takes(p, torch.zeros(4, 1).expand(4, 6), [m])
    assert not takes(p, torch.zeros(4, 12)[:, ::2], [m])
    assert not takes(p, g.to_sparse(), [m])
    assert not takes(p, torch.empty(4, 6, device="meta"), [m])
    assert not takes(
        p, torch.view_as_real(torch.zeros(4, 6).cfloat().conj().resolve_conj())[..., 1], []
    )
    negative = torch.zeros(4, 6, dtype=torch.cfloat).conj().imag
    assert negative.is_neg()
    assert not takes(torch.zeros(4, 6), torch._neg_view(g), [m])
    assert not takes(p, p, [m])
    assert not takes(p, g, [g])
    memory = torch.zeros(40)
    assert not takes(memory[:24].view(4, 6), memory[16:].view(4, 6), [m])
    assert takes(memory[:20], memory[20:], [])
    images = torch.zeros(2, 3, 4, 4)
    last = images.contiguous(memory_format=torch.channels_last)
    assert takes(last, last.clone(), [last.clone()], rows=2)
    assert not takes(last, images, [last.clone()])
    assert not takes(images, images.clone(), [last])
    across = torch.zeros(6, 4).t()
    assert takes(across, torch.zeros(6, 4).t(), [torch.zeros(6, 4).t()])
    assert not takes(across, torch.zeros(6, 4).t(), [], rows=4)


@needs_compiler
def test_lists_that_do_not_belong_together_are_refused() -> None:
    p, m, step = [torch.zeros(3)], [torch.zeros(3)], [torch.zeros(())]
    adamw = Update("adamw")
    good: dict[str, Any] = {"lr": 0.1, "numbers": (0.9, 0.9, 1e-8)}
    with pytest.raises(ValueError, match="gradients"):
        adamw(p, [], [m, m], step, **good)
    with pytest.raises(ValueError, match="the states"):
        adamw(p, [torch.zeros(3)], [m], step, **good)
    with pytest.raises(ValueError, match="steps"):
        adamw(p, [torch.zeros(3)], [m, [torch.zeros(3)]], [], **good)
    with pytest.raises(ValueError, match="0-d float32"):
        adamw(p, [torch.zeros(3)], [m, [torch.zeros(3)]], [torch.zeros(1)], **good)
    with pytest.raises(ValueError, match="0-d states"):
        Update("hgm")(p, p, [m, m, []], step, lr=0.1, numbers=(0.9, 0.9, 1e-8, 0.9, 0.5))
    with pytest.raises(ValueError, match="beta1"):
        adamw(p, [torch.zeros(3)], [m, [torch.zeros(3)]], step, lr=0.1, numbers=(0.9,))
    fold = (Affine(torch.ones(())), layout_of(p), ())
    with pytest.raises(ValueError, match="places"):
        adamw(p, [torch.zeros(3)], [m, [torch.zeros(3)]], step, fold=fold, **good)
    fold = (Affine(torch.ones(2)), layout_of(p), (0,))
    with pytest.raises(ValueError, match="not one of the layout"):
        adamw(p, [torch.zeros(3)], [m, [torch.zeros(3)]], step, fold=fold, **good)
    fold = (Affine(torch.ones(())), layout_of([torch.zeros(4)]), (0,))
    with pytest.raises(ValueError, match="not those of the layout"):
        adamw(p, [torch.zeros(3)], [m, [torch.zeros(3)]], step, fold=fold, **good)
    assert step[0].item() == 0
    assert adamw([], [], [[], []], [], **good) == []


@pytest.fixture
def _fresh() -> Iterator[None]:
    compiler.kernels.cache_clear()
    yield
    compiler.kernels.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("GRADWISE_CACHE", str(tmp_path))
    assert "no C compiler" in str(missing("adamw"))
    with pytest.raises(RuntimeError, match="no C compiler"):
        Update("adamw")
    with pytest.raises(ValueError, match="adamomentum"):
        missing("adam")


@needs_compiler
def test_compiled_where_it_is_used_only(tmp_path: Path) -> None:
    code = """if True:
        import sys, torch, gradwise as gw
        from pathlib import Path
        gw.measure([torch.ones(4)])
        from gradwise.backends.update import Update
        print([x.name.split("-")[0] for x in Path(sys.argv[1]).rglob("*.so")])
        Update("sgd")
        print(sorted(x.name.split("-")[0] for x in Path(sys.argv[1]).rglob("*.so")))
    """
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"GRADWISE_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.splitlines() == ["['kernels']", "['kernels', 'update']"], run.stderr
