"""What the tests of the probes share: routes, float64 oracles, and tensors of odd kinds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import hypothesis.strategies as st
import torch
from torch import Tensor

from gradwise.backends import native
from reference.moments import reals
from reference.strategies import as_array

# What an accelerator takes, what a CPU takes by itself, and what it takes without a compiler.
ROUTES = ["foreach", "cpu", *(["native"] if native.available() else [])]
ON_ROUTES = st.sampled_from(ROUTES)


@contextmanager
def route(name: str) -> Iterator[None]:
    """Make everything in host memory take that route."""
    with mock.patch.dict(os.environ, {"GRADWISE_BACKEND": name}):
        yield


def numbers(x: Tensor) -> list[float]:
    """Every real number of a tensor in float64, in logical order."""
    return reals(as_array(x))


def dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


class Elsewhere(Tensor):
    """Host memory that says it is another device."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu", 1)


class Sharded(Tensor):
    """Looks like a DTensor: what it says about itself is not what lies in memory."""

    def to_local(self) -> Tensor:
        raise AssertionError("a probe has no business here")

    def data_ptr(self) -> int:
        raise AssertionError("there is no memory of its own")
