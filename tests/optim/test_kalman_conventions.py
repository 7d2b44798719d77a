"""R-Kalman as a torch optimizer: options, state, transforms, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradwise as gw
from gradwise.errors import UserError
from gradwise.optim._kalman import RKalman
from gradwise.registry import methods
from gradwise.transforms import Center, ClipNorm

COVARIANCES = ["diagonal", "full"]
X, Y = torch.linspace(-1, 1, 12).view(6, 2), torch.linspace(0, 2, 6).view(6, 1)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)


def residual(model: nn.Module) -> Callable[[], Tensor]:
    dtype = next(model.parameters()).dtype
    return lambda: Y.to(dtype) - model(X.to(dtype))


def values(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


def same_state(a: RKalman, b: RKalman) -> bool:
    mine, others = a.state_dict()["state"], b.state_dict()["state"]
    return mine.keys() == others.keys() and all(
        mine[i].keys() == others[i].keys()
        and all(
            x.dtype == others[i][k].dtype and torch.equal(x, others[i][k])
            for k, x in mine[i].items()
        )
        for i in mine
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1.0}, "expected 0 <= lr, got lr=-1.0"),
    ({"rho": -0.1}, "expected 0 <= rho, got rho=-0.1"),
    ({"rho": float("nan")}, "got rho=nan"),
    ({"observation_noise": 0.0}, "expected observation_noise > 0, got observation_noise=0.0"),
    ({"observation_noise": float("inf")}, "got observation_noise=inf"),
    ({"initial_variance": 0}, "expected initial_variance > 0"),
    ({"process_noise": -1}, "expected 0 <= process_noise"),
    ({"covariance": "lowrank"}, "expected covariance 'diagonal' or 'full', got .*'lowrank'"),
    ({"chunk_size": 0}, "expected chunk_size >= 1 or None, got chunk_size=0"),
    ({"lr": torch.ones(2)}, "expected lr with one element"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda v: str(v)[:30])
def test_options_out_of_bounds_are_refused_for_a_group(
    options: dict[str, Any], message: str
) -> None:
    """Through a group, whose options no type check sees first."""
    with pytest.raises(UserError, match=message):
        RKalman([{"params": [torch.zeros(2, requires_grad=True)], **options}])
    optimizer = RKalman([torch.zeros(2, requires_grad=True)])
    with pytest.raises(UserError, match=message):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], **options})
    assert len(optimizer.param_groups) == 1


def test_groups_agree_in_what_is_one_for_all() -> None:
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    with pytest.raises(UserError, match=r"rho is one for all parameter groups, got rho=0\.01 and"):
        RKalman([{"params": [a]}, {"params": [b], "rho": 0.5}])
    optimizer = RKalman([{"params": [a]}, {"params": [b]}])
    optimizer.param_groups[1]["observation_noise"] = 2.0
    with pytest.raises(UserError, match="observation_noise is one for all"):
        optimizer.step(lambda: 1 - a - b)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_real_numbers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=f"real floating-point parameters, got {dtype}"):
        RKalman([torch.zeros(2, dtype=dtype)])


def test_what_residual_fn_has_to_be() -> None:
    p = torch.ones(2, requires_grad=True)
    optimizer = RKalman([p])
    sayings: list[tuple[Any, str]] = [
        (None, "needs residual_fn, a function that returns targets less outputs, got None"),
        (lambda: 1.5, "expected residual_fn to return a tensor, got float"),
        (lambda: p.detach(), "depend on the parameters"),
        (lambda: p * 1j, "expected real residuals, got torch.complex64"),
        (lambda: p[:0], r"expected one residual or more, got residuals of shape \(0,\)"),
    ]
    for residual_fn, message in sayings:
        with pytest.raises(UserError, match=message):
            optimizer.step(residual_fn)
    with pytest.raises(UserError, match="got None"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(p, torch.ones(2))


def test_sparse_derivatives_are_refused() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    places = torch.tensor([1, 2])
    for size, message in ((1, "got sparse ones of parameter 0"), (None, "chunk_size=1 avoids it")):
        with pytest.raises(UserError, match=message):
            RKalman(table.parameters(), chunk_size=size).step(lambda: table(places))


class _Squares(torch.autograd.Function):
    """Its backward goes through numpy, where vmap cannot follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(2 * ctx.saved_tensors[0].detach().numpy() * grad.numpy())


