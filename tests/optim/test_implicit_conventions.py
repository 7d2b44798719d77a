"""ImplicitSGD by the conventions of torch.optim: groups, types, checkpoints, copies, errors."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from torch import Tensor, nn

import gradwise as gw
from gradwise.errors import UserError
from gradwise.optim._implicit import ImplicitSGD
from gradwise.registry import methods
from reference import implicit as oracle
from reference.closures import closure_of, network, on_quadratic, parameter, spectrum

EXACT = {"tol": 1e-13, "max_inner": 60}
REFUSED = (UserError, BeartypeCallHintViolation)


def test_groups_have_their_own_learning_rates() -> None:
    a, b = spectrum(11, 4, 0.5, 8.0)
    theta = np.linspace(-1.0, 2.0, 4)
    parts = [parameter(theta[:1]), parameter(theta[1:3]), parameter(theta[3:])]
    groups = [
        {"params": [parts[0]], "lr": 0.1},
        {"params": [parts[1]]},
        {"params": [parts[2]], "lr": torch.tensor(0.0)},
    ]
    optimizer = ImplicitSGD(groups, lr=3.0, **EXACT)
    matrix, vector = torch.from_numpy(a), torch.from_numpy(b)

    def loss() -> Tensor:
        flat = torch.cat(parts)
        return flat @ matrix @ flat / 2 - vector @ flat

    optimizer.step(closure_of(optimizer, loss))
    want = oracle.quadratic(a, b, theta, np.array([0.1, 3.0, 3.0, 0.0]))
    np.testing.assert_allclose(torch.cat(parts).detach().numpy(), want, rtol=0, atol=1e-10)
    assert parts[2].tolist() == [2.0]
    assert optimizer.converged


def test_maximize_goes_up() -> None:
    a, b = spectrum(12, 3, 0.5, 8.0)
    weight, optimizer, _ = on_quadratic(a, b, np.ones(3), lr=2.0, maximize=True, **EXACT)
    matrix, vector = torch.from_numpy(a), torch.from_numpy(b)
    loss = lambda: vector @ weight - weight @ matrix @ weight / 2  # noqa: E731
    optimizer.step(closure_of(optimizer, loss))
    want = oracle.quadratic(a, b, np.ones(3), 2.0)
    np.testing.assert_allclose(weight.detach().numpy(), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5), torch.tensor([0.5])])
def test_learning_rates_as_tensors_and_schedulers(lr: float | Tensor) -> None:
    weight = parameter([1.0])
    optimizer = ImplicitSGD([weight], lr=lr, **EXACT)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    closure = closure_of(optimizer, lambda: weight.square().sum() / 2)
    want = 1.0
    for rate in (0.5, 0.05, 0.005):
        optimizer.step(closure)
        schedule.step()
        want /= 1 + rate
        assert weight.item() == pytest.approx(want, rel=1e-6)


def test_parameters_without_a_gradient_stay() -> None:
    used, unused = parameter([1.0]), parameter([5.0])
    optimizer = ImplicitSGD([unused, used], transform=gw.transforms.ClipNorm(0.5), **EXACT)
    optimizer.step(closure_of(optimizer, lambda: used.square().sum() / 2))
    assert unused.item() == 5.0
    assert used.item() == pytest.approx(1 / 1.25, rel=1e-5)
    assert set(optimizer.state) <= {used}


def test_no_gradient_at_all() -> None:
    weight = parameter([1.0])
    optimizer = ImplicitSGD([weight])
    loss = optimizer.step(lambda: torch.tensor(3.0))
    assert loss.item() == 3.0
    assert weight.item() == 1.0
    assert (optimizer.closure_calls, optimizer.residual, optimizer.converged) == (1, 0.0, True)


def test_returns_the_loss_at_the_start() -> None:
    weight = parameter([3.0])
    optimizer = ImplicitSGD([weight])
    assert optimizer.step(closure_of(optimizer, lambda: weight.square().sum())).item() == 9.0
    assert weight.item() == pytest.approx(3.0 / 2)

    def as_float() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(as_float) == pytest.approx(2.25)
    assert weight.item() == pytest.approx(0.75)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_pairs_of_reals(dtype: torch.dtype) -> None:
    start = torch.tensor([[1 + 2j, -0.5j, 3.0], [0.1, 1j, -1 - 1j]]).to(dtype)
    target = torch.tensor([1 - 1j, 2.0, 0.5j]).to(dtype)
    weight, pairs = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
    results = []
    for param, value in (
        (weight, lambda: weight),
        (pairs, lambda: torch.view_as_complex(pairs)),
    ):
        optimizer = ImplicitSGD([param], lr=2.0, transform=gw.transforms.ClipNorm(1.0))
        loss = lambda value=value: ((value() - target).abs() ** 4).sum()  # noqa: E731
        for _ in range(2):
            optimizer.step(closure_of(optimizer, loss))
        results.append(param.detach())
    torch.testing.assert_close(torch.view_as_real(results[0]), results[1])
    assert not torch.allclose(results[0], start)


@pytest.mark.parametrize("inner", ["lbfgs", "adam"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_are_solved_in_float32(dtype: torch.dtype, inner: str) -> None:
    more = {"inner_lr": 0.02, "max_inner": 200} if inner == "adam" else {}
    weight = parameter([1.0, -2.0], dtype)
    optimizer = ImplicitSGD([weight], inner=inner, **more)
    curvature = torch.tensor([1.0, 3.0])
    loss = lambda: (curvature * weight.float().square()).sum() / 2  # noqa: E731
    optimizer.step(closure_of(optimizer, loss))
    assert weight.dtype == dtype
    want = [1 / 1.5, -2 / 2.5]
    assert weight.tolist() == pytest.approx(want, rel=8 * torch.finfo(dtype).eps)
    for state in optimizer.state.values():
        assert state["exp_avg"].dtype == torch.float32
    if inner == "adam":
        fresh = ImplicitSGD([weight], inner=inner, **more)
        fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert torch.equal(fresh.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])


def test_types_and_memory_formats_may_be_mixed() -> None:
    wide, narrow = parameter([[1.0, 2.0]]), parameter([3.0], torch.float32)
    strided = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    assert not strided.is_contiguous()
    before = strided.detach().clone()
    empty, scalar = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.tensor(2.0))
    params = [wide, narrow, strided, empty, scalar]
    optimizer = ImplicitSGD(params, lr=1.0, **EXACT)
    loss = lambda: sum(p.square().sum() for p in params) / 2  # noqa: E731
    optimizer.step(closure_of(optimizer, loss))
    assert wide.tolist() == [[pytest.approx(0.5), pytest.approx(1.0)]]
    assert (narrow.item(), scalar.item()) == (pytest.approx(1.5), pytest.approx(1.0))
    torch.testing.assert_close(strided.detach(), before / 2)


def run(optimizer: ImplicitSGD, loss: Callable[[], Tensor], steps: int) -> None:
    for _ in range(steps):
        optimizer.step(closure_of(optimizer, loss))


@pytest.mark.parametrize("inner", ["lbfgs", "adam"])
@pytest.mark.parametrize("way", ["state_dict", "weights_only", "pickle"])
def test_goes_on_from_where_it_was(inner: str, way: str) -> None:
    """Uninterrupted, and saved half way and loaded into a fresh model and optimizer: the same."""

    def fresh() -> tuple[nn.Module, Callable[[], Tensor], ImplicitSGD]:
        model, loss = network()
        transform = gw.transforms.Autoscale()
        return model, loss, ImplicitSGD(model.parameters(), 2.0, inner, 5, transform=transform)

    model, loss, optimizer = fresh()
    run(optimizer, loss, 3)
    weights = copy.deepcopy(model.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    frozen = pickle.dumps(optimizer)
    run(optimizer, loss, 3)
    other, other_loss, twin = fresh()
    if way == "pickle":
        twin = pickle.loads(frozen)
        params = [p for group in twin.param_groups for p in group["params"]]
        # The pickle holds parameters of its own: put them into the model.
        for (name, _), param in zip(list(other.named_parameters()), params, strict=True):
            owner = other.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], param)
        assert twin.closure_calls == 0
        assert math.isnan(twin.residual)
    else:
        other.load_state_dict(weights)
        if way == "weights_only":
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
        twin.load_state_dict(saved)
    run(twin, other_loss, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_options_ride_in_the_checkpoint_and_old_ones_get_defaults() -> None:
    weight = parameter([1.0])
    optimizer = ImplicitSGD([weight], 0.25, "adam", 7, 1e-3, inner_lr=0.1)
    saved = optimizer.state_dict()
    other = ImplicitSGD([weight])
    other.load_state_dict(saved)
    group = other.param_groups[0]
    options = [group[name] for name in ("lr", "inner", "max_inner", "tol", "inner_lr")]
    assert options == [0.25, "adam", 7, 1e-3, 0.1]
    del saved["param_groups"][0]["maximize"]
    other.load_state_dict(saved)
    assert other.param_groups[0]["maximize"] is False


def test_deepcopy_is_independent() -> None:
    model, loss = network()
    optimizer = ImplicitSGD(
        model.parameters(), inner="adam", max_inner=3, transform=gw.transforms.Autoscale()
    )
    run(optimizer, loss, 2)
    _, twin = copy.deepcopy((model, optimizer))
    before = [p.detach().clone() for group in twin.param_groups for p in group["params"]]
    run(optimizer, loss, 2)
    after = [p for group in twin.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    steps = {state["step"].item() for state in twin.state.values()}
    assert steps == {6.0}


def test_lbfgs_keeps_nothing_between_steps() -> None:
    model, loss = network()
    optimizer = ImplicitSGD(model.parameters())
    run(optimizer, loss, 2)
    assert not optimizer.state_dict()["state"]


def test_named_parameters() -> None:
    model, loss = network()
    optimizer = ImplicitSGD(model.named_parameters(), transform=gw.transforms.ClipNorm(1.0))
    run(optimizer, loss, 1)
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"


def test_the_closure_runs_with_gradients_enabled() -> None:
    weight = parameter([1.0])
    optimizer = ImplicitSGD([weight])
    with torch.no_grad():
        optimizer.step(closure_of(optimizer, lambda: weight.square().sum()))
    assert weight.item() == pytest.approx(0.5)


def test_every_evaluation_is_of_another_point() -> None:
    # A closure call is the whole cost: none may be spent on what is known.
    model, loss = network()
    optimizer = ImplicitSGD(model.parameters(), lr=5.0)
    seen: list[bytes] = []
    whole = closure_of(optimizer, loss)

    def closure() -> Tensor:
        flat = torch.nn.utils.parameters_to_vector(model.parameters())
        seen.append(flat.detach().numpy().tobytes())
        return whole()

    optimizer.step(closure)
    assert len(seen) == optimizer.closure_calls > 5
    assert len(set(seen)) == len(seen)


# What is refused.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -0.1}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"lr": torch.tensor(-1.0)}, "lr"),
        ({"lr": torch.ones(2)}, "lr"),
        ({"inner": "newton"}, "inner"),
        ({"max_inner": 0}, "max_inner"),
        ({"max_inner": 2.5}, "max_inner"),
        ({"tol": -1e-9}, "tol"),
        ({"tol": math.nan}, "tol"),
        ({"inner": "adam", "inner_lr": 0.0}, "inner_lr"),
        ({"inner": "adam", "inner_lr": math.nan}, "inner_lr"),
        ({"inner_lr": 0.1}, "inner_lr"),
    ],
)
def test_arguments_out_of_bounds(options: dict[str, object], named: str) -> None:
    with pytest.raises(REFUSED, match=named):
        ImplicitSGD([parameter([1.0])], **options)
    if named != "lr":
        optimizer = ImplicitSGD([parameter([1.0])])
        with pytest.raises(UserError, match=named):  # the same in a group
            optimizer.add_param_group({"params": [parameter([2.0])], **options})
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("option", ["inner", "max_inner", "tol", "maximize"])
def test_groups_are_solved_together(option: str) -> None:
    other = {"inner": "adam", "max_inner": 3, "tol": 0.5, "maximize": True}[option]
    weights = [parameter([1.0]), parameter([2.0])]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], option: other}]
    with pytest.raises(UserError, match=f"one {option} for all parameter groups"):
        ImplicitSGD(groups)
    optimizer = ImplicitSGD([{"params": [w]} for w in weights])
    optimizer.param_groups[1][option] = other
    with pytest.raises(UserError, match=f"one {option} for all parameter groups"):
        optimizer.step(closure_of(optimizer, lambda: sum(weights).sum()))


def test_a_step_needs_a_closure() -> None:
    optimizer = ImplicitSGD([parameter([1.0])])
    with pytest.raises(UserError, match=r"needs step\(closure\)"):
        optimizer.step()
    with pytest.raises(REFUSED):
        optimizer.step(3.0)


def test_a_closure_must_return_one_number() -> None:
    weight = parameter([1.0, 2.0])
    optimizer = ImplicitSGD([weight])

    def nothing() -> None:
        weight.square().sum().backward()

    def too_much() -> Tensor:
        weight.square().sum().backward()
        return weight.detach()

    with pytest.raises(UserError, match="return one number, got None"):
        optimizer.step(nothing)
    with pytest.raises(UserError, match=r"return one number, got a tensor of shape \(2,\)"):
        optimizer.step(too_much)
    assert weight.tolist() == [1.0, 2.0]


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = ImplicitSGD(table.parameters())
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step(closure_of(optimizer, lambda: table(torch.tensor([1])).sum()))
    assert torch.equal(table.weight, before)


def test_what_cannot_be_is_no_option() -> None:
    names = set(inspect.signature(ImplicitSGD).parameters)
    assert names.isdisjoint({"differentiable", "capturable", "foreach", "fused"})


def test_is_registered() -> None:
    method = methods()["implicitsgd"]
    assert (method.kind, method.factory) == ("optimizer", ImplicitSGD)
    assert "2303.01767" in method.url
