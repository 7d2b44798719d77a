"""differentiable=True: autograd through several steps, against finite differences.

Steps are differentiable in the parameters before them, in the gradients and in the learning rate
wherever the method's formula is. The checks keep away from where it is not:

- AdaRem takes the sign of the gradient and the largest |m|: a kink at 0, and another where two
  values share the largest size.
- AMSGrad takes the larger of two averages.
- A root of an average that has only seen zeros has no derivative there: AdamW, HGM, SGDF with
  gamma < 1 and the over-the-air methods answer NaN, as torch's Adam does. AdaMomentum adds eps
  inside the root and SGDF with gamma = 1 has none, so theirs are finite.

What a transform decides is a constant to autograd: its map is passed through, its choice is not.
"""

import pytest
import torch
from optim_db import (
    DB,
    LOOP,
    assert_same,
    each,
    each_variant,
)
from torch.autograd import gradcheck

import gradwise as gw
from gradwise.attach.attachment import attachment_of

STEPS = 3
SHAPES = ((2, 3), (2,))


def randoms(*size, seed=0):
    """Numbers none of which is near 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    return (x.sign() * (x.abs() + 0.3)).requires_grad_()


def given():
    """Two parameters, and for each the gradients of all steps."""
    params = [randoms(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    grads = [randoms(STEPS, *shape, seed=10 + i) for i, shape in enumerate(SHAPES)]
    return params, grads


def steps_of(entry, options, params, grads, lr=0.05):
    """The optimizer after one step for each gradient, and its parameters as functions of all."""
    values = [p.clone() for p in params]  # not leaves: autograd goes through what is done to them
    optimizer = entry.cls(values, **{**options, "lr": lr, "differentiable": True})
    for step in range(STEPS):
        for value, grad in zip(values, grads, strict=True):
            value.grad = grad[step]
        optimizer.step()
    return optimizer, values


def held(tensors):
    return [t.detach() for t in tensors]


@each_variant
def test_by_the_parameters_before(entry, options):
    params, grads = given()
    assert gradcheck(lambda *p: tuple(steps_of(entry, options, p, held(grads))[1]), params)


@each_variant
def test_by_the_gradients(entry, options):
    """Through all that the state has kept of them."""
    params, grads = given()
    assert gradcheck(lambda *g: tuple(steps_of(entry, options, held(params), g)[1]), grads)


@each_variant
def test_by_the_learning_rate(entry, options):
    params, grads = held(given()[0]), held(given()[1])
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: tuple(steps_of(entry, options, params, grads, x)[1]), (lr,))


@each_variant
def test_the_state_is_a_function_of_the_gradients(entry, options):
    params, grads = given()

    def states(*g):
        optimizer, values = steps_of(entry, options, held(params), g)
        own = [optimizer.state[value] for value in values]
        return tuple(v for state in own for key, v in state.items() if key != "step")

    if not states(*held(grads)):
        pytest.skip(f"{entry.name} has no state with {options}")
    assert gradcheck(states, grads)


def unrolled(entry, options, start, lr):
    """The loss after training on a loss of which the gradients are functions too."""
    value = start.clone()
    optimizer = entry.cls([value], **{**options, "lr": lr, "differentiable": True})
    target = torch.tensor([2.0, -1.5, 0.7], dtype=torch.float64)

    def loss(x):
        return ((x * x.roll(1) - target) ** 2 + x**4 / 8).sum()

    for _ in range(STEPS):
        point = value.clone()  # which the loss may keep, as the step writes to the other
        (value.grad,) = torch.autograd.grad(loss(point), point, create_graph=True)
        optimizer.step()
    return loss(value)


@each_variant
def test_the_loss_after_three_steps(entry, options):
    """What learning to learn needs: by the start and the learning rate, all the way."""
    start = torch.tensor([1.3, -0.8, 0.6], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda p, x: unrolled(entry, options, p, x), (start, lr))


@each_variant
def test_it_is_the_same_step(entry, options):
    params, grads = (held(tensors) for tensors in given())
    optimizer, values = steps_of(entry, options, params, grads)
    others = [p.clone() for p in params]
    plain = entry.cls(others, **{**options, "lr": 0.05, **LOOP})
    for step in range(STEPS):
        for other, grad in zip(others, grads, strict=True):
            other.grad = grad[step]
        plain.step()
    for value, other in zip(values, others, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-13, atol=1e-15)
        assert_same(optimizer.state[value], plain.state[other], 1e-13, 1e-15)


@each
def test_leaves_cannot_be_written_in_a_graph(entry):
    """As with torch's optimizers: who differentiates gives copies of the parameters."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = entry.cls([param], lr=0.1, differentiable=True)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))


