"""Optimizers that step within backward: refused, exact, or lagged where that was asked for."""

from __future__ import annotations

import copy
import inspect
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradwise as gw
from attach.backward_loops import WAYS, by_hooks, by_wrapper, sgd, train_in_backward
from attach.checkpoints import stored
from attach.loops import (
    SGD,
    TRANSFORMS,
    backward,
    close,
    loss_of,
    network,
    same,
    train,
    values,
)
from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.transforms import (
    AGC,
    Autoscale,
    Center,
    Chain,
    ClipNorm,
    Lagged,
    State,
    Transform,
    ZNorm,
)
from reference import lagged as oracle

STEPS = range(6)
OWN = ("none", "center", "center-row", "znorm", "agc")  # nothing common to all layers
COMMON = tuple(key for key in TRANSFORMS if key not in OWN)
way = pytest.mark.parametrize("way", WAYS)
attach_in_backward = inspect.unwrap(gw.attach_in_backward)  # without the tests' own type checks


def links(key: str) -> tuple[Transform, ...]:
    made = TRANSFORMS[key]()
    return made.transforms if isinstance(made, Chain) else (made,)


# --- what Lagged computes ---

ORACLES: dict[str, tuple[Any, Any]] = {
    "autoscale": (Autoscale(), [oracle.AutoscaleLink()]),
    "autoscale-ratio": (Autoscale("ratio"), [oracle.AutoscaleLink("ratio")]),
    "autoscale-inverse": (Autoscale("inverse"), [oracle.AutoscaleLink("inverse")]),
    "clip": (ClipNorm(0.5), [oracle.ClipLink(0.5)]),
    "znorm": (ZNorm(), [oracle.ZNormLink()]),
    "center+clip": (
        gw.transforms.chain(Center(), ClipNorm(0.5)),
        [oracle.AutoscaleLink("center"), oracle.ClipLink(0.5)],
    ),
    "clip+autoscale": (
        gw.transforms.chain(ClipNorm(0.5), Autoscale()),
        [oracle.ClipLink(0.5), oracle.AutoscaleLink()],
    ),
    "autoscale+clip+znorm": (
        gw.transforms.chain(Autoscale(), ClipNorm(0.5), ZNorm()),
        [oracle.AutoscaleLink(), oracle.ClipLink(0.5), oracle.ZNormLink()],
    ),
}


def gradients(step: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(step)
    shapes = ((4, 3), (3,), (2, 2, 2))
    size = (1.0, 9.0, 0.2, 30.0, 0.0, 2.0)[step]
    return [
        size * (torch.randn(s, generator=made, dtype=torch.float64) + 0.4 * i)
        for i, s in enumerate(shapes)
    ]


@pytest.mark.parametrize("key", ORACLES)
def test_lagged_is_its_equation(key: str) -> None:
    transform, parts = ORACLES[key]
    reference, lagged = oracle.Lagged(*parts), Lagged(transform)
    known, state = reference.init(), None
    for step in STEPS:
        grads = gradients(step)
        wanted, known = reference.step([g.numpy() for g in grads], known)
        found, state = lagged.update(grads, state)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one.numpy(), other, rtol=1e-9, atol=1e-12)


def test_the_oracle_by_hand() -> None:
    steps = [[np.array([[1.0, 3.0]])], [np.array([[10.0, 30.0]])], [np.array([[5.0, 7.0]])]]
    method = oracle.Lagged(oracle.AutoscaleLink())
    state, out = method.init(), []
    for grads in steps:
        (one,), state = method.step(grads, state)
        out.append(one[0].tolist())
    # sigma is 1, 10, 1; alpha is 1, then 1 / 10, which the third step uses.
    assert out[:2] == [[-1.0, 1.0], [-10.0, 10.0]]
    assert out[2] == pytest.approx([-0.1, 0.1])


def test_numbers_are_those_without_a_lag() -> None:
    plain, lagged = (
        gw.transforms.chain(Autoscale(), ClipNorm(0.5)),
        Lagged(Autoscale(), ClipNorm(0.5)),
    )
    state, other = None, None
    for step in STEPS:
        before = other
        _, state = plain.update(gradients(step), state)
        _, other = lagged.update(gradients(step), other)
        for key, value in state.items():
            assert torch.equal(value, other[key]), key
        if before is not None:
            assert other["lagged.0.scale"] == other["0.Autoscale[trend].alpha"]
    assert other is not None
    assert other["lagged.1.scale"] == other["1.ClipNorm.factor"] != 1


