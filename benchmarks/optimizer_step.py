"""What a step of each optimizer costs, beside torch's Adam and a plain Python loop.

    python benchmarks/optimizer_step.py [--rounds 100] [--threads 2] [--part methods,folding]

All optimizers of a part step side by side, in random order, on copies of one model that share their
gradients, which are written anew before every step. "methods" compares the methods with
torch.optim.Adam(foreach=True), "folding" a transform inside the update with the same one through
the hook, and "compiled" does that under torch.compile, which takes minutes to compile.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import nn

import gradwise as gw
from models import with_gradients
from side_by_side import environment, interleaved, save, table


class Loop(torch.optim.Optimizer):
    """One parameter after the other, call by call, as research code usually does it."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter."""
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["first"] = torch.zeros_like(param)
                    state["second"] = torch.zeros_like(param)
                state["step"] += 1
                self.update(param, param.grad, state, group)


class LoopSGDF(Loop):
    """(3.1) to (3.6), written down call by call."""

    def update(self, param, grad, state, group):
        """One parameter."""
        (beta1, beta2), t = group["betas"], state["step"]
        m, s = state["first"], state["second"]
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        rest = grad - m
        s.mul_(beta2).addcmul_(rest, rest, value=1 - beta2)
        m_hat = m / (1 - beta1**t)
        s_hat = s * ((1 - beta1) * (1 - beta1 ** (2 * t)) / ((1 + beta1) * (1 - beta2**t)))
        rest = grad - m_hat
        gain = s_hat / (s_hat + rest.pow(2) + group["eps"])
        param.add_(m_hat + gain.sqrt() * rest, alpha=-group["lr"])


class LoopAdaMomentum(Loop):
    """(4.1) to (4.4), written down call by call."""

    def update(self, param, grad, state, group):
        """One parameter."""
        (beta1, beta2), t = group["betas"], state["step"]
        m, v = state["first"], state["second"]
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(m, m, value=1 - beta2).add_(group["eps"])
        root = (v / (1 - beta2**t)).sqrt()
        param.addcdiv_(m, root, value=-group["lr"] / (1 - beta1**t))


OURS = {
    "SGDF": gw.optim.SGDF,
    "AdaMomentum": gw.optim.AdaMomentum,
    "HGM": gw.optim.HGM,
    "AdamOTA": gw.optim.AdamOTA,
    "AdaGradOTA": gw.optim.AdaGradOTA,
    "AdaRem": gw.optim.AdaRem,
    "AdamW": gw.optim.AdamW,
}
Make = Callable[[nn.Module], torch.optim.Optimizer]


def methods() -> dict[str, Make]:
    """Every method by its kernel and by lists of tensors, and what they are compared with."""
    calls: dict[str, Make] = {
        "torch Adam(foreach)": lambda m: torch.optim.Adam(m.parameters(), lr=1e-6, foreach=True),
        "torch Adam(fused)": lambda m: torch.optim.Adam(m.parameters(), lr=1e-6, fused=True),
        "loop SGDF": lambda m: LoopSGDF(m.parameters(), lr=1e-6),
        "loop AdaMomentum": lambda m: LoopAdaMomentum(m.parameters(), lr=1e-6),
    }
    for name, cls in OURS.items():
        calls[name] = lambda m, cls=cls: cls(m.parameters(), lr=1e-6)
        calls[f"{name}(foreach)"] = lambda m, cls=cls: cls(m.parameters(), lr=1e-6, foreach=True)
    calls["HGM(scope=global)"] = lambda m: gw.optim.HGM(m.parameters(), lr=1e-6, scope="global")
    return calls


TRANSFORMS = {
    "Center": lambda: gw.transforms.Center(),
    "ClipNorm": lambda: gw.transforms.ClipNorm(1.0),
    "Autoscale": lambda: gw.transforms.Autoscale(),
}
PAIRS = {
    "SGD": (gw.optim.SGD, {"lr": 1e-6, "momentum": 0.9}),
    "AdamW": (gw.optim.AdamW, {"lr": 1e-6}),
}
ROUTES = {
    "kernel": {},
    "foreach": {"foreach": True, "fused": False},
    "loop": {"foreach": False, "fused": False},
}


def folding(optimizer: str, transform: str) -> dict[str, Make]:
    """One optimizer and transform: folded, and through the hook, by every route."""
    cls, options = PAIRS[optimizer]
    theirs = getattr(torch.optim, optimizer)
    calls: dict[str, Make] = {}

    def hook(make: Make) -> Make:
        def made(model: nn.Module) -> torch.optim.Optimizer:
            inner = make(model)
            inner.folds_transforms = False  # the hook then writes the gradients before the step
            gw.attach(inner, TRANSFORMS[transform]())
            return inner

        return made

    for route, given in ROUTES.items():
        kw = {**options, **given}
        calls[f"folded, {route}"] = lambda m, kw=kw: cls(
            m.parameters(), **kw, transform=TRANSFORMS[transform]()
        )
        calls[f"hook, {route}"] = hook(lambda m, kw=kw: cls(m.parameters(), **kw))
        calls[f"plain, {route}"] = lambda m, kw=kw: cls(m.parameters(), **kw)
    calls["torch foreach + hook"] = hook(lambda m: theirs(m.parameters(), **options, foreach=True))
    calls["torch fused + hook"] = hook(lambda m: theirs(m.parameters(), **options, fused=True))
    return calls


def timed(title: str, model: nn.Module, makes: dict[str, Make], against: str, **how):
    """Rows of the table for one model."""
    grads = [p.grad for p in model.parameters()]
    saved = [g.clone() for g in grads]
    calls = {}
    for name, make in makes.items():
        twin = copy.deepcopy(model)
        for p, g in zip(twin.parameters(), grads, strict=True):
            p.grad = g
        step = make(twin).step
        if how.get("compiled"):
            step = torch.compile(step)
        calls[name] = step

    def restore() -> None:
        torch._foreach_copy_(grads, saved)

    times = interleaved(calls, restore, rounds=how["rounds"])
    return table(title, times, against=against)


def main() -> None:
    """Time the parts and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", default="resnet56,transformer-10m")
    parser.add_argument("--part", default="methods,folding")
    parser.add_argument("--transforms", default=",".join(TRANSFORMS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    for part in options.part.split(","):
        rows = []
        for name in options.models.split(","):
            model = with_gradients(name)
            count = sum(p.numel() for p in model.parameters())
            size = (
                f"{name}: {len(list(model.parameters()))} tensors, {count / 1e6:.2f} M parameters"
            )
            if part == "methods":
                makes = methods()
                rows += timed(size, model, makes, "torch Adam(foreach)", rounds=options.rounds)
                continue
            for optimizer in PAIRS:
                for transform in options.transforms.split(","):
                    makes = folding(optimizer, transform)
                    if part == "compiled":
                        makes = {k: v for k, v in makes.items() if k.endswith("foreach")}
                    rows += timed(
                        f"{size}; {optimizer} with {transform}",
                        model,
                        makes,
                        "hook, foreach" if part == "compiled" else "torch foreach + hook",
                        rounds=options.rounds,
                        compiled=part == "compiled",
                    )
        save(f"optimizer_step_{part}", rows)


if __name__ == "__main__":
    main()