def test_a_model_that_vmap_cannot_batch_runs_one_by_one() -> None:
    p, twin = (torch.tensor([1.0, 2.0, 3.0], requires_grad=True) for _ in range(2))
    with pytest.raises(UserError, match=r"chunk_size=1 avoids it: .*detach"):
        RKalman([p]).step(lambda: 5 - _Squares.apply(p))
    RKalman([p], chunk_size=1).step(lambda: 5 - _Squares.apply(p))
    RKalman([twin]).step(lambda: 5 - twin**2)
    torch.testing.assert_close(p, twin)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_frozen_parameters_stay_and_unused_ones_are_certain_of_nothing_new(
    covariance: Any,
) -> None:
    used, unused, frozen = (torch.ones(2, requires_grad=True) for _ in range(3))
    frozen.requires_grad_(False)
    unused.grad = torch.ones(2)
    optimizer = RKalman([used, unused, frozen], covariance=covariance, process_noise=0.25)
    optimizer.step(lambda: 3 - used * frozen)
    assert (used != 1).all()
    assert torch.equal(unused, torch.ones(2))
    assert torch.equal(frozen, torch.ones(2))
    assert used.grad is not None
    assert unused.grad is None
    if covariance == "diagonal":
        assert torch.equal(optimizer.state[unused]["variance"], torch.full((2,), 1.25))
        assert not optimizer.state.get(frozen)
    else:
        p = optimizer.state[used]["covariance"]
        assert torch.equal(p.diagonal()[2:], torch.tensor([1.25, 1.25, 1.0, 1.0]))
        assert (p.diagonal()[:2] < 1).all()