def test_without_common_parts_nothing_lags() -> None:
    for key in OWN[1:4]:
        state, other = None, None
        for step in STEPS:
            found, state = Lagged(*links(key)).update(gradients(step), state)
            wanted, other = TRANSFORMS[key]().update(gradients(step), other)
            assert same(found, wanted), key


class FactorEach(Transform):
    """A factor for each layer that depends on the others."""

    def __call__(self, moments: gw.Moments, state: State) -> tuple[Affine, State]:
        return Affine(moments.norm / moments.total_norm), state


def test_factors_that_differ_between_layers_cannot_lag() -> None:
    with pytest.raises(UserError, match="one factor for all layers where they lag, got FactorEach"):
        Lagged(FactorEach()).update(gradients(0))


# --- within backward ---


@way
@pytest.mark.parametrize("key", TRANSFORMS)
def test_as_a_plain_loop_that_lags(key: str, way: str) -> None:
    model, plain = network(), network()
    group = gw.attach_in_backward(WAYS[way](model, sgd), *links(key), model=model, lagged=True)
    optimizer = sgd(plain.parameters())
    attachment = gw.attach(optimizer, Lagged(*links(key)), model=plain)
    assert close(train_in_backward(model, STEPS), train(plain, optimizer, STEPS), rtol=1e-6)
    assert group.names == attachment.names
    assert group.moments is not None
    assert attachment.moments is not None
    torch.testing.assert_close(group.moments.norm, attachment.moments.norm)
    state = {name.removeprefix("0.lagged(").split(").", 1)[-1]: v for name, v in
             (attachment.state or {}).items()}  # fmt: skip
    assert group.state is not None
    assert group.state.keys() == state.keys()
    for name, value in group.state.items():
        torch.testing.assert_close(value, state[name], msg=name)


@way
@pytest.mark.parametrize("key", OWN)
def test_own_parts_are_exact_without_a_lag(key: str, way: str) -> None:
    models = [network() for _ in range(3)]
    gw.attach_in_backward(WAYS[way](models[0], sgd), *links(key), model=models[0])
    made = WAYS[way](models[1], sgd)
    for one in made.values() if isinstance(made, dict) else made:
        gw.attach(one, *links(key))  # each by itself
    optimizer = sgd(models[2].parameters())
    gw.attach(optimizer, *links(key))
    wanted = train(models[2], optimizer, STEPS)
    assert close(train_in_backward(models[0], STEPS), wanted, rtol=1e-6)
    assert close(train_in_backward(models[1], STEPS), wanted, rtol=1e-6)


@way
def test_the_order_of_events(way: str) -> None:
    model = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(3)])
    events: list[str] = []

    class Noted(SGD):
        def step(self, closure: Any = None) -> Any:
            events.append(f"update {names[id(self.param_groups[0]['params'][0])]}")
            return super().step(closure)

    names = {id(p): i for i, p in enumerate(model.parameters())}
    group = gw.attach_in_backward(
        WAYS[way](model, lambda params: Noted(params, lr=0.1)), Autoscale(), lagged=True
    )
    for i, attachment in enumerate(group.attachments):
        attachment.readers.append(lambda *_, i=i: events.append(f"read {i}"))
    for i, layer in enumerate(model):
        layer.weight.register_hook(lambda _, i=i: events.append(f"gradient {i}"))
    for _ in range(2):
        model(torch.ones(2, 3)).square().mean().backward()
    step = [f"{what} {i}" for i in (2, 1, 0) for what in ("gradient", "read", "update")]
    assert events == [*step, *step]


