"""Folded transforms in company: watch, GradScaler, Accelerate, closures, wrappers, users' hooks."""

import math

import numpy as np
import pytest
import torch
from folding_helpers import (
    SIZES,
    TRANSFORMS,
    assert_same_decisions,
    assert_same_training,
    each_kind,
    each_way,
    feed,
    folded,
    grads_of,
    hooked,
    no_hook,
)
from optim_db import backward, small_model

import gradwise as gw
from gradwise.attach import attached, attachment_of
from gradwise.optim import ImplicitSGD
from gradwise.transforms import Autoscale, ClipNorm, chain


def watched(run, out, steps=6, **more):
    """Steps with a watch, one of them not finite; what it recorded and the raw norms."""
    model, optimizer, _ = run
    with gw.watch(optimizer, model, out, weights_every=1, **more) as watch:
        norms = []
        for step in range(steps):
            kept = feed(model, step, bad=math.inf if step == 3 else None)
            norms.append(math.sqrt(sum(float(g.square().sum()) for g in kept)))
            optimizer.step()
            if step == 3:
                put_back(model)
            watch.log(own=step)
    return gw.watch.load(out), norms


def put_back(model):
    """What an infinite gradient has spoilt."""
    with torch.no_grad():
        for param in model.parameters():
            param.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


@each_kind
@each_way
@pytest.mark.parametrize("key", ["autoscale", "center-row", "several", "agc"])
@pytest.mark.parametrize("per", ["parameter", "module"])
def test_watch_records_what_it_records_of_the_hook(tmp_path, kind, way, key, per):
    options = {"momentum": 0.0} if kind == "SGD" else {}
    runs = (
        folded(kind, *TRANSFORMS[key](), way=way, **options),
        hooked(kind, *TRANSFORMS[key](), **options),
    )
    mine, norms = watched(runs[0], tmp_path / "mine", per=per)
    theirs, _ = watched(runs[1], tmp_path / "theirs", per=per)
    got, wanted = mine.steps.to_pydict(), theirs.steps.to_pydict()
    assert got.keys() == wanted.keys()
    for name in got.keys() - {"time"}:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6, atol=1e-12, err_msg=name)
    assert mine.layer_names == theirs.layer_names
    for name in mine.layer_metrics:
        ours, other = (run.metric(name)[1] for run in (mine, theirs))
        np.testing.assert_allclose(ours, other, rtol=1e-6, atol=1e-12, err_msg=name)
    # And what is recorded is so: raw moments, the applied ones, and how far a step went.
    finite = [i for i in range(6) if i != 3]
    np.testing.assert_allclose(np.array(got["grad_norm"])[finite], np.array(norms)[finite], 1e-6)
    assert any(got["applied_norm"][i] < 0.999 * got["grad_norm"][i] for i in finite)
    assert got["skipped"] == [0, 0, 0, 1, 1, 1]
    assert np.isfinite(mine.metric("update_ratio")[1][finite[:3]]).any()
    if key == "autoscale":
        assert got["alpha"][0] == 1.0
        assert min(got["alpha"]) < 0.9


@each_kind
@pytest.mark.parametrize("first", ["watch", "attach"])
def test_watch_and_transforms_in_either_order(tmp_path, kind, first):
    """Closing the watch leaves the transform, and attaching anew leaves the watch."""
    model, optimizer, _ = folded(kind, way="attach")
    if first == "attach":
        gw.attach(optimizer, ClipNorm(0.5))
    watch = gw.watch(optimizer, model, tmp_path / "run")
    if first == "watch":
        gw.attach(optimizer, ClipNorm(0.5))
    for step in range(3):
        feed(model, step)
        optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks
    watch.close()
    steps = gw.watch.load(tmp_path / "run").steps.to_pydict()
    assert steps["applied_norm"] == pytest.approx([0.5] * 3, rel=1e-4)
    assert steps["grad_norm"][0] > 1
    assert attachment_of(optimizer).transform.name == chain(ClipNorm(0.5)).name
    assert not attachment_of(optimizer).readers
    assert no_hook(optimizer)


def scaler_of(scale=1024.0):
    """A power of two multiplies without rounding."""
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


