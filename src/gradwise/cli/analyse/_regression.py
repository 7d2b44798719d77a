"""The regression that diagonal networks are trained on, and a step size for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradwise.analysis.implicit_bias import planted_problem
from gradwise.cli.analyse.common import Given
from gradwise.errors import UserError


def regression(given: Given, planted: tuple[int, int, int]) -> tuple[str, Tensor, Tensor]:
    """What it is called, inputs (n, d) and targets (n,) in float64.

    Args:
        given: its data, or "" for a planted one.
        planted: n, d and r of that.

    Raises:
        UserError: where the data are no regression.
    """
    if not given.data:
        n, d, r = planted
        problem = planted_problem(n, d, r, seed=given.seed)
        return f"a planted regression ({n}, {d}, {r})", problem.inputs, problem.targets
    samples = given.samples()
    inputs, targets = samples.tensors()
    if samples.num_classes is not None or not targets.is_floating_point():
        raise UserError(f"expected targets of real numbers from data {given.data}, got classes")
    inputs, targets = inputs.flatten(1).double(), targets.double()
    if targets.numel() != len(targets):
        raise UserError(
            f"expected one target a sample from data {given.data}, got shape {list(targets.shape)}"
        )
    return given.data, inputs, targets.flatten()


def usual_step(inputs: Tensor, targets: Tensor) -> float:
    """A step size that is safe as a rule, [X].

    A step on sample i multiplies weight j by 1 -+ gamma r_i x_ij, where r_i is y_i at first, and
    near a solution beta it moves the prediction by gamma sum_j x_ij^2 4 |beta_j| r_i or so: both
    are kept small, with the solution of the smallest l2 norm for beta.

    Args:
        inputs: (n, d).
        targets: (n,).

    Raises:
        UserError: where all inputs or all targets are 0.
    """
    first = float((targets[:, None] * inputs).abs().max())
    if not first > 0:
        raise UserError("expected inputs and targets that are not all 0, got zeros")
    beta = torch.linalg.lstsq(inputs, targets[:, None], driver="gelsd").solution[:, 0]
    last = float((inputs.square() @ beta.abs()).max())
    return min(0.5 / first, 0.4 / last if last > 0 else math.inf)