@pytest.mark.parametrize("lagged", [True, False], ids=["lagged", "after backward"])
def test_gradients_of_one_layer_at_a_time(lagged: bool) -> None:
    layers = 8
    model = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(layers)])
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def count(param: Tensor) -> None:
        nonlocal most
        assert param.grad is not None
        alive.append(weakref.ref(param.grad))
        most = max(most, sum(one() is not None for one in alive))

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(count)  # before the one that steps
    if lagged:
        gw.attach_in_backward(by_hooks(model, sgd), Autoscale(), model=model, lagged=True)
        for _ in range(3):
            model(torch.ones(2, 16)).square().mean().backward()
        assert most == 1
    else:
        optimizer = sgd(model.parameters())
        gw.autoscale(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 16)).square().mean().backward()
            optimizer.step()
        assert most == layers


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=0.02, fused=True),
        lambda params: torch.optim.Adam(params, lr=0.02, foreach=True),
        lambda params: gw.optim.AdamW(params, lr=0.02),  # folds the map into its update
    ],
    ids=["fused", "foreach", "folding"],
)
def test_other_optimizers(make: Any) -> None:
    model, plain = network(), network()
    gw.attach_in_backward(by_hooks(model, make), Autoscale(), ClipNorm(0.5), lagged=True)
    optimizer = make(list(plain.parameters()))
    gw.attach(optimizer, Lagged(Autoscale(), ClipNorm(0.5)))
    assert close(train_in_backward(model, STEPS), train(plain, optimizer, STEPS))


def test_a_loss_scale_that_the_user_sets() -> None:
    # GradScaler steps after backward; fused optimizers divide by a scale that somebody sets.
    def fused(params: Any) -> Any:
        made = torch.optim.AdamW(params, lr=0.02, fused=True)
        made.grad_scale = torch.tensor(8.0)
        return made

    model, plain = network(), network()
    group = gw.attach_in_backward(by_hooks(model, fused), ClipNorm(0.5), lagged=True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.02, fused=True)
    attachment = gw.attach(optimizer, Lagged(ClipNorm(0.5)))
    for step in STEPS:
        (8.0 * loss_of(model, step)).backward()
        train(plain, optimizer, [step])
        assert group.moments is not None
        assert attachment.moments is not None
        torch.testing.assert_close(group.moments.norm, attachment.moments.norm, rtol=1e-5, atol=0)
    assert close(values(model), values(plain))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints(reentrant: bool) -> None:
    # A reentrant one runs backward passes within the backward pass.
    def blocks() -> nn.ModuleList:
        torch.manual_seed(5)
        return nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def loss(model: nn.ModuleList, step: int, recompute: bool) -> Tensor:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).requires_grad_()
        for block in model:
            x = checkpoint(block, x, use_reentrant=reentrant) if recompute else block(x)
        return (4.0**step) * x.square().mean()

    model, plain = blocks(), blocks()
    group = gw.attach_in_backward(by_hooks(model, sgd), Autoscale(), lagged=True)
    optimizer = sgd(plain.parameters())
    gw.attach(optimizer, Lagged(Autoscale()))
    for step in range(4):
        loss(model, step, True).backward()
        optimizer.zero_grad()
        loss(plain, step, False).backward()
        optimizer.step()
        assert group.numbers["0.Autoscale[trend].step"] == step + 1
    assert close(values(model), values(plain), rtol=1e-6)


def test_layers_without_a_gradient() -> None:
    # Some steps leave the last layer out; another one is frozen and has no optimizer.
    def loss(model: nn.Module, step: int) -> Tensor:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        layers = list(model)[: 2 if step % 2 else 3]
        for layer in layers:
            x = layer(x)
        return (step + 1) * x.square().mean()

    def make() -> nn.Sequential:
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
        net[0].requires_grad_(False)
        return net

    model, plain, asked = make(), make(), make()
    groups = [
        gw.attach_in_backward(by_hooks(net, sgd), Autoscale(), model=net, lagged=True)
        for net in (model, asked)
    ]
    optimizer = sgd([p for p in plain.parameters() if p.requires_grad])
    gw.attach(optimizer, Lagged(Autoscale()))
    for step in range(7):
        loss(model, step).backward()
        loss(asked, step).backward()
        assert groups[1].moments is not None
        assert len(groups[1].moments.names) == (2 if step % 2 else 4)
        assert groups[1].numbers["0.Autoscale[trend].step"] == step + 1
        optimizer.zero_grad()
        loss(plain, step).backward()
        optimizer.step()
    assert close(values(model), values(plain), rtol=1e-6)
    assert same(values(model), values(asked))


