"""The plain loop over tensors, lists of tensors and the compiled kernel do the same, in parameters
and state; as in torch's own tests each step begins where the loop left off, so that rounding does
not add up over the steps."""

import pytest
import torch
from optim_db import (
    LISTS,
    LOOP,
    TRANSFORMS,
    assert_same,
    backward,
    each,
    each_variant,
    kernel_or_skip,
    numbers,
    small_model,
    train,
)

import gradwise as gw

RTOL = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}
ATOL = {torch.float64: 1e-14, torch.float32: 2e-7, torch.bfloat16: 1e-2}
ROUTES = ["lists", "kernel"]


def align(model, optimizer, leader, follower_of):
    """Copy the leader's parameters and state over the follower's."""
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), leader.parameters(), strict=True):
            mine.copy_(theirs)
            for key, value in follower_of.state.get(theirs, {}).items():
                optimizer.state[mine][key].copy_(value)


def same_steps(entry, dtype, loop, other, steps=5):
    """Run two ways side by side and compare after every step."""
    models = small_model(dtype), small_model(dtype)
    optimizers = [
        entry.cls(m.named_parameters(), **kw) for m, kw in zip(models, (loop, other), strict=True)
    ]
    for seed in range(steps):
        for model, optimizer in zip(models, optimizers, strict=True):
            backward(model, seed)
            optimizer.step()
        wanted, got = map(numbers, models, optimizers)
        assert_same(got, wanted, RTOL[dtype], ATOL[dtype])
        align(models[1], optimizers[1], models[0], optimizers[0])


def way(route, entry, options):
    return LISTS if route == "lists" else kernel_or_skip(entry, options)


@each_variant
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
def test_steps(entry, options, route, dtype):
    if route == "kernel" and dtype == torch.bfloat16 and not entry.wide:
        pytest.skip("kernels keep the state of 16-bit parameters in float32, torch's own do not")
    options = {"lr": entry.lr, **options}
    same_steps(entry, dtype, {**options, **LOOP}, {**options, **way(route, entry, options)})


@each
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_steps_with_a_transform(entry, route, transform):
    options = {"lr": entry.lr, **entry.options[-1]}
    forced = way(route, entry, options)
    loop = {**options, **LOOP, "transform": transform()}
    same_steps(entry, torch.float64, loop, {**options, **forced, "transform": transform()})


@each
@pytest.mark.parametrize("route", ROUTES)
def test_a_learning_rate_as_a_tensor(entry, route):
    options = {**entry.options[0], "lr": entry.lr}
    forced = way(route, entry, options)
    loop = {**options, **LOOP}
    tensor = torch.tensor(entry.lr, dtype=torch.float64)
    same_steps(entry, torch.float64, loop, {**options, **forced, "lr": tensor})


