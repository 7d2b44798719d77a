"""`transform=` and `attach` on gradwise's own optimizers do what the hook does on torch's: decide
on the same map and take the same steps, without a word written to `.grad`."""

import pytest
import torch
from folding_helpers import (
    PAIRS,
    TRANSFORMS,
    assert_same_decisions,
    assert_same_training,
    by_route,
    each_kind,
    each_route,
    each_way,
    feed,
    folded,
    grads_of,
    hooked,
    no_hook,
    side_by_side,
)
from optim_db import DB, assert_same, numbers, small_model

import gradwise as gw
from gradwise.attach import attachment_of
from gradwise.transforms import Autoscale, Center, ClipNorm, chain

each_transform = pytest.mark.parametrize("key", TRANSFORMS)


@each_kind
@each_way
@each_route
@each_transform
def test_the_same_as_the_hook(kind, way, route, key):
    transforms = TRANSFORMS[key]
    mine = folded(kind, *transforms(), way=way, **by_route(kind, route))
    theirs = hooked(kind, *transforms())
    side_by_side(mine, theirs, range(6))
    assert no_hook(mine[1])
    assert mine[2].skipped == 0


@each_kind
@each_way
def test_autoscale_in_a_line(kind, way):
    model, optimizer, _ = folded(kind, way=way)
    mine = model, optimizer, gw.autoscale(optimizer, model)
    side_by_side(mine, hooked(kind, Autoscale()), range(6))
    assert min(mine[2].numbers) == "0.Autoscale[trend].alpha"
    assert no_hook(optimizer)


@each_kind
def test_one_or_several_or_a_chain(kind):
    """However they are put together, one map is decided on; only the state's names tell."""
    parts = lambda: (Center(), Autoscale(), ClipNorm(0.5))  # noqa: E731
    runs = [
        folded(kind, *parts()),
        folded(kind, *parts(), way="attach"),
        folded(kind, chain(*parts())),
    ]
    model = small_model()
    optimizer = PAIRS[kind][1](model.named_parameters(), transform=list(parts()), **PAIRS[kind][2])
    runs.append((model, optimizer, attachment_of(optimizer)))
    for step in range(5):
        for run in runs:
            feed(run[0], step)
            run[1].step()
    for run in runs[1:]:
        assert_same(numbers(*run[:2]), numbers(*runs[0][:2]))
        assert run[2].transform.name == runs[0][2].transform.name


@pytest.mark.parametrize("entry", DB, ids=lambda e: e.name)
@pytest.mark.parametrize("key", ["center-row", "several"])
def test_every_method_sees_what_a_hook_would_have_written(entry, key):
    """Fed with gradients that were mapped beforehand, it goes the same way."""
    models = small_model(), small_model()
    transforms = TRANSFORMS[key]()
    mine = entry.cls(models[0].named_parameters(), lr=entry.lr, transform=transforms)
    fed = entry.cls(models[1].named_parameters(), lr=entry.lr)
    state = None
    for step in range(6):
        raw = feed(models[0], step)
        params = [p for n, p in models[1].named_parameters() if n != "unused"]
        mapped, state = chain(*transforms).update(raw, state, [p.detach() for p in params])
        for param, grad in zip(params, mapped, strict=True):
            param.grad = grad
        mine.step()
        fed.step()
        assert_same(numbers(models[0], mine), numbers(models[1], fed), 1e-9, 1e-12)


@each_kind
@each_route
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128], ids=str)
@pytest.mark.parametrize("key", ["center-row", "several", "clip"])
def test_other_types(kind, route, dtype, key):
    """To the rounding of the type: the hook rounds what it writes, the kernel need not."""
    options = by_route(kind, route)
    if route == "kernel" and dtype == torch.bfloat16:
        pytest.skip("SGD and AdamW keep 16-bit state, as torch has it; their kernels do not")
    model, twin = (small_model(dtype) for _ in range(2))
    mine = folded(kind, *TRANSFORMS[key](), model=model, **options)
    theirs = hooked(kind, *TRANSFORMS[key](), model=twin)
    tolerance = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.complex128: 1e-9}[dtype]
    for step in range(4):
        kept = feed(model, step)
        feed(twin, step)
        mine[1].step()
        theirs[1].step()
        assert all(map(torch.equal, grads_of(model), kept))
        for param, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(param, other, rtol=tolerance, atol=tolerance / 10)


@each_kind
@each_route
@each_transform
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_step_that_is_not_finite(kind, route, key, bad):
    """The gradients pass as they are; the transforms keep out of it, and count."""
    mine = folded(kind, *TRANSFORMS[key](), **by_route(kind, route))
    theirs = hooked(kind, *TRANSFORMS[key]())
    side_by_side(mine, theirs, range(3))
    before = {k: v.clone() for k, v in mine[2].state.items() if not k.endswith("history")}
    side_by_side(mine, theirs, [3], bad=bad)
    assert mine[2].skipped == 1
    for name, value in before.items():
        assert torch.equal(mine[2].state[name], value)
    side_by_side(mine, theirs, [4, 5])
    assert mine[2].skipped == 1


@each_kind
@pytest.mark.parametrize("key", ["center-row", "several", "agc"])
def test_groups_and_absent_gradients(kind, key):
    """Each parameter gets its own part of the map, whichever others have gradients."""
    runs = []
    for cls in (PAIRS[kind][1], PAIRS[kind][0]):
        model, options = small_model(), PAIRS[kind][2]
        groups = [
            {"params": list(model.last.named_parameters()), "lr": 0.002},
            {"params": [("unused", model.unused), *model.first.named_parameters()]},
            {"params": [("scale", model.scale)], "weight_decay": 0.0},
        ]
        optimizer = cls(groups, **options)
        runs.append((model, optimizer, gw.attach(optimizer, *TRANSFORMS[key]())))
    for step in range(6):
        for model, optimizer, _ in runs:
            feed(model, step)
            if step in (2, 4):
                model.last.weight.grad = None
                model.first.bias.grad = None
            optimizer.step()
        assert_same_decisions(runs[0][2], runs[1][2])
        assert_same_training(runs[0][:2], runs[1][:2])
