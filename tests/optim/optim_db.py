"""Every optimizer of gradwise with what a test has to know about it: one table for all patterns."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import gradwise as gw
from gradwise.backends import update
from gradwise.optim import (
    HGM,
    SGD,
    SGDF,
    AdaGradOTA,
    AdaMomentum,
    AdamOTA,
    AdamW,
    AdaRem,
)


@dataclass(frozen=True)
class Entry:
    """One optimizer.

    Attributes:
        cls: the class.
        options: sets of options that between them reach every branch of the method.
        wrong: options that are refused, with a part of the sentence.
        states: values of state for each value of a parameter (methods.md's table).
        scalars: 0-d numbers of state for each tensor, the step among them.
        wide: state of 16-bit parameters is float32.
        lr: at which a small problem is learnt.
        still: a zero gradient leaves the parameter where it is at the first step.
    """

    cls: Any
    options: tuple[dict[str, Any], ...]
    wrong: tuple[tuple[dict[str, Any], str], ...] = ()
    states: int = 2
    scalars: int = 1
    wide: bool = True
    lr: float = 1e-2
    still: bool = True
    closure: bool = field(default=False)

    @property
    def name(self) -> str:
        return self.cls.__name__


BETAS = (({"betas": (1.0, 0.9)}, "0 <= betas[0] < 1"), ({"betas": (0.9, -0.1)}, "betas[1]"))
DB = [
    Entry(
        SGD,
        (
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            {"momentum": 0.9, "dampening": 0.3, "maximize": True},
        ),
        (({"momentum": -1.0}, "momentum"), ({"nesterov": True}, "nesterov")),
        states=0,
        scalars=0,
        wide=False,
        lr=0.05,
    ),
    Entry(
        AdamW,
        (
            {},
            {"weight_decay": 0.1, "maximize": True},
            {"amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-6},
        ),
        (*BETAS, ({"eps": -1.0}, "eps")),
        wide=False,
    ),
    Entry(
        SGDF,
        (
            {},
            {"gamma": 1.0, "variance_factor": False, "weight_decay": 0.1},
            {"gamma": 0.7, "decoupled_weight_decay": True, "weight_decay": 0.1},
            {"betas": (0.5, 0.9), "maximize": True},
        ),
        (*BETAS, ({"eps": -1.0}, "eps"), ({"gamma": -1.0}, "gamma")),
        lr=0.1,
    ),
    Entry(
        HGM,
        (
            {},
            {"scope": "global", "weight_decay": 0.1},
            {"gamma": 1.5, "beta_s": 0.5, "maximize": True},
        ),
        (*BETAS, ({"beta_s": 1.5}, "beta_s")),
        scalars=2,
    ),
    Entry(
        AdaMomentum,
        (
            {},
            {"weight_decay": 0.1},
            {"weight_decay": 0.1, "decoupled_weight_decay": False, "maximize": True},
            {"betas": (0.8, 0.95), "eps": 1e-8},
        ),
        (*BETAS, ({"eps": -1.0}, "eps")),
    ),
    Entry(
        AdaRem,
        ({}, {"weight_decay": 0.1, "lam": 0.5}, {"beta": 0.5, "maximize": True}),
        (({"beta": 1.0}, "beta"), ({"lam": 1.5}, "lam"), ({"eps": -1.0}, "eps")),
        states=1,
        lr=0.05,
    ),
    Entry(
        AdaGradOTA,
        ({}, {"alpha": 2.0, "beta1": 0.9}, {"alpha": 1.2, "maximize": True}),
        (({"alpha": 0.0}, "alpha"), ({"beta1": 1.0}, "beta1"), ({"eps": -1.0}, "eps")),
        lr=0.05,
    ),
    Entry(
        AdamOTA,
        ({}, {"alpha": 2.0}, {"alpha": 1.2, "betas": (0.5, 0.9), "maximize": True}),
        (*BETAS, ({"alpha": 2.5}, "alpha")),
    ),
]

each = pytest.mark.parametrize("entry", DB, ids=lambda e: e.name)
VARIANTS = [
    pytest.param(e, o, id=f"{e.name}-{'-'.join(map(str, o)) or 'defaults'}")
    for e in DB
    for o in e.options
]
each_variant = pytest.mark.parametrize(("entry", "options"), VARIANTS)

LOOP = {"foreach": False, "fused": False}
LISTS = {"foreach": True, "fused": False}
KERNEL = {"fused": True}


def kernel_or_skip(entry, options):
    """Options that force the compiled kernel; skips, with the reason, where there is none."""
    probe = entry.cls([torch.zeros(1, requires_grad=True)], **options)
    kernel = probe._kernel(probe.param_groups[0])
    if kernel is None:
        pytest.skip(f"{entry.name} has no kernel for {options}")
    if (why := update.missing(kernel)) is not None:
        pytest.skip(why)
    return KERNEL


class Small(torch.nn.Module):
    """Weights of 2 dimensions, biases, a 0-d one, and one that never gets a gradient."""

    def __init__(self, dtype):
        super().__init__()
        self.first = torch.nn.Linear(5, 17, dtype=dtype)
        self.last = torch.nn.Linear(17, 3, dtype=dtype)
        self.scale = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.unused = torch.nn.Parameter(torch.ones(4, dtype=dtype))

    def forward(self, x):
        return self.last(torch.tanh(self.first(x))) * self.scale


def small_model(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small(dtype)


def backward(model, seed):
    """One batch's gradients; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    y = torch.stack([x[:, 0], x[:, 1] * x[:, 2], x[:, 3].tanh()], 1)
    model.zero_grad()
    loss = (model(x.to(dtype)) - y.to(dtype)).square().mean()
    loss.backward()
    return loss.detach()


def without_decay(entry, options):
    """The same options with no weight decay, where the method knows any."""
    known = inspect.signature(entry.cls).parameters
    return {**options, "weight_decay": 0.0} if "weight_decay" in known else dict(options)


def train(model, optimizer, steps, first=0):
    for seed in range(first, first + steps):
        backward(model, seed)
        optimizer.step()


def numbers(model, optimizer):
    """All parameters and state, by name."""
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            found[f"{name}.{key}"] = value.detach().clone()
    return found


def assert_same(got, wanted, rtol=0.0, atol=0.0):
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(
            got[key], value, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
        )


TRANSFORMS = [
    pytest.param(lambda: gw.transforms.Center(), id="center"),
    pytest.param(lambda: gw.transforms.Center(per="row"), id="rows"),
    pytest.param(lambda: gw.transforms.ClipNorm(0.05), id="clip"),
    pytest.param(lambda: gw.transforms.Autoscale(), id="autoscale"),
    pytest.param(lambda: gw.transforms.AGC(0.001), id="agc"),
    pytest.param(
        lambda: gw.transforms.chain(gw.transforms.Autoscale(), gw.transforms.ClipNorm(0.05)),
        id="chain",
    ),
]