def odd_params(dtype):
    """Shapes and memory orders that are easily forgotten."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [
            torch.randn((), dtype=dtype),
            torch.randn(0, dtype=dtype),
            torch.randn(3, 0, dtype=dtype),
            torch.randn(7, dtype=dtype)[::2],
            torch.randn(4, 6, dtype=dtype).t(),
            torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last),
            torch.randn(6, 8, dtype=dtype)[:, 2:5],
            torch.randn(33, 31, dtype=dtype),
        ]


@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("fused", [False, None])
def test_odd_shapes_and_complex_numbers(entry, options, dtype, fused):
    """Whatever a kernel or lists cannot take goes the plain way, with the same result."""
    found = []
    for forced in (LOOP, {"foreach": True, "fused": False} if fused is False else {}):
        params = [p.clone(memory_format=torch.preserve_format) for p in odd_params(dtype)]
        params = [torch.nn.Parameter(p) for p in odd_params(dtype)]
        optimizer = entry.cls(params, **{"lr": entry.lr, **options, **forced})
        generator = torch.Generator().manual_seed(0)
        for step in range(4):
            for i, p in enumerate(params):
                shape = (*p.shape, 2) if dtype.is_complex else p.shape
                grad = torch.randn(shape, generator=generator, dtype=torch.float64)
                grad = torch.view_as_complex(grad) if dtype.is_complex else grad
                if i == 5 and step == 2:  # another memory order than its parameter
                    grad = grad.contiguous()
                p.grad = torch.empty_like(p).copy_(grad) if step != 2 else grad
            optimizer.step()
        found.append([*params, *(v for p in params for v in optimizer.state[p].values())])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-13)


@each
def test_complex_numbers_are_pairs_of_reals(entry):
    torch.manual_seed(1)
    whole = torch.randn(6, 4, dtype=torch.complex128)
    complex_param = torch.nn.Parameter(whole.clone())
    real_param = torch.nn.Parameter(torch.view_as_real(whole).clone())
    optimizers = [
        entry.cls([p], lr=entry.lr, transform=gw.transforms.ClipNorm(3.0))
        for p in (complex_param, real_param)
    ]
    for _ in range(3):
        grad = torch.randn(6, 4, dtype=torch.complex128)
        complex_param.grad, real_param.grad = grad, torch.view_as_real(grad)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(
        torch.view_as_real(complex_param.detach()), real_param.detach(), rtol=1e-13, atol=1e-15
    )


@each
def test_lazy_conjugates_and_negatives(entry):
    torch.manual_seed(1)
    start = torch.randn(5, 3, dtype=torch.complex128)
    found = []
    for lazy in (False, True):
        param = torch.nn.Parameter(start.clone())
        optimizer = entry.cls([param], lr=entry.lr)
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            grad = torch.randn(5, 3, dtype=torch.complex128, generator=generator).conj()
            param.grad = grad if lazy else grad.resolve_conj()
            optimizer.step()
        found.append(param.detach())
    assert torch.equal(*found)


@each
def test_several_types_in_one_group(entry):
    """Parameters of several types side by side are as each alone."""
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.float32]
    torch.manual_seed(0)
    starts = [torch.randn(9, 3).to(kind) for kind in kinds]
    grads = [[torch.randn(9, 3).to(kind) for kind in kinds] for _ in range(3)]
    options = {"scope": "tensor"} if entry.name == "HGM" else {}
    together = [torch.nn.Parameter(s.clone()) for s in starts]
    optimizer = entry.cls(together, lr=entry.lr, **options)
    alone = [torch.nn.Parameter(s.clone()) for s in starts]
    optimizers = [entry.cls([p], lr=entry.lr, **options) for p in alone]
    for step in grads:
        for mine, other, grad in zip(together, alone, step, strict=True):
            mine.grad, other.grad = grad.clone(), grad.clone()
        optimizer.step()
        for each_one in optimizers:
            each_one.step()
    for mine, other in zip(together, alone, strict=True):
        assert torch.equal(mine, other)


@each
@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_tensor(entry, threads):
    """Larger than what one thread of the kernel takes."""
    options = {"lr": entry.lr, **entry.options[-1]}
    forced = kernel_or_skip(entry, options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        start, grad = torch.randn(3, 600_001), torch.randn(3, 600_001)
        found = []
        for kw in (LOOP, forced):
            params = [torch.nn.Parameter(row.clone()) for row in start]
            optimizer = entry.cls(params, **options, **kw)
            for _ in range(2):
                for p, g in zip(params, grad, strict=True):
                    p.grad = g.clone()
                optimizer.step()
            found.append(torch.stack([p.detach() for p in params]))
        torch.testing.assert_close(found[1], found[0], rtol=2e-5, atol=2e-6)
    finally:
        torch.set_num_threads(before)


@each_variant
def test_gradients_are_not_written(entry, options):
    model = small_model()
    optimizer = entry.cls(
        model.parameters(), **{"lr": entry.lr, **options}, transform=gw.transforms.Autoscale()
    )
    for seed in range(3):
        backward(model, seed)
        before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        for name, grad in before.items():
            assert torch.equal(model.get_parameter(name).grad, grad)


@each
def test_autograd_is_told_of_what_the_kernel_writes(entry):
    forced = kernel_or_skip(entry, {"lr": entry.lr})
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = entry.cls([param], lr=entry.lr, **forced)
    kept = (param * param).sum()
    param.grad = torch.ones(4)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@each
def test_fused_is_refused_where_there_is_no_kernel_for_it(entry):
    param = torch.nn.Parameter(torch.ones(8, 4)[:, ::2])
    optimizer = entry.cls([param], lr=entry.lr, fused=True)
    param.grad = torch.ones(8, 2)
    before = param.detach().clone()
    with pytest.raises(gw.UserError, match="fused=True"):
        optimizer.step()
    assert torch.equal(param, before)


@each
def test_a_forced_backend_keeps_the_kernel_out(entry, monkeypatch):
    """GRADWISE_BACKEND names what runs; only with native kernels is the step one of them."""
    from gradwise.backends import update

    def refuse(*args, **kwargs):
        raise AssertionError("the kernel was asked")

    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")
    monkeypatch.setattr(update.Update, "__call__", refuse)
    model = small_model()
    train(model, entry.cls(model.parameters(), lr=entry.lr), 2)