NO_ROOT_OF_ZERO = {"SGD", "AdaMomentum", "AdaRem"}


@each_variant
def test_a_gradient_that_is_always_zero(entry, options):
    """There the root has no derivative; all other values have theirs."""
    params, grads = given()
    with torch.no_grad():
        grads[0][:, 0, 0] = 0.0
    _, values = steps_of(entry, options, params, grads)
    sum(value.sum() for value in values).backward()
    finite = entry.name in NO_ROOT_OF_ZERO or options.get("gamma") == 1.0
    assert grads[0].grad[:, 0, 0].isfinite().all() == finite
    assert grads[0].grad[:, 0, 0].isnan().all() == (not finite)
    grads[0].grad[:, 0, 0] = 0.0
    assert all(t.grad.isfinite().all() for t in (*params, *grads))


def test_adarem_has_a_kink_where_the_gradient_is_zero():
    """Autograd answers with one slope there; left and right have others, so no check is due."""
    entry = next(e for e in DB if e.name == "AdaRem")
    start = torch.zeros(2, dtype=torch.float64)

    def end(last):
        grads = torch.stack([torch.tensor([1.0, 1.0], dtype=torch.float64), last])
        value = start.clone()
        optimizer = entry.cls([value], lr=1.0, lam=1.0, differentiable=True)
        for grad in grads:
            value.grad = grad
            optimizer.step()
        return value[0]

    at, eps = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True), 1e-6
    (slope,) = torch.autograd.grad(end(at), at)
    aside = torch.tensor([eps, 0.0], dtype=torch.float64)
    with torch.no_grad():
        right, left = ((end(at + s * aside) - end(at)).item() / (s * eps) for s in (1, -1))
    assert slope[0].item() == pytest.approx(-1.0)
    assert (right, left) == (pytest.approx(-2.0, rel=1e-5), pytest.approx(0.0, abs=1e-5))


@each
@pytest.mark.parametrize("transform", [gw.transforms.Center(), gw.transforms.ClipNorm(0.5)])
def test_a_transform_is_passed_through_as_the_map_it_decided(entry, transform):
    """The derivative is that of the same step with the map's own factor and shift held."""
    param, grad = randoms(4, 3), randoms(4, 3, seed=1)
    other = grad.detach().clone().requires_grad_()
    value = param.detach().clone()
    optimizer = entry.cls([value], lr=0.1, differentiable=True, transform=transform)
    value.grad = grad
    optimizer.step()
    affine = attachment_of(optimizer).affine
    mapped = other
    if affine.shift is not None:
        mapped = mapped - affine.shift.detach()
    if affine.scale is not None:
        mapped = mapped * affine.scale.detach()
    twin = param.detach().clone()
    plain = entry.cls([twin], lr=0.1, differentiable=True)
    twin.grad = mapped
    plain.step()
    torch.testing.assert_close(value, twin, rtol=1e-12, atol=1e-14)
    for result in (value, twin):
        result.square().sum().backward()
    torch.testing.assert_close(grad.grad, other.grad, rtol=1e-9, atol=1e-12)
    assert grad.grad.abs().max() > 0