def test_a_gradient_that_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    used: dict[int, Tensor] = {}

    class Keeping(SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            (param,) = self.param_groups[0]["params"]
            used[names[id(param)]] = param.grad.clone()

    names = {id(p): i for i, p in enumerate(model.parameters())}
    group = gw.attach_in_backward(
        by_hooks(model, lambda params: Keeping(params, lr=0.01)), Autoscale(), lagged=True
    )
    bad = {"now": False}
    handle = model[0].weight.register_hook(lambda g: g * torch.nan if bad["now"] else g)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    method = oracle.Lagged(oracle.AutoscaleLink())
    known = method.init()
    for step, size in enumerate((1.0, 20.0, 1.0, 1.0)):
        bad["now"] = step == 2
        grads = [
            g.numpy().astype(float)
            for g in torch.autograd.grad(size * model(x).square().mean(), list(model.parameters()))
        ]
        if step == 2:
            grads[0][:] = np.nan
        weight = model[0].weight.detach().clone()
        before = copy.deepcopy(group.state)
        (size * model(x).square().mean()).backward()
        wanted, known = method.step(grads, known)
        for i in (0, 1):
            np.testing.assert_allclose(used[i].numpy(), wanted[i], rtol=1e-4, atol=1e-6)
        assert group.skipped == int(step >= 2)
        if step == 2:
            assert before is not None
            assert group.state is not None
            assert all(torch.equal(value, group.state[k]) for k, value in before.items())
            assert known["factors"][0] < 0.2  # and that is what the next step uses
            with torch.no_grad():
                model[0].weight.copy_(weight)
    handle.remove()


# --- refused ---


@way
@pytest.mark.parametrize("key", COMMON)
def test_a_transform_that_needs_all_gradients_is_refused(key: str, way: str) -> None:
    model = network()
    made = WAYS[way](model, sgd)
    optimizers = list(made.values() if isinstance(made, dict) else made)
    for one in optimizers:
        gw.attach(one, *links(key))
    before = values(model)
    message = (
        r"needs all gradients, but this optimizer steps within backward, .*: call step\(\) after "
        r"backward, or use gradwise\.attach_in_backward\(optimizers, \.\.\., lagged=True\)$"
    )
    with pytest.raises(UserError, match=message):
        loss_of(model, 0).backward()
    assert same(values(model), before)
    name = "|".join(one.name.split("[")[0] for one in links(key))
    with pytest.raises(UserError, match=rf"^({name}).* needs the gradients of all layers, .*"):
        gw.attach_in_backward(optimizers, *links(key))


def test_a_folding_optimizer_refuses_too() -> None:
    model = network()
    for one in by_hooks(model, lambda params: gw.optim.SGD(params, lr=0.1)):
        gw.autoscale(one)
    with pytest.raises(UserError, match="steps within backward"):
        loss_of(model, 0).backward()


def test_steps_after_backward_are_none_of_it() -> None:
    # Hooks that somebody else has on the parameters are no reason.
    model, plain = network(), network()
    seen: list[Tensor] = []
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    ones = [sgd(m.parameters()) for m in (model, plain)]
    for one in ones:
        gw.autoscale(one)
    assert same(train(model, ones[0], STEPS), train(plain, ones[1], STEPS))
    assert len(seen) == len(STEPS) * len(list(model.parameters()))


def test_a_whole_loop_inside_a_backward_function_is_none_of_it() -> None:
    inner, plain = network(), network()
    optimizers = [sgd(m.parameters()) for m in (inner, plain)]
    for one in optimizers:
        gw.autoscale(one)

    class Solve(torch.autograd.Function):
        """Its derivative is what a training of its own ends with."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            with torch.enable_grad():
                train(inner, optimizers[0], STEPS)
            return grad

    x = torch.ones(2, requires_grad=True)
    Solve.apply(x).sum().backward()
    assert x.grad is not None
    assert same(values(inner), train(plain, optimizers[1], STEPS))


def test_what_cannot_be_attached_to() -> None:
    with pytest.raises(UserError, match=r"^expected the optimizers that step within backward, got"):
        gw.attach_in_backward([], Autoscale(), lagged=True)
    with pytest.raises(UserError, match=r"^expected a torch\.optim\.Optimizer, got Linear$"):
        attach_in_backward([nn.Linear(2, 2)], Autoscale(), lagged=True)
    optimizer = sgd(network().parameters())
    with pytest.raises(UserError, match=r"^expected transforms like ClipNorm\(1\.0\), got float$"):
        attach_in_backward([optimizer], 1.0)
    group = gw.attach_in_backward([optimizer], Center())
    with pytest.raises(UserError, match=r"^expected attach_in_backward with copies"):
        copy.deepcopy(group)


def test_a_name_that_no_layer_has() -> None:
    model = network()
    group = gw.attach_in_backward(by_hooks(model, sgd), AGC(exclude=["head"]), model=model)
    with pytest.raises(UserError, match=r"^AGC excludes 'head', which is no parameter's name$"):
        loss_of(model, 0).backward()
    group.detach()
    plain = network()
    gw.attach_in_backward(
        by_hooks(model, sgd), AGC(clipping=0.1, exclude=["5.weight"]), model=model
    )
    optimizer = sgd(plain.parameters())
    gw.attach(optimizer, AGC(clipping=0.1, exclude=["5.weight"]), model=plain)


# --- going on, and leaving ---


@pytest.mark.parametrize("order", ["attach, load", "load, attach", "by the group"])
@pytest.mark.parametrize("key", ["autoscale", "autoclip", "center+clip"])
def test_a_resumed_run_is_the_uninterrupted_one(key: str, order: str) -> None:
    whole = network()
    gw.attach_in_backward(by_wrapper(whole, sgd).optim_map, *links(key), lagged=True)
    train_in_backward(whole, range(9))

    model = network()
    wrapper = by_wrapper(model, sgd)
    group = gw.attach_in_backward(wrapper.optim_map, *links(key), lagged=True)
    train_in_backward(model, range(5))
    saved, apart = stored(wrapper.state_dict()), stored(group.state_dict())
    weights = stored(model.state_dict())

    model = network()
    model.load_state_dict(weights)
    wrapper = by_wrapper(model, sgd)
    if order == "load, attach":
        wrapper.load_state_dict(saved)
    group = gw.attach_in_backward(wrapper.optim_map, *links(key), lagged=True)
    if order != "load, attach":
        train_in_backward(copy.deepcopy(model), [])
        wrapper.load_state_dict(saved)
    if order == "by the group":
        group.load_state_dict(apart)
    assert same(train_in_backward(model, range(5, 9)), values(whole))


def test_state_of_other_transforms_begins_anew() -> None:
    model = network()
    wrapper = by_wrapper(model, sgd)
    group = gw.attach_in_backward(wrapper.optim_map, Autoscale(), lagged=True)
    train_in_backward(model, range(3))
    saved = wrapper.state_dict()
    with pytest.raises(UserError, match=r"^expected state of 'lagged\(ClipNorm\)', got state of"):
        gw.attach_in_backward(wrapper.optim_map, ClipNorm(1.0), lagged=True).load_state_dict(
            group.state_dict()
        )
    other = by_wrapper(network(), sgd)
    gw.attach_in_backward(other.optim_map, ClipNorm(1.0), lagged=True)
    with pytest.warns(UserWarning, match="begin anew, without the state in the checkpoint"):
        other.load_state_dict(saved)


def test_attached_anew_and_detached() -> None:
    model, plain, bare = network(), network(), network()
    optimizers = by_hooks(model, sgd)
    first = gw.attach_in_backward(optimizers, ClipNorm(1e-3), model=model, lagged=True)
    group = gw.attach_in_backward(optimizers, Autoscale(), lagged=True)
    assert first.names == group.names == tuple(n for n, _ in model.named_parameters())
    gw.attach_in_backward(by_hooks(plain, sgd), Autoscale(), lagged=True)
    assert same(train_in_backward(model, STEPS), train_in_backward(plain, STEPS))
    assert "InBackward(" in repr(group)
    assert "Lagged(Autoscale" in repr(group)
    state = optimizers[0].state_dict()["param_groups"][0]
    assert sum("lagged" in str(key) for key in state) > 0
    for _ in range(2):
        group.detach()
    assert not any("gradwise" in str(key) for key in optimizers[0].state_dict()["param_groups"][0])
    bare.load_state_dict(model.state_dict())
    twins = by_hooks(bare, sgd)
    for one, other in zip(twins, optimizers, strict=True):
        one.load_state_dict(stored(other.state_dict()))
    assert same(train_in_backward(model, STEPS), train_in_backward(bare, STEPS))


def test_the_gradients_are_what_the_hook_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each gradient is read once and written once, in its own step: nothing is gathered.
    model = network()
    group = gw.attach_in_backward(by_hooks(model, sgd), Autoscale(), lagged=True)
    backward(model, 0)
    for attachment in group.attachments:
        assert attachment.moments is not None
        assert len(attachment.moments) == 1
