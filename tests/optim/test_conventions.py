"""What torch.optim's users rely on, for every optimizer (the patterns of torch's test_optim.py)."""

import warnings

import pytest
import torch
from optim_db import (
    LOOP,
    assert_same,
    backward,
    each,
    each_variant,
    numbers,
    small_model,
    train,
    without_decay,
)
from torch.optim import lr_scheduler

import gradwise as gw


def two(entry, **given):
    """A matrix and its optimizer."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    return param, entry.cls([param], **{"lr": entry.lr, **given})


@each
def test_wrong_arguments_are_refused_in_a_sentence(entry):
    for options, told in (
        *entry.wrong,
        ({"lr": -1e-3}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": torch.ones(2)}, "lr"),
        ({"foreach": True, "fused": True}, "foreach"),
        ({"differentiable": True, "foreach": True}, "differentiable"),
        ({"differentiable": True, "fused": True}, "differentiable"),
    ):
        with pytest.raises(gw.UserError) as error:
            two(entry, **options)
        message = str(error.value)
        assert told in message
        assert message.startswith("expected")
        assert "\n" not in message


@each
def test_no_parameters(entry):
    with pytest.raises(ValueError, match="empty parameter list"):
        entry.cls([])
    with pytest.raises(TypeError):
        entry.cls(torch.ones(3))


@each
def test_sparse_gradients_are_refused(entry):
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = entry.cls(embedding.parameters(), lr=entry.lr)
    embedding(torch.tensor([1, 2])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match=f"{entry.name} does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)
    assert not optimizer.state


@each_variant
def test_it_goes_the_right_way(entry, options):
    maximize = options.get("maximize", False)
    model = small_model()
    optimizer = entry.cls(model.parameters(), lr=entry.lr, **without_decay(entry, options))
    first = backward(model, 0)
    for _ in range(5 if maximize else 30):  # upwards there is no end
        backward(model, 0)
        optimizer.step()
    last = backward(model, 0)
    assert last > first if maximize else last < 0.9 * first


@each
@pytest.mark.parametrize(
    "schedulers",
    [
        lambda o: [lr_scheduler.StepLR(o, 5, 0.5)],
        lambda o: [lr_scheduler.CosineAnnealingLR(o, 30)],
        lambda o: [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.95)],
        lambda o: [lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t))],
    ],
    ids=["step", "cosine", "two", "lambda"],
)  # fmt: skip
@pytest.mark.parametrize("tensor", [False, True])
def test_with_schedulers(entry, schedulers, tensor):
    model = small_model()
    lr = torch.tensor(entry.lr, dtype=torch.float64) if tensor else entry.lr
    optimizer = entry.cls(model.parameters(), lr=lr)
    chain = schedulers(optimizer)
    first = backward(model, 0)
    for _ in range(30):
        backward(model, 0)
        optimizer.step()
        for scheduler in chain:
            scheduler.step()
    assert backward(model, 0) < first
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == tensor


@each
@pytest.mark.parametrize("way", [LOOP, {"foreach": True}, {}], ids=["loop", "lists", "chosen"])
def test_groups_have_options_of_their_own(entry, way):
    """Two groups are as two optimizers; a learning rate of 0 holds a group still."""
    options = [{"lr": entry.lr, **o} for o in entry.options[:2]]
    options = [{k: v for k, v in o.items() if k not in ("scope", "maximize")} for o in options]
    models = small_model(), small_model()
    halves = [[list(m.first.parameters()), list(m.last.parameters())] for m in models]
    groups = [{"params": p, **o} for p, o in zip(halves[0], options, strict=True)]
    together = entry.cls(groups, lr=5.0, **way)
    apart = [entry.cls(p, **o, **way) for p, o in zip(halves[1], options, strict=True)]
    for seed in range(4):
        backward(models[0], seed)
        backward(models[1], seed)
        together.step()
        for optimizer in apart:
            optimizer.step()
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, other)
    still = models[0].first.weight.detach().clone()
    together.param_groups[0]["lr"] = 0.0
    together.param_groups[0]["weight_decay"] = 0.0
    train(models[0], together, 2)
    assert torch.equal(models[0].first.weight, still)
    assert not torch.equal(models[0].last.weight, models[1].last.weight)


@each
def test_a_group_that_is_added_later(entry):
    model = small_model()
    optimizer = entry.cls(model.first.parameters(), lr=entry.lr)
    train(model, optimizer, 2)
    held = model.last.weight.detach().clone()
    optimizer.add_param_group({"params": model.last.parameters(), "lr": 2 * entry.lr})
    assert set(optimizer.param_groups[0]) == set(optimizer.param_groups[1])
    train(model, optimizer, 2)
    assert not torch.equal(model.last.weight, held)
    if entry.scalars:
        assert optimizer.state[model.first.weight]["step"] == 4
        assert optimizer.state[model.last.weight]["step"] == 2


@each
def test_named_parameters(entry):
    model = small_model()
    optimizer = entry.cls(model.named_parameters(), lr=entry.lr, transform=gw.transforms.Center())
    train(model, optimizer, 1)
    assert optimizer.param_groups[0]["param_names"][0] == "scale"
    names = gw.attach(optimizer, gw.transforms.Center()).names
    assert names == tuple(name for name, _ in model.named_parameters())


@each
def test_parameters_without_a_gradient(entry):
    model = small_model()
    optimizer = entry.cls(model.parameters(), lr=entry.lr)
    optimizer.step()  # nothing has a gradient
    assert not optimizer.state
    train(model, optimizer, 2)
    assert model.unused not in optimizer.state
    assert torch.equal(model.unused, torch.ones_like(model.unused))


@each
def test_a_gradient_that_comes_and_goes(entry):
    """A step without a gradient leaves parameter and state alone and does not count."""
    param, optimizer = two(entry)
    twin, alone = two(entry)
    for present in (True, False, True, True):
        grad = torch.randn(4, 3, dtype=torch.float64) if present else None
        param.grad, twin.grad = grad, grad
        before = [v.clone() for v in optimizer.state[param].values()] if optimizer.state else []
        optimizer.step()
        if present:
            alone.step()
        else:
            for value, old in zip(optimizer.state[param].values(), before, strict=True):
                assert torch.equal(value, old)
    assert torch.equal(param, twin)


@each_variant
def test_gradients_of_zeros(entry, options):
    """Nothing moves but by weight decay, and nothing becomes NaN."""
    param, optimizer = two(entry, **without_decay(entry, options))
    before = param.detach().clone()
    for _ in range(3):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert torch.equal(param, before)
    assert all(v.isfinite().all() for v in optimizer.state[param].values())


@each
def test_closures(entry):
    models = small_model(), small_model()
    optimizers = [entry.cls(m.parameters(), lr=entry.lr) for m in models]
    for seed in range(3):
        loss = backward(models[0], seed)
        assert optimizers[0].step() is None

        def closure(seed=seed):
            assert torch.is_grad_enabled()
            return backward(models[1], seed)

        with torch.no_grad():
            assert torch.equal(optimizers[1].step(closure), loss)
    assert_same(dict(models[1].named_parameters()), dict(models[0].named_parameters()))


@each
def test_grad_mode_is_as_it_was(entry):
    param, optimizer = two(entry)
    param.grad = torch.ones_like(param)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            optimizer.step()
            assert torch.is_grad_enabled() == enabled
    assert param.requires_grad
    assert not any(v.requires_grad for v in optimizer.state[param].values())


@each
def test_hooks_of_the_user_fire(entry):
    param, optimizer = two(entry)
    seen = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert seen == ["before", "after"]


@each
def test_a_pre_hook_may_change_gradients(entry):
    """gradwise measures what is there when the update begins."""
    param, optimizer = two(entry, transform=gw.transforms.ClipNorm(1e9))
    attachment = gw.attach(optimizer, gw.transforms.ClipNorm(1e9))

    def double(o, args, kwargs):
        param.grad.mul_(2)

    optimizer.register_step_pre_hook(double)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert attachment.moments.mean.item() == 2


@each
def test_repr(entry):
    shown = repr(two(entry)[1])
    assert shown.startswith(f"{entry.name} (")
    assert "foreach" in shown


@each
def test_a_step_under_inference_like_modes(entry):
    param, optimizer = two(entry)
    param.grad = torch.ones_like(param)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert param.isfinite().all()


@each
def test_the_default_type_may_be_another(entry):
    torch.set_default_dtype(torch.float64)
    try:
        model = small_model()
        optimizer = entry.cls(model.parameters(), lr=entry.lr)
        train(model, optimizer, 3)
        found = numbers(model, optimizer)
    finally:
        torch.set_default_dtype(torch.float32)
    model = small_model()
    optimizer = entry.cls(model.parameters(), lr=entry.lr)
    train(model, optimizer, 3)
    assert_same(found, numbers(model, optimizer))


@each
def test_state_is_what_the_table_says(entry):
    """As many values as methods.md's table gives a method, and not one more."""
    model = small_model(torch.bfloat16)
    optimizer = entry.cls(model.parameters(), lr=entry.lr)
    train(model, optimizer, 2)
    for param in model.parameters():
        if param is model.unused:
            continue
        state = optimizer.state[param]
        shaped = [v for v in state.values() if v.shape == param.shape and v.dtype != torch.float32]
        wide = torch.float32 if entry.wide else torch.bfloat16
        tensors = [v for k, v in state.items() if k not in ("step", "alignment")]
        assert len(tensors) == entry.states
        assert all(v.shape == param.shape and v.dtype == wide for v in tensors)
        assert len(shaped) == (0 if entry.wide else entry.states)
        scalars = [v for k, v in state.items() if k in ("step", "alignment")]
        assert len(scalars) == entry.scalars
        assert all(v.dim() == 0 for v in scalars)
