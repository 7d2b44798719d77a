"""RENG and RING as optimizers of torch: groups, checkpoints, copies, closures, refusals."""

import copy
import io
import pickle

import pytest
import torch
from natural_helpers import batch, both, half_squares, network, taken, vector
from torch import nn

import gradwise as gw
from gradwise.optim._natural import RENG, RING

OPTIONS = {"lr": 0.02, "rho": 0.1, "momentum": 0.9, "factor_every": 2, "weight_decay": 0.01}


def train(optimizer, model, steps, first=0):
    for t in range(first, first + steps):
        inner, outer = model[0].in_features, model[-1].out_features
        dtype = model[0].weight.dtype
        x, y = (v.to(dtype) for v in batch(8, inner, outer, seed=t))
        optimizer.step(half_squares(model, x, y))


def alike(one, other):
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@both
def test_a_checkpoint_goes_on_bit_for_bit_in_a_fresh_optimizer(cls, dtype):
    model = network([3, 4, 2]).to(dtype)
    optimizer = cls(model, **OPTIONS)
    train(optimizer, model, 3)  # the next step refreshes nothing, the one after that does
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = network([3, 4, 2], seed=9).to(dtype)
    fresh = cls(twin)  # other options, all of which the checkpoint brings
    twin.load_state_dict(saved["model"])
    fresh.load_state_dict(saved["optimizer"])
    train(optimizer, model, 4, 3)
    train(fresh, twin, 4, 3)
    alike(model, twin)


@both
def test_deepcopy_and_pickle_with_the_model_go_on_alone(cls):
    model = network([3, 4, 2])
    optimizer = cls(model, transform=gw.transforms.Autoscale(), **OPTIONS)
    train(optimizer, model, 3)
    others = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    train(optimizer, model, 4, 3)
    for twin, twins in others:
        train(twins, twin, 4, 3)
        alike(model, twin)
        assert twins.state[twin[0].weight]["refreshes"] == 4


@both
def test_the_model_can_be_copied_and_pickled_at_any_time(cls):
    model = network([3, 2])
    optimizer = cls(model)
    train(optimizer, model, 1)
    alike(pickle.loads(pickle.dumps(copy.deepcopy(model))), model)


@both
def test_what_it_takes_as_parameters(cls):
    ends = []
    for make in (
        lambda m: cls(m, **OPTIONS),
        lambda m: cls(m.parameters(), model=m, **OPTIONS),
        lambda m: cls(m.named_parameters(), model=m, **OPTIONS),
        lambda m: cls([{"params": list(m.parameters())}], model=m, **OPTIONS),
        lambda m: cls([{"params": [p]} for p in m.parameters()], model=m, **OPTIONS),
    ):
        model = network([3, 4, 2])
        train(make(model), model, 3)
        ends.append(model)
    for other in ends[1:]:
        alike(ends[0], other)
    assert cls(model).param_groups[0]["param_names"][0] == "0.weight"


@both
def test_groups_have_options_of_their_own(cls):
    model = network([3, 4, 2])
    x, y = batch(8, 3, 2)
    steps = {}
    for factor in (1.0, 2.0):
        twin = copy.deepcopy(model)
        groups = [
            {"params": twin[0].parameters(), "lr": 0.01},
            {"params": twin[2].parameters(), "lr": 0.01 * factor, "damping": 1e-3 / factor},
        ]
        steps[factor] = taken(cls(groups, model=twin, rho=0.0), half_squares(twin, x, y))
    assert torch.equal(steps[1.0][:16], steps[2.0][:16])
    assert not torch.allclose(2 * steps[1.0][16:], steps[2.0][16:])  # the damping differs too
    optimizer = cls(model[0].parameters(), rho=0.0, lr=0.01, model=model)
    optimizer.add_param_group({"params": list(model[2].parameters()), "fisher": "identity"})
    step = taken(optimizer, half_squares(model, x, y))
    assert torch.equal(step[:16], steps[1.0][:16])
    torch.testing.assert_close(step[16:], 0.01 * vector([p.grad for p in model[2].parameters()]))


@both
def test_frozen_unused_and_unfactored_parameters(cls):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)
            self.norm = nn.LayerNorm(3)
            self.head = nn.Linear(3, 2)
            self.spare = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.norm(self.table(x)))

    torch.manual_seed(0)
    model = Net().double()
    model.head.weight.requires_grad_(False)  # its bias is left without a block then
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = cls(model, lr=0.1)
    target = torch.randn(6, 2).double()
    x = torch.tensor([0, 1, 2, 3, 3, 1])
    optimizer.step(half_squares(model, x, target))
    for name, p in model.named_parameters():
        if name.startswith(("spare", "head.weight")):
            assert torch.equal(p, before[name])
            assert p.grad is None
            assert p not in optimizer.state
        else:
            assert torch.equal(p, before[name] - 0.1 * p.grad), name
    model.head.weight.requires_grad_(True)
    optimizer.step(half_squares(model, x, target))
    assert optimizer.state[model.head.weight]["factor_in"].shape == (1, 4, 4)
    assert "factor_in" not in optimizer.state[model.table.weight]


