"""How measure and apply run: one interface, an implementation a kind of device.

`reference` is the plain float64 truth that the others are tested against. `triton` runs on CUDA
devices through kernels that go over all tensors at once; `foreach` runs on any device, tensor by
tensor. Neither reads a value on the host. `native` runs on the CPU through kernels that a C
compiler makes once a machine; `cpu` does the same with torch's own calls where there is none. Those
two may look at their own results, because host memory is where they are anyway.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.backends import cpu, foreach, native, reference
from gradwise.backends.apply import ON_HOST, apply_
from gradwise.backends.compiler import kernels
from gradwise.backends.gpu import launching, measuring
from gradwise.backends.segments import Stats
from gradwise.errors import UserError
from gradwise.layout import Layout

__all__ = ["apply", "available", "choose", "holds", "measure", "missing"]

ENVIRONMENT_VARIABLE = "GRADWISE_BACKEND"
_CPU = torch.device("cpu")

_MEASURES: dict[str, Callable[[Sequence[Tensor | None], Layout, bool], Stats]] = {
    "reference": reference.measure,
    "foreach": foreach.measure,
    "triton": measuring.measure,
    "cpu": cpu.measure,
    "native": native.measure,
}


def available() -> tuple[str, ...]:
    """The names that `backend=` takes."""
    return tuple(_MEASURES)


def missing(name: str) -> str | None:
    """Why a backend cannot run here, or None where it can."""
    if name == "triton":
        return launching.missing()
    library = kernels() if name == "native" else None
    return library if isinstance(library, str) else None


def choose(device: torch.device, backend: str | None = None) -> str:
    """The backend that runs on a device.

    Args:
        device: where the tensors are.
        backend: a name to force; None asks the environment variable `GRADWISE_BACKEND`, then the
            kind of device. Where that variable says "triton" and there is a GPU, host memory is
            left to what is best there.

    Raises:
        UserError: where the forced backend is unknown or cannot run on that device.
    """
    if torch.compiler.is_compiling():
        return "foreach"  # the one that torch.compile can trace
    name = backend or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if backend is None and name == "triton" and device.type == "cpu" and missing(name) is None:
        # Who forces them for a run on a GPU has some tensors in host memory all the same.
        name = name if launching.refused(device) is None else None
    if name is None:
        if device.type != "cpu":
            return "triton" if device.type == "cuda" and measuring.proven(device) else "foreach"
        return "native" if native.available() else "cpu"
    if name not in _MEASURES:
        raise UserError(f"expected backend to be one of {', '.join(_MEASURES)}, got {name!r}")
    if name in ON_HOST and device.type != "cpu":
        raise UserError(f"backend {name!r} cannot measure tensors on device '{device}'")
    if name == "triton" and launching.broken() is not None:
        return "foreach"  # it has been said; a run that it happened to goes on
    reason = missing(name)
    if reason is None and name == "triton":
        reason = launching.refused(device)
    if reason is not None:
        raise UserError(f"backend {name!r} cannot run: {reason}")
    return name


def holds(flag: Tensor) -> bool:
    """Whether a 0-d bool is known to be true: asking waits for nothing, and nothing is traced.

    False says nothing. It is the answer for all that lies on an accelerator, and with a backend
    that was forced and stands in for an accelerator's.
    """
    return flag.device.type == "cpu" and choose(flag.device) in ON_HOST and bool(flag)


def measure(
    tensors: Sequence[Tensor | None],
    layout: Layout,
    backend: str | None = None,
    extremes: bool = True,
) -> Stats:
    """Mean, m2, counts and extremes of every segment; see `Moments`."""
    devices = _devices(tensors)
    if len(devices) <= 1:
        device = next(iter(devices), _CPU)
        return _MEASURES[choose(device, backend)](tensors, layout, extremes)
    # A model spread over several devices: measure where the gradients are, move only [S] vectors.
    home = next(tensor.device for tensor in tensors if tensor is not None)
    total: Stats | None = None
    for device in sorted(devices, key=str):
        here = [t if t is not None and t.device == device else None for t in tensors]
        part_layout = layout.only(tuple(t is not None for t in here))
        part = _MEASURES[choose(device, backend)](here, part_layout, extremes)
        moved = [None if v is None else v.to(home, non_blocking=True) for v in part]
        if total is not None:  # a segment has values on one device, and zeros from the others
            moved = [
                None if a is None or b is None else a + b for a, b in zip(total, moved, strict=True)
            ]
        total = Stats(*moved)  # type: ignore[arg-type]
    assert total is not None
    return total


def apply(tensors: Sequence[Tensor | None], affine: Affine, layout: Layout) -> None:
    """Map the tensors in place, `g <- scale * (g - shift)`, segment by segment.

    Where the backend that `choose` names for a device is "native" or "cpu", the map's numbers are
    read on the host; with any other nothing waits for the device.
    """
    devices = _devices(tensors)
    if len(devices) == 1:
        apply_(tensors, affine, layout, backend=choose(devices.pop()))
        return
    for device in devices:
        here = [t if t is not None and t.device == device else None for t in tensors]
        scale, shift = (
            None if v is None else v.to(device, non_blocking=True)
            for v in (affine.scale, affine.shift)
        )
        part = replace(affine, scale=scale, shift=shift)
        there = layout.only(tuple(t is not None for t in here))
        apply_(here, part, there, backend=choose(device))


def _devices(tensors: Sequence[Tensor | None]) -> set[torch.device]:
    if {tensor.is_cpu for tensor in tensors if tensor is not None} == {True}:
        return {_CPU}  # in half the time that it takes to compare devices
    return {tensor.device for tensor in tensors if tensor is not None}
