"""R-Kalman: training as filtering, the extended Kalman filter with gradient regularisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.optim._belief import Diagonal, Full, gram, jacobian, whiten, wide
from gradwise.optim.base import FoldingOptimizer, Params, Transforms, check, check_lr
from gradwise.registry import register

Covariance = Literal["diagonal", "full"]
ResidualFn = Callable[[], Tensor]

# Belong to the residual, not to a parameter: every group has them, so that a checkpoint does.
_SHARED = ("rho", "observation_noise", "covariance", "chunk_size")


@register(
    "rkalman",
    kind="optimizer",
    summary="extended Kalman filter over the parameters, its noise reshaped by rho",
    paper="S. Dash et al., Gradient-Regularized Natural Gradients, 2026",
    url="https://arxiv.org/abs/2601.18420",
    equation="theta + lr P H^T (H P H^T + R_rho)^-1 (y - f); P <- (I - K H) P + Q",
    tag="[R] EKF, [X] regularisation",
)
class RKalman(FoldingOptimizer):
    """Extended Kalman filter over the parameters, with gradient regularisation.

    The parameters are the mean of a Gaussian belief with covariance P, the model's outputs f are
    measured as y with noise R = observation_noise I, and H = df/dtheta. One step is one update of
    the filter, with e = y - f [R]:

        S = H P H^T + R_rho        K = lr P H^T S^-1
        theta <- theta + K e       P <- (I - K H) P (I - K H)^T + K R_rho K^T + Q

    which for lr = 1 is the usual P <- (I - K H) P + Q; this form holds for any gain and cannot turn
    negative. The solve is m x m, m being the number of residuals, whatever the number d of
    parameters. The filter needs no learning rate: one pass over linear data with rho = 0 and a
    full P is Bayesian linear regression.

    The regularisation is this library's reconstruction [X]: the update equations of the paper's
    R-Kalman were not available. Of its objective l + rho/2 ||grad l||^2, with l = e^T R^-1 e / 2
    and the Gauss-Newton Hessian H^T R^-1 H, the descent direction is
    H^T (R^-1 + rho R^-1 H H^T R^-1) e, which is the filter's with another measurement noise,

        R_rho = (R^-1 + rho R^-1 H H^T R^-1)^-1.

    The one filter with that noise is what runs here; rho = 0 is the plain one.

    `.grad` of the parameters holds the innovation gradient -H^T S^-1 e after a step, None where the
    residuals do not depend on a parameter. `transform` maps it before P is applied; P itself
    follows the gain without the transform. A step with a residual or a derivative that is not
    finite changes neither parameters nor P.

    P is `state[p]["variance"]`, shaped like p, or with `covariance="full"`
    `state[first]["covariance"]`, [d, d] over all parameters in the optimizer's order, kept with the
    first of them; float64 for float64 parameters, else float32. A step holds the m x d Jacobian.
    A parameter with `requires_grad=False` stays as it is, its variance too. With a full P a
    parameter that the residuals do not depend on moves with those that it is correlated with.

    There is no `maximize` (residuals have no sign to turn), no `foreach`, `capturable` or
    `differentiable`: time goes into the Jacobian. Processes that share data do not share H.

    Args:
        params: floating-point tensors, (name, tensor) pairs or dicts; lr, initial_variance and
            process_noise may differ between groups, the rest is one for all.
        lr: factor of the gain, a number or a tensor; 1 is the filter.
        rho: strength of the gradient regularisation, >= 0.
        observation_noise: variance of a measurement, in the residuals' unit squared, > 0. Large
            values give small steps.
        initial_variance: P before the first step is this times I, > 0.
        process_noise: Q is this times I, >= 0; above 0 the filter forgets and P does not vanish.
        covariance: "diagonal" keeps d values of P and drops the others after each step; "full"
            keeps all d^2.
        chunk_size: residuals differentiated in one batched back pass; None takes all at once.
            Smaller needs less memory, and 1 does without `torch.vmap`, which some models need.
        transform: a transform or several, folded into the update.

    Raises:
        UserError: where an argument is out of its bounds, groups disagree in what is one for all,
            or a parameter is complex.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = RKalman(model.parameters(), observation_noise=1e-4, initial_variance=10.0)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> y = torch.tensor([[1.0], [2.0], [3.0]])
        >>> for _ in range(3):
        ...     loss = optimizer.step(lambda: y - model(x))
        >>> bool((y - model(x)).abs().max() < 0.01)
        True
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        rho: float = 0.01,
        observation_noise: float = 1.0,
        initial_variance: float = 1.0,
        process_noise: float = 0.0,
        covariance: Covariance = "diagonal",
        chunk_size: int | None = None,
        *,
        transform: Transforms | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "observation_noise": observation_noise,
            "initial_variance": initial_variance,
            "process_noise": process_noise,
            "covariance": covariance,
            "chunk_size": chunk_size,
        }
        super().__init__(params, defaults, transform)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, uncorrelated with the others; see `torch.optim.Optimizer`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group, self.param_groups[0])
        except UserError:
            self.param_groups.pop()
            raise
        first = self.param_groups[0]["params"][:1]
        known = self.state[first[0]].get("covariance") if first and self.state else None
        if known is not None:
            new = known.new_ones(sum(p.numel() for p in group["params"]))
            corner = torch.zeros(len(known), len(new), dtype=known.dtype, device=known.device)
            added = torch.diag(new * group["initial_variance"])
            rows = [torch.cat([known, corner], 1), torch.cat([corner.T, added], 1)]
            self.state[first[0]]["covariance"] = torch.cat(rows)

    @torch.no_grad()
    def step(  # type: ignore[override]  # needs residuals where other optimizers need a loss
        self, residual_fn: ResidualFn | None = None
    ) -> Tensor:
        """One update of the filter.

        Args:
            residual_fn: returns y - f, targets less the model's outputs, as a tensor of any shape
                that depends on the parameters; called once, with gradients enabled.

        Returns:
            The loss before the update, e^T R^-1 e / (2 m), 0-d.

        Raises:
            UserError: where `residual_fn` is missing or returns something else, or a Jacobian is
                sparse.
        """
        shared = self._shared()
        residual = _evaluated(residual_fn)
        groups = [group for group in self.param_groups for _ in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        dtype = wide([*params, residual])
        rows = jacobian(residual, params, shared["chunk_size"], dtype)
        error = residual.detach().to(dtype)
        noise, rho = float(shared["observation_noise"]), float(shared["rho"])

        kind = Full if shared["covariance"] == "full" else Diagonal
        belief = kind(self.state, groups, params, rows, error)
        whitener, root = whiten(belief.spread(), gram(rows, error) if rho > 0 else None, noise, rho)
        innovation = whitener @ error
        ok = innovation.isfinite().all()
        grads: list[Tensor | None] = []
        for p, row in zip(params, rows, strict=True):
            if row is None:
                p.grad = None
                grads.append(None)
                continue
            there = whitener.to(row.device)
            grad = (row.T @ (there.T @ innovation.to(row.device))).view(p.shape)
            ok = ok & grad.isfinite().all().to(ok.device)
            p.grad = grad.to(p.dtype)
            grads.append(grad)
        fold = self._decided()
        if fold is not None:
            grads = [g if g is None else fold(i, g) for i, g in enumerate(grads)]
        belief.update(grads, whitener, root, ok)
        return error.square().mean() / (2 * noise)

    def _shared(self) -> dict[str, Any]:
        """The first group, when all agree with it in what is one for all."""
        first, *others = self.param_groups
        for group in others:
            _check_shared(group, first)
        return first


def _evaluated(residual_fn: ResidualFn | None) -> Tensor:
    """The residuals as a vector with its graph."""
    if not callable(residual_fn):
        raise UserError(
            "RKalman.step needs residual_fn, a function that returns targets less outputs, got "
            f"{residual_fn!r}"
        )
    with torch.enable_grad():
        residual = residual_fn()
        if not isinstance(residual, Tensor):
            raise UserError(
                f"expected residual_fn to return a tensor, got {type(residual).__name__}"
            )
        if not residual.is_floating_point():
            raise UserError(f"expected real residuals, got {residual.dtype}")
        if residual.numel() == 0:
            raise UserError(
                f"expected one residual or more, got residuals of shape {tuple(residual.shape)}"
            )
        if not residual.requires_grad:
            raise UserError(
                "expected residuals that depend on the parameters, got a tensor that needs no "
                "gradient"
            )
        return residual.reshape(-1)


def _check_group(group: dict[str, Any], first: dict[str, Any]) -> None:
    check_lr(group["lr"])
    for name in ("rho", "process_noise", "observation_noise", "initial_variance"):
        value = group[name]
        if isinstance(value, Tensor):
            raise UserError(f"expected {name} to be a number, got a tensor")
        check(name, value, 0.0)
    for name in ("observation_noise", "initial_variance"):
        if group[name] == 0:
            raise UserError(f"expected {name} > 0, got {name}={group[name]!r}")
    if group["covariance"] not in ("diagonal", "full"):
        raise UserError(
            f"expected covariance 'diagonal' or 'full', got covariance={group['covariance']!r}"
        )
    size = group["chunk_size"]
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UserError(f"expected chunk_size >= 1 or None, got chunk_size={size!r}")
    _check_shared(group, first)
    for p in group["params"]:
        if not p.is_floating_point():
            raise UserError(f"RKalman takes real floating-point parameters, got {p.dtype}")


def _check_shared(group: dict[str, Any], first: dict[str, Any]) -> None:
    for name in _SHARED:
        if group[name] != first[name]:
            raise UserError(
                f"{name} is one for all parameter groups, got {name}={first[name]!r} and "
                f"{name}={group[name]!r}"
            )
