"""Optimizers inside other people's objects, and what cannot be attached to."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import gradwise as gw
from attach.loops import SGD, backward, loss_of, network, same, train_by_function, values
from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.transforms import Autoscale, Center, ClipNorm, State, Transform

STEPS = range(4)
# The run-time type checks of the tests would speak before the function itself does.
attach = inspect.unwrap(gw.attach)


class Accelerated(torch.optim.Optimizer):
    """As Accelerate wraps: a subclass in name, without the state of one, that steps at times."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.sync = True

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        if self.sync:
            self.optimizer.step(closure)


class Lit:
    """As Lightning wraps: not an optimizer, and the closure goes through."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure=closure)


class Lookahead(torch.optim.Optimizer):
    """A real optimizer around another one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups[0]["params"], {})

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


WRAPPERS: dict[str, Any] = {
    "accelerated": Accelerated,
    "lit": Lit,
    "lookahead": Lookahead,
    "twice": lambda optimizer: Accelerated(Accelerated(optimizer)),
    "both": lambda optimizer: Lit(Accelerated(optimizer)),
    "plain around plain": lambda optimizer: Lit(Lit(optimizer)),
}


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("name", WRAPPERS)
def test_attaches_to_the_optimizer_inside(name: str, with_closure: bool) -> None:
    model, fed = network(), network()
    inner = SGD(model.parameters(), lr=0.02)
    wrapper = WRAPPERS[name](inner)
    attachment = gw.autoscale(wrapper, model)
    assert attachment.optimizer is inner
    for step in STEPS:

        def closure(step: int = step) -> torch.Tensor:
            model.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        if with_closure:
            wrapper.step(closure)
        else:
            closure()
            wrapper.step()
    twin = SGD(fed.parameters(), lr=0.02)
    assert same(values(model), train_by_function(fed, twin, Autoscale(), STEPS))
    # The same attachment, whichever way it is asked for.
    assert gw.attach(inner, ClipNorm(1.0)) is not attachment
    assert len(inner._optimizer_step_pre_hooks) == 1


def test_a_wrapper_that_accumulates() -> None:
    model = network()
    wrapper = Accelerated(SGD(model.parameters(), lr=0.02))
    attachment = gw.autoscale(wrapper)
    for step in range(6):
        wrapper.sync = step % 3 == 2
        loss_of(model, step).backward()
        wrapper.step()
    assert attachment.state is not None
    assert attachment.state["0.Autoscale[trend].step"] == 2


def test_an_optimizer_that_points_at_itself() -> None:
    optimizer = SGD(network().parameters(), lr=0.1)
    optimizer.optimizer = optimizer
    assert gw.attach(optimizer).optimizer is optimizer


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (network(), "Sequential"),
        (SGD, "the class SGD"),
        (None, "NoneType"),
        ([SGD(network().parameters(), lr=0.1)], "list"),
        (Lit(None), "Lit"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_optimizer(thing: Any, name: str) -> None:
    with pytest.raises(UserError, match=rf"^expected a torch\.optim\.Optimizer, got {name}$"):
        attach(thing)


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (ClipNorm, "the class ClipNorm"),
        (1.0, "float"),
        ([Center()], "list"),
        (network(), "Sequential"),
        ("autoscale", "str"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_transform(thing: Any, name: str) -> None:
    optimizer = SGD(network().parameters(), lr=0.1)
    before = gw.attach(optimizer)
    with pytest.raises(UserError, match=rf"^expected transforms like ClipNorm\(1\.0\), got {name}"):
        attach(optimizer, Center(), thing)
    backward_and_step(optimizer)
    assert before.moments is not None  # what was attached is there


def backward_and_step(optimizer: torch.optim.Optimizer) -> None:
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    optimizer.step()


class ShiftAll(Transform):
    """Subtracts one from every gradient, sparse or not, which none of the library's does."""

    def init(self, moments: gw.Moments) -> State:
        return {"count": torch.zeros_like(moments.total_norm)}

    def __call__(self, moments: gw.Moments, state: State) -> tuple[Affine, State]:
        return Affine(shift=torch.ones_like(moments.mean)), {"count": state["count"] + 1}


@pytest.mark.parametrize("backend", ["native", "cpu", "foreach"])
def test_a_shift_of_a_sparse_gradient_is_refused(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWISE_BACKEND", backend)
    dense = [nn.Linear(3, 2).bfloat16(), nn.Linear(2, 3)]
    table = nn.Embedding(5, 3, sparse=True)
    model = nn.ModuleDict({"head": dense[0], "table": table, "tail": dense[1]})
    optimizer = SGD(model.parameters(), lr=0.1)
    attachment = gw.attach(optimizer, ShiftAll(), model=model)
    table(torch.tensor([1, 4])).sum().backward()
    for layer in dense:
        for param in layer.parameters():
            param.grad = torch.ones_like(param)
    before = values(model)
    message = (
        r"^gradient 'table\.weight' is sparse: shifting it would make it dense, so use a transform "
        r"that only scales$"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            optimizer.step()
    assert attachment.state is None
    assert attachment.skipped == 0
    assert same(before, values(model))
    assert all((p.grad == 1).all() for layer in dense for p in layer.parameters())
    table.weight.grad = None
    optimizer.step()
    assert attachment.state == {"0.ShiftAll.count": torch.ones((), dtype=torch.float64)}


def test_an_optimizer_without_parameters_yet() -> None:
    model = network()
    optimizer = SGD([{"params": []}], lr=0.02)
    attachment = gw.autoscale(optimizer)
    optimizer.step()
    assert attachment.names == ()
    assert attachment.moments is None
    optimizer.add_param_group({"params": list(model.parameters())})
    backward(model, 0)
    optimizer.step()
    assert attachment.moments is not None
    assert attachment.names[0] == "group1.0"
