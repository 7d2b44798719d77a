"""Which of all interpolators training finds: diagonal linear networks, solved to the end.

Section 13 of methods.md: Pesme, Pillaud-Vivien and Flammarion, "Implicit Bias of SGD for Diagonal
Linear Networks: a Provable Benefit of Stochasticity", NeurIPS 2021, arXiv 2106.09524. A regression
with more coordinates than samples, in a parametrisation that makes it non-convex (13.1) [R]

    beta = w+^2 - w-^2,  w+ = w- = alpha at first,  L(w) = (1/4n) sum_i (<beta, x_i> - y_i)^2

Gradient flow ends at the interpolator of the smallest phi_alpha (13.5); the noise of SGD makes it
that of a smaller, effective alpha (13.4), which is a sparser one.

- `planted_problem` makes a sparse regression, `train_diagonal` trains on it or on your own (13.2),
  `diagonal_flow` follows the stochastic flow (13.3)
- `hyperbolic_entropy`, `hyperbolic_entropy_gradient`: phi_alpha and its gradient (13.5)
- `effective_alpha`: what (13.4) predicts; `DiagonalRuns.effective_alpha` is what a run has
- `kkt_residual`: how far a beta is from the smallest phi_alpha among its equals

No official code is known; equations are recalled [R] and checked by derivation and numbers [D].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis._diagonal import diagonal_flow, positive, train_diagonal
from gradwise.analysis._diagonal_runs import DiagonalRuns
from gradwise.errors import UserError

__all__ = [
    "DiagonalRuns",
    "PlantedProblem",
    "diagonal_flow",
    "effective_alpha",
    "hyperbolic_entropy",
    "hyperbolic_entropy_gradient",
    "kkt_residual",
    "planted_problem",
    "train_diagonal",
]

# From here on arcsinh(z) is ln(2z) to float64's precision: the next term is 1 / (4 z^2).
LARGE = 1e8
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class PlantedProblem:
    """A noiseless regression with a sparse solution, in float64.

    Attributes:
        inputs: X, (n, d).
        targets: y = X beta*, (n,).
        solution: beta*, (d,), of norm 1.
    """

    inputs: Tensor
    targets: Tensor
    solution: Tensor

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """(inputs, targets)."""
        return self.inputs, self.targets

    def to_dict(self) -> dict[str, Any]:
        """The fields as lists."""
        return {
            "inputs": self.inputs.tolist(),
            "targets": self.targets.tolist(),
            "solution": self.solution.tolist(),
        }


def planted_problem(n: int, d: int, r: int, seed: int) -> PlantedProblem:
    """Standard normal inputs and targets of a beta* with r entries +-1/sqrt(r) at random places.

    The paper's experiment has n=40, d=100, r=5; that all entries are equally large is this
    library's choice [X].

    Args:
        n: samples, >= 1.
        d: coordinates, >= 1.
        r: those of them that count, 1 <= r <= d.
        seed: of inputs, places and signs.

    Raises:
        UserError: where n, d or r is out of its bounds.

    Examples:
        >>> problem = planted_problem(n=40, d=100, r=5, seed=0)
        >>> problem.inputs.shape, problem.solution.count_nonzero().item()
        (torch.Size([40, 100]), 5)
    """
    if n < 1 or d < 1:
        raise UserError(f"expected n >= 1 and d >= 1, got n={n} and d={d}")
    if not 1 <= r <= d:
        raise UserError(f"expected 1 <= r <= d={d}, got r={r}")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, d, generator=generator, dtype=torch.float64)
    places = torch.randperm(d, generator=generator)[:r]
    signs = 2.0 * torch.randint(2, (r,), generator=generator) - 1.0
    solution = torch.zeros(d, dtype=torch.float64)
    solution[places] = signs.double() / math.sqrt(r)
    return PlantedProblem(inputs, inputs @ solution, solution)


def hyperbolic_entropy(beta: Tensor, alpha: float | Tensor, *, from_zero: bool = False) -> Tensor:
    """The potential phi_alpha whose smallest interpolator training finds.

        phi_alpha(beta) = 1/4 sum_j [beta_j arcsinh(beta_j / 2 alpha_j^2)
                                     - sqrt(beta_j^2 + 4 alpha_j^4)]              (13.5) [R]

    For small alpha it goes like 1/2 ln(1/alpha) |beta|_1, for large like a constant plus
    |beta|_2^2 / (16 alpha^2) [D]; that constant, phi_alpha(0) = -sum_j alpha_j^2 / 2, drowns the
    rest from alpha ~ 1e4 on, so that `from_zero` leaves it out. No alpha is too small or large.

    Args:
        beta: (..., d); made float64. Can be differentiated.
        alpha: > 0, a number or a tensor that broadcasts against beta; square root of beta's units.
        from_zero: phi_alpha(beta) - phi_alpha(0), computed without the difference.

    Returns:
        Shape (...), float64, in units of beta.

    Raises:
        UserError: where alpha is not positive and finite, or beta has no dimension.

    Examples:
        >>> beta = torch.tensor([3.0, -4.0])
        >>> small = hyperbolic_entropy(beta, 1e-200)
        >>> round((small / (0.5 * 200 * math.log(10) * beta.abs().sum())).item(), 2)
        1.0
        >>> hyperbolic_entropy(beta, 1e6, from_zero=True) * 16 * 1e6**2
        tensor(25., dtype=torch.float64)
    """
    beta = _vector(beta)
    alpha = positive(alpha, "alpha", beta)
    scale = (2 * alpha * alpha).clamp(min=TINY)  # so that the root has a slope at 0
    root = torch.hypot(beta, scale)
    if from_zero:  # sqrt(b^2 + c^2) - c = b^2 / (sqrt(b^2 + c^2) + c)
        rest = beta * (beta / (root + scale))
    else:
        rest = root
    return (beta * _arcsinh_ratio(beta, alpha) - rest).sum(-1) / 4


def hyperbolic_entropy_gradient(beta: Tensor, alpha: float | Tensor) -> Tensor:
    """The gradient of phi_alpha: 1/4 arcsinh(beta / 2 alpha^2), entry by entry (13.5) [R].

    Under gradient flow it is a combination of the inputs at all times (mirror descent).

    Args:
        beta: (..., d); made float64.
        alpha: > 0, a number or a tensor that broadcasts against beta; no value is too small.

    Returns:
        Shape (..., d), float64, without unit.

    Raises:
        UserError: where alpha is not positive and finite, or beta has no dimension.

    Examples:
        >>> hyperbolic_entropy_gradient(torch.tensor([0.0, 2.0]), 1e-300)
        tensor([  0.0000, 345.5611], dtype=torch.float64)
    """
    beta = _vector(beta)
    return _arcsinh_ratio(beta, positive(alpha, "alpha", beta)) / 4


def effective_alpha(
    inputs: Tensor,
    alpha: float | Tensor,
    gamma: float | Tensor,
    loss_integral: float | Tensor,
) -> Tensor:
    """The alpha whose potential SGD minimises.

        alpha_inf = alpha * exp(-2 gamma diag(X^T X / n) int_0^inf L(w_s) ds)      (13.4) [R], [D]

    The slower the loss falls, the larger its integral, the smaller alpha_inf, the sparser the
    solution. `train_diagonal` and `diagonal_flow` give the integral, and this for their runs as
    `predicted_alpha`.

    Args:
        inputs: X, (n, d).
        alpha: at the start, > 0, a number or a tensor that broadcasts against (..., d).
        gamma: step size, >= 0, a number or (...,); for batches of b, gamma / b [D].
        loss_integral: of L as in (13.2) over time, which is gamma a step; >= 0, a number or (...,).

    Returns:
        Shape (..., d), float64.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> effective_alpha(torch.tensor([[1.0, 2.0]]), 0.1, 0.5, 1.0) / 0.1
        tensor([0.3679, 0.0183], dtype=torch.float64)
    """
    x = _matrix(inputs)
    rate = torch.ones((), dtype=torch.float64, device=x.device)
    for name, value in (("gamma", gamma), ("loss_integral", loss_integral)):
        factor = torch.as_tensor(value, dtype=torch.float64, device=x.device).detach()
        if not bool((factor >= 0).all()) or not bool(factor.isfinite().all()):
            raise UserError(f"expected 0 <= {name} < inf, got {name}={value}")
        rate = rate * factor
    return positive(alpha, "alpha", x) * torch.exp(-2 * rate[..., None] * x.square().mean(0))


def kkt_residual(inputs: Tensor, beta: Tensor, alpha: float | Tensor) -> Tensor:
    """How far beta is from the smallest phi_alpha among the betas with the same predictions.

    With v = arcsinh(beta / 2 alpha^2), which at that smallest is a combination of the inputs x_i
    (13.5) [D]: the length of the part of v outside the inputs' span over that of v. At 0 it is
    reached, since phi_alpha is strictly convex; 1 is the largest. Dividing by |v| is this
    library's choice.

    Args:
        inputs: X, (n, d), of any rank.
        beta: (..., d).
        alpha: > 0, a number or a tensor that broadcasts against beta.

    Returns:
        Shape (...), float64, in [0, 1]; 0 for beta = 0.

    Raises:
        UserError: where alpha is not positive and finite, or shapes do not fit.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> kkt_residual(x, torch.tensor([[0.5, 0.5], [1.0, 0.0]]), 0.1).round(decimals=4)
        tensor([0.0000, 0.7071], dtype=torch.float64)
    """
    x, beta = _matrix(inputs), _vector(beta).detach()
    if beta.shape[-1] != x.shape[1]:
        raise UserError(f"expected beta of length d={x.shape[1]}, got {beta.shape[-1]}")
    v = _arcsinh_ratio(beta, positive(alpha, "alpha", beta))
    _, singular, rows = torch.linalg.svd(x, full_matrices=False)
    noise = singular[0] * max(x.shape) * torch.finfo(torch.float64).eps
    basis = rows[singular > noise]
    off = v - (v @ basis.T) @ basis
    length = torch.linalg.vector_norm(v, dim=-1)
    share: Tensor = torch.linalg.vector_norm(off, dim=-1) / torch.where(length > 0, length, 1.0)
    return share


def _arcsinh_ratio(beta: Tensor, alpha: Tensor) -> Tensor:
    """arcsinh(beta / 2 alpha^2), also where alpha^2 or the ratio is out of float64's range."""
    ratio = beta / alpha / (2 * alpha)
    large = ratio.abs() > LARGE
    size = torch.where(large, beta.abs(), 1.0)  # no infinities in the branch not taken
    logarithm = beta.sign() * (size.log() - 2 * alpha.log())
    return torch.where(large, logarithm, torch.where(large, 0.0, ratio).asinh())


def _vector(beta: Tensor) -> Tensor:
    if beta.ndim == 0 or beta.is_complex() or not bool(beta.isfinite().all()):
        raise UserError(
            f"expected beta (..., d) of finite real numbers, got {beta.dtype} of shape "
            f"{tuple(beta.shape)}"
        )
    return beta.double()


def _matrix(inputs: Tensor) -> Tensor:
    real = not inputs.is_complex() and bool(inputs.isfinite().all())
    if inputs.ndim != 2 or inputs.numel() == 0 or not real:
        raise UserError(
            f"expected inputs (n, d) of finite real numbers, got {inputs.dtype} of shape "
            f"{tuple(inputs.shape)}"
        )
    return inputs.detach().double()
