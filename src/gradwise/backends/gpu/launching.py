"""Start Triton kernels, and know where that is possible: the one place that imports triton.

A kernel that cannot be compiled or started is not asked again in this process: who calls falls back
on torch's own calls, and the user is told once.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch

_KERNELS = ("kernels", "update_kernels")
_broken: list[str] = []  # the first failure, in words


class KernelError(RuntimeError):
    """A kernel could not be compiled or started; nothing was read or written by it."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU (TRITON_INTERPRET=1), for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def broken() -> str | None:
    """What went wrong with a kernel in this process, or None."""
    return _broken[0] if _broken else None


def missing() -> str | None:
    """Why no kernel can run on any device of this machine, or None."""
    if _broken:
        return _broken[0]
    if not _installed():
        return "the package triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


def refused(device: torch.device) -> str | None:
    """Why kernels do not run on a device of this machine, or None."""
    wanted = "cpu" if interpreted() else "cuda"
    if device.type == wanted:
        return None
    if wanted == "cpu":
        return "TRITON_INTERPRET is set, which runs Triton's kernels on the CPU alone"
    return "Triton's kernels are for CUDA devices (TRITON_INTERPRET=1 runs them on the CPU, slowly)"


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def stream_of(device: torch.device) -> int:
    """A number for the stream that work on the device goes to now."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def launch(
    kernel: str, programs: int, device: torch.device, *args: Any, warps: int, **constants: Any
) -> None:
    """Start a kernel, and wait for nothing.

    Args:
        kernel: its name in one of the modules of kernels.
        programs: how many; none is no launch.
        device: of all tensors among the arguments.
        args: what the kernel takes.
        warps: of 32 threads, a program.
        constants: what it is compiled for.

    Raises:
        KernelError: where that failed; it is said once, and `broken` remembers it.
    """
    if programs == 0:
        return
    try:
        function = _function(kernel)
        with torch.cuda.device(device if device.type == "cuda" else -1):
            # Sums and products are rounded one by one, as on the CPU.
            function[(programs,)](*args, num_warps=warps, enable_fp_fusion=False, **constants)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's, a driver's: anything
        raise give_up(kernel, error) from error


def give_up(kernel: str, error: BaseException) -> KernelError:
    """Remember that kernels do not work here, and say so the first time."""
    lines = str(error).strip().splitlines()
    reason = f"the Triton kernel {kernel!r} failed: {type(error).__name__}"
    reason += f": {lines[0]}" if lines else ""
    if not _broken:
        _broken.append(reason)
        warnings.warn(f"torch's own calls are used instead of Triton: {reason}", stacklevel=2)
    return KernelError(reason)


def kind_of(dtype: torch.dtype) -> Any:
    """A type as kernels are told it."""
    return getattr(_module(_KERNELS[0]).tl, str(dtype).removeprefix("torch."))


def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"gradwise.backends.gpu.{name}")


@cache
def _function(kernel: str) -> Any:
    for name in _KERNELS:
        if (function := getattr(_module(name), kernel, None)) is not None:
            return function
    raise AttributeError(f"no kernel {kernel!r}")