@both
def test_a_bias_that_is_frozen_on_the_way_changes_the_factors(cls):
    model = network([3, 2])
    optimizer = cls(model, factor_every=100)
    train(optimizer, model, 2)
    assert optimizer.state[model[0].weight]["factor_in"].shape == (1, 4, 4)
    model[0].bias.requires_grad_(False)
    kept = model[0].bias.detach().clone()
    train(optimizer, model, 2)
    assert optimizer.state[model[0].weight]["factor_in"].shape == (1, 3, 3)
    assert optimizer.state[model[0].weight]["refreshes"] == 1
    assert torch.equal(model[0].bias, kept)


@both
def test_transform_maps_the_regularised_gradient_before_the_fisher_matrix(cls):
    x, y = batch(8, 3, 2)
    model = network([3, 4, 2])
    plain = copy.deepcopy(model)
    cls(plain, lr=0.0, rho=0.5).step(half_squares(plain, x, y))
    scale = 0.3 / vector([p.grad for p in plain.parameters()]).norm()
    steps = []
    for transform in (None, gw.transforms.ClipNorm(0.3)):
        twin = copy.deepcopy(model)
        optimizer = cls(twin, lr=0.1, rho=0.5, transform=transform)
        steps.append(taken(optimizer, half_squares(twin, x, y)))
        for p, q in zip(twin.parameters(), plain.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)  # `.grad` stays as the transform found it
    assert scale < 0.9
    torch.testing.assert_close(steps[1], steps[0] * scale, rtol=1e-5, atol=1e-12)
    attached = copy.deepcopy(model)
    optimizer = cls(attached, lr=0.1, rho=0.5)
    gw.attach(optimizer, gw.transforms.ClipNorm(0.3))
    assert torch.equal(taken(optimizer, half_squares(attached, x, y)), steps[1])


@both
def test_schedulers_and_tensor_rates(cls):
    ends = []
    for lr in (0.02, torch.tensor(0.02, dtype=torch.float64), torch.tensor([0.02]).double()):
        model = network([3, 4, 2])
        optimizer = cls(model, **{**OPTIONS, "lr": lr})
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=3)
        for t in range(3):
            train(optimizer, model, 1, t)
            schedule.step()
        ends.append(vector(list(model.parameters())))
    for other in ends[1:]:
        torch.testing.assert_close(ends[0], other, rtol=1e-6, atol=1e-8)


def test_ring_evaluates_the_same_function_twice():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 1))
    x, y = torch.randn(16, 6), torch.randn(16, 1)
    masks = []
    model[2].register_forward_hook(lambda m, i, o: masks.append(o == 0))
    optimizer = RING(model, rho=1e-8)
    start = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        mean = model[0](x).mean(0)
    at = []
    optimizer.step(
        lambda: at.append(model[0].weight.detach().clone()) or model(x).sub(y).square().mean()
    )
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(at[0], start[0])
    assert model[1].num_batches_tracked == 1
    torch.testing.assert_close(model[1].running_mean, 0.1 * mean)
    optimizer.step(lambda: model(x).sub(y).square().mean())
    assert not torch.equal(masks[1], masks[2])  # the next step drops others


def test_ring_puts_the_parameters_back_where_the_closure_fails():
    model = network([3, 2])
    before = vector(list(model.parameters())).clone()
    calls = []

    def closure():
        calls.append(vector(list(model.parameters())).clone())
        if len(calls) == 2:
            raise KeyError("a mistake of the user's")
        return half_squares(model, *batch(4, 3, 2))()

    with pytest.raises(KeyError):
        RING(model, rho=0.5).step(closure)
    assert not torch.equal(calls[1], before)
    assert torch.equal(vector(list(model.parameters())), before)


@pytest.mark.parametrize(("cls", "rho", "calls"), [(RENG, 0.1, 1), (RING, 0.1, 2), (RING, 0.0, 1)])
def test_how_often_the_closure_is_called(cls, rho, calls):
    model = network([3, 2])
    made = []
    closure = half_squares(model, *batch(4, 3, 2))
    loss = cls(model, rho=rho).step(lambda: made.append(1) or closure())
    assert len(made) == calls
    assert not loss.requires_grad


@both
def test_without_a_trained_parameter_the_loss_is_all_there_is(cls):
    model = network([3, 2]).requires_grad_(False)
    loss = cls(model).step(half_squares(model, *batch(4, 3, 2)))
    assert loss.dim() == 0
    assert not model[0].weight.grad


@both
def test_evaluation_mode_and_refreshes_are_reported(cls):
    model = network([3, 4, 2]).eval()
    optimizer = cls(model, factor_every=2)
    assert optimizer.inversions == ()
    train(optimizer, model, 3)
    assert len(optimizer.inversions) == 4
    assert all(inversion.residual <= 1e-3 for inversion in optimizer.inversions)
    assert not any(inversion.fresh for inversion in optimizer.inversions)


@both
def test_gradients_are_tensors_of_their_own(cls):
    first, second = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    cls([first, second], fisher="identity", rho=0.0).step(lambda: (first + second).sum())
    first.grad.mul_(2)  # as a clipping function does; autograd gave one expanded tensor for both
    assert torch.equal(first.grad, torch.full((2, 3), 2.0))
    assert torch.equal(second.grad, torch.ones(2, 3))