@each_kind
@pytest.mark.parametrize("key", ["autoscale", "several", "zclip"])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, None])
def test_grad_scaler(kind, key, unscale, fused):
    """The scaler divides and skips: transforms see true units, and an overflow changes nothing."""
    mine = folded(kind, *TRANSFORMS[key](), fused=fused)
    theirs = hooked(kind, *TRANSFORMS[key]())
    scalers = scaler_of(), scaler_of()
    for step in range(6):
        for (model, optimizer, attachment), scaler in zip((mine, theirs), scalers, strict=True):
            factor = scaler.get_scale()
            loss = sum((p * 0).sum() for n, p in model.named_parameters() if n != "unused")
            scaler.scale(loss).backward()  # makes the scaler ready
            kept = feed(model, step, bad=math.inf if step == 3 else None, factor=factor)
            if unscale:
                scaler.unscale_(optimizer)
            before = [p.detach().clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            if step == 3:
                assert all(map(torch.equal, model.parameters(), before))
            elif attachment is mine[2]:
                for grad, scaled in zip(grads_of(model), kept, strict=True):
                    assert torch.equal(grad, scaled / factor)
            optimizer.zero_grad()
        assert_same_decisions(mine[2], theirs[2])
        assert_same_training(mine[:2], theirs[:2])
    assert scalers[0].get_scale() == 512.0
    assert mine[2].skipped == 0


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.PartialState._reset_state()


@each_kind
@each_way
def test_accelerate(accelerator, kind, way):
    """`prepare` loads the optimizer's own state back into it; nothing is lost or doubled."""
    model, optimizer, attachment = folded(kind, Autoscale(), way=way)
    theirs = hooked(kind, Autoscale())
    prepared, wrapper = accelerator.prepare(model, optimizer)
    assert attached(wrapper) is attachment
    for step in range(len(SIZES)):
        if step == 2:
            prepared, wrapper = accelerator.prepare(model, optimizer)
        feed(prepared, step)
        feed(theirs[0], step)
        wrapper.step()
        theirs[1].step()
        assert_same_decisions(attachment, theirs[2])
        assert_same_training((model, optimizer), theirs[:2])
    assert no_hook(optimizer)
    again = gw.attach(wrapper, ClipNorm(0.5))
    assert attachment_of(optimizer) is again
    assert again.names == attachment.names
    assert no_hook(optimizer)


class Lit:
    """Not an optimizer; the closure goes through by name, as Lightning does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure=closure)


class Lookahead(torch.optim.Optimizer):
    """A real optimizer around another one."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups[0]["params"], {})

    def step(self, closure=None):
        return self.optimizer.step(closure)


@each_kind
@each_way
@pytest.mark.parametrize("around", [lambda o: o, Lit, Lookahead], ids=["bare", "lit", "lookahead"])
def test_closures(kind, way, around):
    """The gradients that count are those the closure leaves; one decision a step."""
    mine = folded(kind, *TRANSFORMS["several"](), way=way)
    theirs = hooked(kind, *TRANSFORMS["several"]())
    counted = []
    mine[2].readers.append(lambda attachment, grads, scale: counted.append(grads))
    for step in range(4):
        losses = []
        for model, optimizer, _ in (mine, theirs):
            model.zero_grad()  # nothing is there before the closure runs

            def closure(model=model):
                return backward(model, step)  # noqa: B023

            losses.append(float(around(optimizer).step(closure)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        assert_same_decisions(mine[2], theirs[2], rtol=1e-8)
        assert_same_training(mine[:2], theirs[:2], rtol=1e-8)
        assert len(counted) == step + 1


def test_a_closure_that_is_called_many_times(tmp_path):
    """ImplicitSGD decides, and watch records, once a step: for the gradients where it begins."""
    model = small_model()
    optimizer = ImplicitSGD(model.named_parameters(), lr=0.5, transform=ClipNorm(0.05))
    attachment = attachment_of(optimizer)
    with gw.watch(optimizer, model, tmp_path / "run", weights_every=1):
        for step in range(3):
            backward(model, step)
            first = math.sqrt(sum(float(g.square().sum()) for g in grads_of(model)))
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step(lambda step=step: backward(model, step))
            assert optimizer.closure_calls > 1
            assert float(attachment.moments.total_norm) == pytest.approx(first, rel=1e-12)
            moved = [
                (p.detach() - b).norm() for p, b in zip(model.parameters(), before, strict=True)
            ]
    steps = gw.watch.load(tmp_path / "run").steps.to_pydict()
    assert steps["step"] == [0, 1, 2]
    assert steps["grad_norm"][-1] == pytest.approx(first, rel=1e-6)
    ratio = gw.watch.load(tmp_path / "run").metric("update_ratio")[1][-1]
    weights = [p.detach().norm() for p in model.parameters()]
    wanted = {
        n: float(m / w)
        for (n, _), m, w in zip(model.named_parameters(), moved, weights, strict=True)
    }
    got = dict(zip(gw.watch.load(tmp_path / "run").layer_names, ratio, strict=True))
    assert got == pytest.approx(wanted, rel=1e-5)
    assert no_hook(optimizer)


@each_kind
@each_way
def test_a_hook_of_the_user(kind, way):
    """One that was there before the transforms comes before them in both; ours sees all of them."""
    runs = folded(kind, way="attach"), hooked(kind)
    for run in runs:
        run[2].detach()

    def halve(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.mul_(0.5)

    for run in runs:
        run[1].register_step_pre_hook(halve)
    mine, theirs = ((*run[:2], gw.attach(run[1], Autoscale(), ClipNorm(0.5))) for run in runs)
    for step in range(4):
        kept = feed(mine[0], step)
        feed(theirs[0], step)
        mine[1].step()
        theirs[1].step()
        assert all(torch.equal(g, k * 0.5) for g, k in zip(grads_of(mine[0]), kept, strict=True))
        assert_same_decisions(mine[2], theirs[2])
        assert_same_training(mine[:2], theirs[:2])
