"""The same transforms two ways, side by side: a hook on torch's optimizer, and folded into ours."""

import pytest
import torch
from optim_db import LISTS, LOOP, kernel_or_skip, numbers, small_model

import gradwise as gw
from gradwise.attach import attachment_of
from gradwise.transforms import AGC, AutoClip, Autoscale, Center, ClipNorm, ZClip, ZNorm, chain

PAIRS = {
    "SGD": (torch.optim.SGD, gw.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, gw.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}
WAYS = ("constructor", "attach")
ROUTES = {"loop": LOOP, "lists": LISTS, "kernel": None}
# Sizes of the gradients over the steps, so that transforms with a memory have something to say.
SIZES = (1.0, 6.0, 0.3, 20.0, 1.0)

TRANSFORMS = {
    "none": lambda: (),
    "autoscale": lambda: (Autoscale(),),
    "center": lambda: (Center(),),
    "center-row": lambda: (Center(per="row"),),
    "znorm": lambda: (ZNorm(),),
    "znorm-global": lambda: (ZNorm("global"),),
    "clip": lambda: (ClipNorm(0.5),),
    "autoclip": lambda: (AutoClip(50),),
    "zclip": lambda: (ZClip(warmup=2, threshold=1.0, alpha=0.8, max_norm=2.0),),
    "agc": lambda: (AGC(0.1),),
    "several": lambda: (Autoscale(), Center(per="row"), ClipNorm(0.5)),
    "chain": lambda: (chain(Autoscale(), AutoClip(20)), AGC(0.1)),
}

each_kind = pytest.mark.parametrize("kind", PAIRS)
each_way = pytest.mark.parametrize("way", WAYS)
each_route = pytest.mark.parametrize("route", ROUTES)


def hooked(kind, *transforms, dtype=torch.float64, model=None, **more):
    """A model, torch's optimizer, and the transforms in a hook of it."""
    theirs, _, options = PAIRS[kind]
    model = small_model(dtype) if model is None else model
    optimizer = theirs(model.named_parameters(), **{**options, **more})
    return model, optimizer, gw.attach(optimizer, *transforms, model=model)


def folded(kind, *transforms, way="constructor", dtype=torch.float64, model=None, **more):
    """A model, gradwise's optimizer of that kind, and the transforms within."""
    _, ours, options = PAIRS[kind]
    model = small_model(dtype) if model is None else model
    options = {**options, **more}
    if way == "attach":
        optimizer = ours(model.named_parameters(), **options)
        return model, optimizer, gw.attach(optimizer, *transforms, model=model)
    given = transforms[0] if len(transforms) == 1 else transforms
    optimizer = ours(model.named_parameters(), transform=given, **options)
    return model, optimizer, attachment_of(optimizer)


def by_route(kind, name):
    """The options that force a way to run the update; skips where it is not there."""
    if ROUTES[name] is not None:
        return ROUTES[name]

    class Kind:
        cls, name = PAIRS[kind][1], kind

    return kernel_or_skip(Kind, PAIRS[kind][2])


def feed(model, step, bad=None, factor=1.0):
    """Gradients that depend on the step alone; `bad` goes into one of them. Returns copies."""
    generator = torch.Generator().manual_seed(100 + step)
    kept = []
    for name, param in model.named_parameters():
        if name == "unused":
            continue
        shape = (*param.shape, 2) if param.is_complex() else param.shape
        grad = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.2
        grad = torch.view_as_complex(grad) if param.is_complex() else grad
        param.grad = (SIZES[step % len(SIZES)] * factor * grad).to(param.dtype)
        if bad is not None and name == "last.weight":
            param.grad[1, 2] = bad
        kept.append(param.grad.clone())
    return kept


def grads_of(model):
    return [p.grad for p in model.parameters() if p.grad is not None]


def assert_same_decisions(mine, theirs, rtol=1e-10):
    """What two attachments measured and decided at the last step, and remember."""

    def close(a, b):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-13, equal_nan=True)

    assert mine.names == theirs.names
    assert mine.skipped == theirs.skipped
    for what in ("mean", "m2", "norm", "total_norm", "nonfinite"):
        close(getattr(mine.moments, what), getattr(theirs.moments, what))
    for what in ("scale", "shift"):
        close(getattr(mine.affine, what), getattr(theirs.affine, what))
    assert mine.affine.touched == theirs.affine.touched
    assert mine.state.keys() == theirs.state.keys()
    for key, value in theirs.state.items():
        close(mine.state[key], value)
    assert mine.numbers.keys() == theirs.numbers.keys()


def assert_same_training(mine, theirs, rtol=1e-10):
    """Parameters and the state that both kinds of optimizer have, by name."""
    got, wanted = numbers(*mine), numbers(*theirs)
    shared = got.keys() & wanted.keys()
    assert {name for name, _ in theirs[0].named_parameters()} <= shared
    for key in sorted(shared):
        torch.testing.assert_close(
            got[key], wanted[key], rtol=rtol, atol=rtol * 1e-2, equal_nan=True, msg=key
        )


def no_hook(optimizer):
    """Whether nothing writes to gradients before the update, and one attachment rides along."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_load_state_dict_post_hooks)
    return [len(h) for h in hooks] == [0, 1]


def side_by_side(mine, theirs, steps, look=lambda step: None, rtol=1e-10, **more):
    """Steps on the same gradients; ours must be as they were after each."""
    for step in steps:
        kept = feed(mine[0], step, **more)
        feed(theirs[0], step, **more)
        versions = [g._version for g in grads_of(mine[0])]
        mine[1].step()
        theirs[1].step()
        for grad, before in zip(grads_of(mine[0]), kept, strict=True):
            torch.testing.assert_close(grad, before, rtol=0, atol=0, equal_nan=True)
        assert [g._version for g in grads_of(mine[0])] == versions
        assert_same_decisions(mine[2], theirs[2], rtol)
        assert_same_training(mine[:2], theirs[:2], rtol)
        look(step)
