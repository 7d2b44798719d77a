"""Implicit SGD: the step that uses the gradient of where it arrives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.optim.base import FoldingOptimizer, Params, Transforms, check, check_lr
from gradwise.optim.fold import Fold
from gradwise.optim.proximal import Closure, System, by_adam, by_lbfgs
from gradwise.registry import register

_SHARED = ("inner", "max_inner", "tol", "inner_lr", "maximize")  # one system, so one answer each


@register(
    "implicitsgd",
    kind="optimizer",
    summary="the gradient is taken where the step arrives: stable at every learning rate",
    paper="Y. Li, S. Chen, S. Huang, Implicit SGD for Training PINNs, AAAI 2023",
    url="https://arxiv.org/abs/2303.01767",
    equation="theta' = theta - alpha grad L(theta') (7.1), by an inner solver of (7.2)",
    tag="[V] the step, [V2] Adam inside, [R] L-BFGS inside and the defaults",
)
class ImplicitSGD(FoldingOptimizer):
    r"""Stochastic gradient descent whose gradient is that of the point where the step arrives.

    .. math::
        \theta_{n+1} = \theta_n - \alpha \nabla L(\theta_{n+1}) \quad (7.1), \qquad
        \theta_{n+1} = \arg\min_\theta \tfrac12 \|\theta - \theta_n\|^2
        + \alpha L(\theta) \quad (7.2)

    From Li, Chen and Huang, AAAI 2023 (arXiv 2303.01767) [V]: on a quadratic loss it contracts at
    every learning rate, where SGD diverges as soon as alpha times the largest curvature exceeds 2.
    For a loss that is not convex the step ends near a stationary point of (7.2), at which (7.2) is
    never larger than at the start. The price is an inner solver that calls the closure many times.

    `inner="lbfgs"` [R] runs `torch.optim.LBFGS` with its strong-Wolfe line search on (7.2), anew
    in every step: the objective is another one then. Its first trial is the step of plain SGD. It
    holds up to 2 max_inner copies of the parameters while a step runs and none in between.
    `inner="adam"` [V2] runs `torch.optim.Adam` with its default betas and eps on (7.2); its two
    averages stay from one step to the next, as in the script that is known of the authors' method.

    A step ends when ||theta - theta_n + alpha grad L(theta)|| <= tol (1 + ||theta_n||), after at
    least one inner iteration, or when max_inner iterations are done or find nothing better; what it
    leaves is the best point that it saw. Where the loss or a gradient is NaN or infinite a shorter
    step is tried; where they are so at theta_n already, nothing is changed.

    `closure` must do zero_grad, forward and backward on the *same* batch and give the same loss for
    the same parameters (dropout off or seeded); layers with running statistics count every call. As
    with `torch.optim.LBFGS`, each call makes the host wait for the loss, which is why there is no
    `capturable` and no `differentiable`; GradScaler takes no closures, so it does not go with this.
    `.grad` holds what the last call of the closure left.

    `transform` decides once a step, on the gradients at theta_n, and its map is held fixed while
    the step is solved: theta' = theta_n - alpha scale (grad L(theta') - shift). A tensor with
    scale 0 stays where it is.

    Everything is computed in float32, in float64 where a parameter is of that type; the model is
    evaluated at what the parameters can hold. So for bfloat16 and float16 parameters the residual
    is that of the float32 point whose rounding is written. Complex values are pairs of reals.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with an `lr` of their own.
        lr: alpha, a finite float >= 0 or a tensor with one element. The default is [R].
        inner: "lbfgs" or "adam".
        max_inner: inner iterations a step at most, >= 1. With Adam each is one closure call, with
            L-BFGS usually one, never more than 25.
        tol: bound of the relative residual, >= 0.
        inner_lr: Adam's learning rate, > 0; None for 1e-3. L-BFGS searches its own and takes none.
        maximize: go up instead of down.
        transform: one transform or several, applied in order.

    Attributes:
        inner_iterations: of the last step.
        closure_calls: of the last step, the first one included.
        residual: ||theta' - theta_n + alpha grad L(theta')|| after the last step, over all
            parameters with a gradient, in the parameters' unit; NaN where there is none.
        converged: whether the last step ended with a residual within its bound.

    Raises:
        UserError: where an argument is out of its bounds, or a group has another value of anything
            but `lr`.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        >>> curvature = torch.tensor([1.0, 1000.0], dtype=torch.float64)
        >>> optimizer = ImplicitSGD([weight], lr=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (curvature * weight.square()).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(3):  # SGD would be at -1.2e8 in the second coordinate
        ...     loss = optimizer.step(closure)
        >>> round(weight[0].item(), 4), abs(weight[1].item()) < 1e-6, optimizer.converged
        (0.2963, True, True)
    """

    # Of the class, because torch's copies and pickles of an optimizer hold no attributes.
    inner_iterations: int = 0
    closure_calls: int = 0
    residual: float = math.nan
    converged: bool = False

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.5,
        inner: Literal["lbfgs", "adam"] = "lbfgs",
        max_inner: int = 20,
        tol: float = 1e-6,
        *,
        inner_lr: float | None = None,
        maximize: bool = False,
        transform: Transforms | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "inner": inner,
            "max_inner": max_inner,
            "tol": tol,
            "inner_lr": inner_lr,
            "maximize": maximize,
        }
        _check_options(defaults)
        super().__init__(params, defaults, transform)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            UserError: where an option is out of its bounds, or is not that of the other groups.
        """
        if isinstance(param_group, dict):
            _check_options({**self.defaults, **param_group}, *self.param_groups)
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Solve (7.1) for the closure's batch and move there.

        Args:
            closure: clears the gradients, evaluates the loss, calls backward and returns the loss.

        Returns:
            The loss at theta_n, as the first call of the closure gave it.

        Raises:
            UserError: without a closure, where it returns no single number, or where a transform
                has decided on a negative scale. The parameters are as before then, as they are
                when the closure raises.
            RuntimeError: for a sparse gradient.
        """
        if not callable(closure):
            raise UserError(
                "ImplicitSGD needs step(closure) with a closure that evaluates the loss on the "
                f"same batch, got closure={closure!r}"
            )
        options, *others = self.param_groups
        _check_options(options, *others)
        with torch.enable_grad():
            loss = closure()
        system = self._system(closure, loss, self._decided())
        bound = 0.0
        if system is not None and system.best.finite:
            bound = options["tol"] * (1 + float(torch.linalg.vector_norm(system.start)))
            if system.best.residual > 0:
                self._solve(system, bound)
        self.inner_iterations = 0 if system is None else system.iterations
        self.closure_calls = 1 if system is None else system.calls
        self.residual = 0.0 if system is None else system.best.residual
        self.converged = self.residual <= bound
        return loss

    def _system(self, closure: Closure, loss: Any, fold: Fold | None) -> System | None:
        """(7.2) for the parameters that have a gradient now; None where none has."""
        params: list[Tensor] = []
        rates: list[Tensor] = []
        shifts: list[Tensor | None] = []
        place = -1
        for group in self.param_groups:
            for param in group["params"]:
                place += 1
                if param.grad is None:
                    continue
                if param.grad.layout != torch.strided:
                    raise RuntimeError("ImplicitSGD does not support sparse gradients")
                scale = None if fold is None else fold.scale(place)
                rate = torch.as_tensor(float(group["lr"]), dtype=torch.float64)
                if scale is not None:
                    if (scale < 0).any():
                        least = float(scale.min())
                        raise UserError(f"expected transforms with a scale >= 0, got {least:g}")
                    rate = float(rate) * scale
                params.append(param)
                rates.append(rate)
                shifts.append(None if fold is None else fold.shift(place))
        if not params:
            return None
        sign = -1.0 if self.param_groups[0]["maximize"] else 1.0
        return System(closure, params, rates, shifts, sign, loss)

    def _solve(self, system: System, bound: float) -> None:
        options = self.param_groups[0]
        try:
            if options["inner"] == "lbfgs":
                by_lbfgs(system, options["max_inner"], bound)
            else:
                states = [self.state[param] for param in system.params]
                lr = 1e-3 if options["inner_lr"] is None else options["inner_lr"]
                by_adam(system, options["max_inner"], bound, lr, states)
        except BaseException:
            system.write(system.start)
            raise
        system.write(system.best.theta)


def _check_options(options: dict[str, Any], *others: dict[str, Any]) -> None:
    """Bounds of one group's options, and that the groups agree in what is one for all."""
    check_lr(options["lr"])
    check("lr", float(options["lr"]), 0.0)
    if options["inner"] not in ("lbfgs", "adam"):
        raise UserError(f"expected inner to be 'lbfgs' or 'adam', got inner={options['inner']!r}")
    if not isinstance(options["max_inner"], int):
        raise UserError(f"expected a whole max_inner, got max_inner={options['max_inner']!r}")
    check("max_inner", options["max_inner"], 1)
    check("tol", options["tol"], 0.0)
    inner_lr = options["inner_lr"]
    if inner_lr is not None:
        if options["inner"] == "lbfgs":
            raise UserError(f"expected inner_lr=None with inner='lbfgs', got inner_lr={inner_lr!r}")
        if not 0 < inner_lr < math.inf:
            raise UserError(f"expected 0 < inner_lr < inf, got inner_lr={inner_lr!r}")
    for other in others:
        for name in _SHARED:
            if other[name] != options[name]:
                raise UserError(
                    f"expected one {name} for all parameter groups, which are solved together, "
                    f"got {options[name]!r} and {other[name]!r}"
                )