def test_full_covariance_moves_what_is_correlated() -> None:
    """After a measurement of a + b, one of a alone moves b the other way."""
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = RKalman([a, b], covariance="full", rho=0.0)
    optimizer.step(lambda: 2 - (a + b))
    before = b.item()
    optimizer.step(lambda: 5 - a)
    assert b.item() < before
    b.requires_grad_(False)
    before = b.item()
    optimizer.step(lambda: 9 - a)
    assert b.item() == before


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_who_is_frozen_later_keeps_mean_and_variance(covariance: Any) -> None:
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = RKalman([a, b], covariance=covariance, process_noise=0.5)
    optimizer.step(lambda: 2 - (a + b))
    b.requires_grad_(False)

    def variance() -> Tensor:
        if covariance == "full":
            return optimizer.state[a]["covariance"][1, 1].clone()
        return optimizer.state[b]["variance"].clone()

    mean, before = b.item(), variance()
    optimizer.step(lambda: 9 - (a + b))
    assert b.item() == mean
    assert torch.equal(variance(), before)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_overflows_leaves_everything_alone(covariance: Any) -> None:
    """Residuals whose sum, or derivatives whose squares, float32 cannot hold."""
    for scale, error in ((1.0, 1e38), (1e25, 1.0)):
        p = torch.ones(3, requires_grad=True)
        optimizer = RKalman([p], covariance=covariance, initial_variance=1e-9, rho=0.0)
        optimizer.step(lambda p=p, s=scale, e=error: (s * (1 - p.sum()) + 2 * s + e).expand(9))
        assert torch.equal(p, torch.ones(3))
        for value in optimizer.state[p].values():
            assert torch.equal(value[value != 0], torch.full((3,), 1e-9))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["residual", "derivative"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_is_not_finite_leaves_everything_alone(
    covariance: Any, where: str, bad: float
) -> None:
    model = network()
    optimizer = RKalman(model.parameters(), covariance=covariance, process_noise=0.1)
    attachment = gw.attach(optimizer, ClipNorm(1.0))
    optimizer.step(residual(model))
    before, state = values(model), copy.deepcopy(optimizer.state_dict()["state"])
    fn = residual(model)
    if where == "residual":
        loss = optimizer.step(lambda: fn() + torch.tensor([bad] + [0.0] * 5).view(6, 1))
        assert not loss.isfinite()
    else:
        scale = torch.ones(6, 1)
        scale[2] = bad  # times a 0 in the residual, and as a factor in its derivatives
        optimizer.step(lambda: (fn() - fn().detach()) * scale)
    assert torch.equal(values(model), before)
    after = optimizer.state_dict()["state"]
    for i, own in state.items():
        for key, value in own.items():
            assert torch.equal(after[i][key], value)
    assert attachment.skipped == 1
    optimizer.step(residual(model))
    assert not torch.equal(values(model), before)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_transform_maps_the_innovation_gradient(covariance: Any) -> None:
    plain, mapped, hooked = network(), network(), network()
    first = RKalman(plain.parameters(), covariance=covariance)
    second = RKalman(mapped.parameters(), covariance=covariance, transform=[Center()])
    third = RKalman(hooked.parameters(), covariance=covariance)
    gw.attach(third, Center())
    before = values(plain)
    for optimizer, model in ((first, plain), (second, mapped), (third, hooked)):
        optimizer.step(residual(model))
    raw = [p.grad for p in plain.parameters()]
    assert all(torch.equal(p.grad, g) for p, g in zip(mapped.parameters(), raw, strict=True))
    # P is the identity before this step, so the move is the mapped gradient itself.
    centred, _ = Center().update(raw)
    expected = before - torch.cat([g.double().reshape(-1) for g in centred if g is not None])
    torch.testing.assert_close(values(mapped), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(values(mapped), values(hooked))
    assert not torch.allclose(values(mapped), values(plain))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_state_round_trips(covariance: Any, dtype: torch.dtype) -> None:
    """Through torch.save with weights_only, into a fresh optimizer; then both go on alike."""
    model, twin = network(dtype), network(dtype)
    optimizer = RKalman(model.parameters(), rho=0.2, covariance=covariance)
    for _ in range(2):
        optimizer.step(residual(model))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(v.dtype == wide for s in optimizer.state.values() for v in s.values())
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin.load_state_dict(saved["model"])
    fresh = RKalman(twin.parameters())
    fresh.load_state_dict(saved["optimizer"])
    assert fresh.param_groups[0]["rho"] == 0.2
    assert same_state(optimizer, fresh)
    optimizer.step(residual(model))
    fresh.step(residual(twin))
    assert torch.equal(values(model), values(twin))
    assert same_state(optimizer, fresh)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_state_of_another_model_is_refused(covariance: Any) -> None:
    small, large = nn.Linear(2, 1), nn.Linear(3, 1)
    saved = RKalman(small.parameters(), covariance=covariance)
    saved.step(lambda: Y - small(X))
    optimizer = RKalman(large.parameters())
    optimizer.load_state_dict(saved.state_dict())
    with pytest.raises(UserError, match="out of the loaded state"):
        optimizer.step(lambda: 1 - large(torch.ones(2, 3)))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_copies_go_on_alike(covariance: Any, way: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = RKalman(model.parameters(), covariance=covariance, transform=ClipNorm(0.5))
    optimizer.step(residual(model))
    twin, copied = way((model, optimizer))
    assert same_state(optimizer, copied)
    optimizer.step(residual(model))
    copied.step(residual(twin))
    assert torch.equal(values(model), values(twin))
    assert same_state(optimizer, copied)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_learning_rates_as_tensors_and_by_scheduler(covariance: Any) -> None:
    model, twin = network(), network()
    rate = torch.tensor(0.5)
    by_tensor = RKalman(model.parameters(), lr=rate, covariance=covariance)
    by_number = RKalman(twin.parameters(), lr=0.5, covariance=covariance)
    schedule = torch.optim.lr_scheduler.StepLR(by_number, 1, gamma=0.5)
    for _ in range(3):
        by_tensor.step(residual(model))
        by_number.step(residual(twin))
        rate.mul_(0.5)
        schedule.step()
    torch.testing.assert_close(values(model), values(twin))
    assert by_number.param_groups[0]["lr"] == 0.0625


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_group_may_join_later(covariance: Any) -> None:
    """What is added has its initial variance and no correlation; what was known stays."""
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = RKalman([a], covariance=covariance)
    optimizer.step(lambda: 1 - a.sum(0, keepdim=True))
    old = {k: v.clone() for k, v in optimizer.state[a].items()}
    optimizer.add_param_group({"params": [b], "initial_variance": 4.0})
    if covariance == "full":
        p = optimizer.state[a]["covariance"]
        assert torch.equal(p, torch.block_diag(old["covariance"], 4 * torch.eye(3)))
    optimizer.step(lambda: 1 - b)
    assert (b > 0.5).all()
    if covariance == "diagonal":
        assert torch.equal(optimizer.state[a]["variance"], old["variance"])
        assert (optimizer.state[b]["variance"] < 1).all()


def test_named_parameters_name_the_measurements() -> None:
    model = network()
    optimizer = RKalman(model.named_parameters(), transform=ClipNorm(1.0))
    optimizer.step(residual(model))
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    moments = gw.attach(optimizer).moments
    assert moments is None
    optimizer.step(residual(model))


def test_memory_is_one_value_a_parameter() -> None:
    model = network()
    optimizer = RKalman(model.parameters())
    optimizer.step(residual(model))
    held = sum(v.numel() for s in optimizer.state.values() for v in s.values())
    assert held == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_half_precision_is_rounded_once_a_step(covariance: Any) -> None:
    """A bfloat16 model moves as the float32 one of the same values, to bfloat16's digits."""
    narrow = network(torch.bfloat16)
    wide = network()
    wide.load_state_dict({k: v.float() for k, v in narrow.state_dict().items()})
    RKalman(narrow.parameters(), covariance=covariance).step(residual(narrow))
    RKalman(wide.parameters(), covariance=covariance).step(residual(wide))
    assert all(p.dtype == torch.bfloat16 for p in narrow.parameters())
    torch.testing.assert_close(values(narrow), values(wide), rtol=0.05, atol=0.05)


def test_layouts_in_memory_do_not_matter() -> None:
    rows, columns = torch.zeros(2, 3), torch.zeros(3, 2).T
    results = []
    for start in (rows, columns):
        p = start.requires_grad_()
        optimizer = RKalman([p])
        for _ in range(2):
            optimizer.step(lambda p=p: Y[:2] - p @ torch.tensor([[1.0], [2.0], [3.0]]))
        results.append((p.detach().clone(), optimizer.state[p]["variance"]))
    assert not columns.is_contiguous()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_without_values_are_no_obstacle() -> None:
    p, empty = torch.zeros(2, requires_grad=True), torch.zeros(0, requires_grad=True)
    for covariance in COVARIANCES:
        RKalman([empty, p], covariance=covariance).step(lambda: 1 - torch.cat([p, empty]))  # type: ignore[arg-type]
    assert (p > 0).all()


def test_step_and_graph_leave_nothing_behind() -> None:
    """The closure runs once and with gradients, also where the caller has them off."""
    model = network()
    optimizer = RKalman(model.parameters())
    calls = []

    def fn() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return residual(model)()

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = optimizer.step(fn)
    assert calls == [True]
    assert loss.dim() == 0
    assert not loss.requires_grad
    assert not any(v.requires_grad for s in optimizer.state.values() for v in s.values())


@pytest.mark.parametrize("size", [None, 1, 4])
def test_the_graph_is_freed(size: int | None) -> None:
    model = network()
    kept = residual(model)()
    RKalman(model.parameters(), chunk_size=size).step(lambda: kept)
    with pytest.raises(RuntimeError, match="second time"):
        kept.sum().backward()


def test_errors_of_the_model_are_its_own() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            raise RuntimeError("out of order")

    p = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^out of order"):
        RKalman([p], chunk_size=1).step(lambda: Broken.apply(p))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_lr_with_one_element_and_a_parameter_without_dimensions(covariance: Any) -> None:
    p, twin = (torch.tensor(0.0, requires_grad=True) for _ in range(2))
    RKalman([p], lr=torch.tensor([0.5]), covariance=covariance).step(lambda: 1 - p)
    RKalman([twin], lr=0.5, covariance=covariance).step(lambda: 1 - twin)
    assert p.shape == ()
    assert torch.equal(p, twin)
    assert p > 0


def test_is_listed() -> None:
    method = methods()["rkalman"]
    assert method.kind == "optimizer"
    assert method.factory is RKalman
    assert method.tag == "[R] EKF, [X] regularisation"
