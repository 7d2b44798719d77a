"""Losses that the tests of regret share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradwise.analysis.online import GradFn, Loss


def quadratics(weights: Any, centers: Any) -> list[Loss]:
    pairs = zip(torch.as_tensor(weights).tolist(), torch.as_tensor(centers), strict=True)
    return [lambda x, a=a, c=c: a / 2 * (x - c).square().sum() for a, c in pairs]


def linears(slopes: Tensor) -> tuple[list[Loss], list[GradFn]]:
    return [lambda x, a=a: a @ x for a in slopes], [lambda x, a=a: a.clone() for a in slopes]


def one(x: Tensor) -> Tensor:
    return x.square().sum()
