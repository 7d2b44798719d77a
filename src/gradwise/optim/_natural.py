"""RENG and RING: natural gradients of a loss that its own gradient regularises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradwise.optim._fisher import Group
from gradwise.optim._kronecker import Gathering
from gradwise.optim._natural_step import Closure, Grads, NaturalGradient, Trained
from gradwise.registry import register

_PAPER = "Dash, Abdi, Pan, Kaski, Sun, Gradient-Regularized Natural Gradients, 2026"
_URL = "https://arxiv.org/abs/2601.18420"
_TAG = (
    "[X] this library's reconstruction: the objective is [V2], the curvature [R]; "
    "the update equations of the paper were not seen"
)


@register(
    "reng",
    kind="optimizer",
    summary="natural gradient of loss + rho/2 |gradient|^2, by one Hessian-vector product",
    paper=_PAPER,
    url=_URL,
    equation="theta -= lr (F + damping I)^-1 (g + rho H g), F by Kronecker factors",
    tag=_TAG,
)
class RENG(NaturalGradient):
    r"""Natural gradient of a regularised loss, the regularisation by double back-propagation.

    .. math::
        l_G = l + \tfrac{\rho}{2} \lVert \nabla l \rVert^2, \quad
        g_G = \nabla l + \rho H \nabla l, \quad
        \theta \leftarrow \theta - \eta (F + \lambda I)^{-1} g_G

    This is a reconstruction [X]: the paper's objective l_G (6.1) is known at second hand and its
    update equations were not seen. (6.2) follows from (6.1); that the method is (6.3) with the
    curvature below is this library's reading.

    **Curvature.** For every nn.Linear and nn.Conv2d, weight and bias together, F is taken as
    A (x) S with A the second moment of the inputs (a 1 appended for the bias) and S that of the
    gradients at the outputs, and inverted as `(S + sqrt(damping) I)^-1 G (A + sqrt(damping) I)^-1`
    (6.5), as K-FAC does; each group of a grouped convolution has factors of its own. S comes from
    the labels of the batch, since the closure shows no predictions to draw others from: it is the
    *empirical* Fisher matrix. For all other parameters (norm layers, embeddings, a bias without
    its weight), and for layers that no evaluation has used yet, F + damping I is replaced by I:
    they follow g_G itself. Give them a group with a learning rate of its own where that is wrong.

    A and S are averaged over refreshes, every `factor_every` steps, and inverted by Newton's
    iteration from where the last one ended. Only refreshes read values on the host: once for all
    layers together in each iteration.

    **Closure.** `step(closure)` differentiates by itself. The closure evaluates the model on one
    batch, in one forward pass, and returns the loss *without* `backward`; dimension 0 of what goes
    into a layer is the batch, and further dimensions are positions, as those of an image. `.grad`
    holds g_G after the step; `transform` maps it before F is applied. GradScaler, torch.compile of
    the model (which has no double backward) and distributed wrappers do not go with this; neither
    do `capturable` and `differentiable`. Gradients that the closure takes itself, as those of a
    physics-informed network, are differentiated exactly, but A and S tell of the forward pass only.

    Args:
        params: the model, or what torch.optim takes together with `model`.
        lr: learning rate, a float >= 0 or a tensor with one element. [X]
        rho: weight of the regularisation, >= 0; 0 is the damped natural gradient. [X]
        damping: lambda, > 0.
        momentum: of the preconditioned directions, >= 0, as torch.optim.SGD has it.
        factor_decay: weight of the past in the averages of A and S at each refresh, in [0, 1).
        factor_every: steps from one refresh to the next, >= 1.
        weight_decay: decoupled; parameters shrink by the factor `1 - lr * weight_decay` first.
        model: the module whose layers are looked at; given as `params` it need not be repeated.
        fisher: "identity" leaves the curvature out: gradient descent on l_G.
        reduction: whether the loss is the "mean" or the "sum" over the batch's samples.
        max_dim: where A or S would have more rows, it is a multiple of I, the mean of its diagonal.
        newton_tol: Frobenius norm of I - M X at which an inverse X of M is good enough, > 0.
        newton_iterations: updates of an inverse at most; one that is ended early is damped more.
        maximize: go up: the same as minimising the negative loss.
        transform: one transform or several, applied in order.

    Copies and pickles keep factors and averages. A copy made together with its model
    (`deepcopy((model, optimizer))`) goes on as the original would; of an optimizer alone, the
    layers are copied with the parameters.

    Attributes:
        inversions: how the last refresh of the factors went, two entries a layer, A first.

    Raises:
        UserError: where an argument is out of its bounds, a parameter is complex, or the model has
            no layer that is to be factored.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from gradwise.optim import RENG
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> x, y = torch.randn(32, 3), torch.randn(32, 1)
        >>> optimizer = RENG(model, lr=0.02)
        >>> def closure():
        ...     return nn.functional.mse_loss(model(x), y)
        >>> losses = [float(optimizer.step(closure)) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    def _gradients(
        self, closure: Closure, trained: Trained, gathering: Gathering
    ) -> tuple[Tensor, Grads]:
        regularised = any(group["rho"] != 0 for _, group in trained)
        loss, grads = self._first(closure, trained, gathering, create_graph=regularised)
        if not regularised:
            return loss, grads
        outputs, vectors = [], []
        for grad, (_, group) in zip(grads, trained, strict=True):
            # A gradient that depends on no parameter adds nothing to the Hessian.
            if grad is not None and grad.requires_grad and group["rho"] != 0:
                outputs.append(grad)
                vectors.append(grad.detach() * _reach(group))
        if not outputs:
            return loss, grads
        products = torch.autograd.grad(
            outputs, [p for p, _ in trained], grad_outputs=vectors, allow_unused=True
        )
        pairs = zip(grads, products, strict=True)
        return loss, [g if g is None or hv is None else g + hv for g, hv in pairs]


@register(
    "ring",
    kind="optimizer",
    summary="natural gradient of loss + rho/2 |gradient|^2, by one more gradient further up",
    paper=_PAPER,
    url=_URL,
    equation="theta -= lr (F + damping I)^-1 grad l(theta + rho g), F by Kronecker factors",
    tag=_TAG,
)
class RING(NaturalGradient):
    r"""Natural gradient of a regularised loss, the regularisation by one more gradient.

    .. math::
        g_G \approx \nabla l(\theta + \rho \nabla l(\theta)), \quad
        \theta \leftarrow \theta - \eta (F + \lambda I)^{-1} g_G

    This is a reconstruction [X]: what the paper's implicit algorithm computes was not seen, and
    (6.4) is the first-order surrogate of RENG's gradient. It differs from that by O(rho^2), by
    nothing where the loss is quadratic, and needs no second derivatives: any layer goes.

    The closure is called twice, and must evaluate the same batch. Both times it draws the same
    random numbers of torch (on the CPU, CUDA and XPU), so that dropout drops the same units, and
    the running statistics of norm layers move once. Everything else, arguments included, is as for
    RENG; with rho = 0 both are the same and the closure is called once.

    Args:
        params: see RENG, as for all arguments.
        lr: learning rate.
        rho: weight of the regularisation.
        damping: lambda.
        momentum: of the preconditioned directions.
        factor_decay: weight of the past in the averages of A and S.
        factor_every: steps from one refresh to the next.
        weight_decay: decoupled.
        model: the module whose layers are looked at.
        fisher: "empirical" or "identity".
        reduction: "mean" or "sum".
        max_dim: rows of A or S that are held in full.
        newton_tol: when an inverse is good enough.
        newton_iterations: updates of an inverse at most.
        maximize: go up instead of down.
        transform: one transform or several, applied in order.

    Raises:
        UserError: as RENG does.

    Examples:
        >>> import torch
        >>> from gradwise.optim import RING
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = RING(layer.named_parameters(), model=layer, rho=0.1)
        >>> x = torch.randn(8, 2)
        >>> loss = optimizer.step(lambda: layer(x).square().mean())
        >>> sorted(optimizer.state[layer.weight])
        ['factor_in', 'factor_out', 'inverse_in', 'inverse_out', 'refreshes', 'step']
    """

    def _gradients(
        self, closure: Closure, trained: Trained, gathering: Gathering
    ) -> tuple[Tensor, Grads]:
        if all(group["rho"] == 0 for _, group in trained):
            return self._first(closure, trained, gathering, create_graph=False)
        draws = _Draws({param.device for param, _ in trained})
        loss, grads = self._first(closure, trained, gathering, create_graph=False)
        with _moved(trained, grads), _kept(self._norms):
            draws.replay()
            again = self._evaluate(closure, trained)
            return loss, self._differentiate(again, trained, create_graph=False)


def _reach(group: Group) -> float:
    """rho, with the sign that makes maximising a loss the same as minimising its negative."""
    return float(-group["rho"] if group["maximize"] else group["rho"])


@contextmanager
def _moved(trained: Trained, grads: Grads) -> Iterator[None]:
    """Parameters at theta + rho g; afterwards, whatever happens, bit for bit where they were."""
    saved = [param.clone() for param, _ in trained]
    try:
        for (param, group), grad in zip(trained, grads, strict=True):
            if grad is not None:
                param.add_(grad, alpha=_reach(group))
        yield
    finally:
        for (param, _), value in zip(trained, saved, strict=True):
            param.copy_(value)


@contextmanager
def _kept(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Running statistics of norm layers, which a second evaluation of a batch must not move."""
    buffers = [buffer for norm in norms if norm.training for buffer in norm.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)


class _Draws:
    """Random numbers of torch, to be drawn a second time: dropout has to drop the same units."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._others = [
            (device, torch.get_device_module(device).get_rng_state(device))
            for device in devices
            if device.type in ("cuda", "xpu")
        ]

    def replay(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._others:
            torch.get_device_module(device).set_rng_state(state, device)
