"""Call a compiled kernel on a list of tensors, a run of neighbours a thread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from gradwise.backends.compiler import kernels

SHARE = 1 << 19  # values that are worth a thread of their own
# What each kernel takes: (p)ointers and (i)ntegers before the run of tensors and after it.
_SIGNATURES = {
    "gradwise_measure": ("pppp", "ipp"),
    "gradwise_apply": ("pppp", "pp"),
    "gradwise_copy": ("ppp", ""),
    "gradwise_difference": ("ppp", "ip"),
    "gradwise_direction": ("ppp", "ip"),
    "gradwise_histogram": ("pp", "iiip"),
    "gradwise_update_reduce": ("p", ""),
    "gradwise_update_begin": ("p", ""),
    "gradwise_update": ("p", ""),
}


def in_one_piece(tensor: Tensor, rows: int = 1) -> bool:
    """Whether the values, row after row, fill the memory from `data_ptr` on."""
    if tensor.is_neg():  # a lazy negative: what lies there has the other sign
        return False
    if tensor.is_contiguous():
        return True
    if tensor.dim() == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    return rows == 1 and tensor.dim() == 2 and tensor.t().is_contiguous()


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_uint64]:
    """Where the tensors' values begin; they have to live as long as that is used."""
    return (ctypes.c_uint64 * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """The numbers as kernels read them."""
    return (ctypes.c_int64 * len(values))(*values)


def launch(kernel: str, numels: tuple[int, ...], lists: tuple[Any, ...], *rest: int) -> None:
    """Run a kernel on all tensors; what it writes is there on return.

    Args:
        kernel: its name.
        numels: values in each tensor, by which the work is shared out.
        lists: the arrays (or addresses of arrays) with an entry a tensor.
        rest: what the kernel takes besides.
    """
    function = _function(kernel)
    threads = torch.get_num_threads()
    *others, own = _runs(numels, threads)
    jobs = [_pool(threads).submit(function, *lists, start, stop, *rest) for start, stop in others]
    function(*lists, *own, *rest)
    for job in jobs:
        job.result()


@lru_cache(maxsize=256)
def _runs(numels: tuple[int, ...], threads: int) -> list[tuple[int, int]]:
    """Runs of neighbouring tensors of about the same number of values, one a thread."""
    share = max(sum(numels) / threads, SHARE)
    runs, start, held = [], 0, 0
    for i, numel in enumerate(numels):
        held += numel
        if held >= share:
            runs.append((start, i + 1))
            start, held = i + 1, 0
    if start < len(numels) or not runs:
        runs.append((start, len(numels)))
    return runs


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gradwise")


@cache
def _function(name: str) -> Callable[..., None]:
    library = kernels("update.c") if name.startswith("gradwise_update") else kernels()
    assert not isinstance(library, str)
    function = getattr(library, name)
    function.restype = None
    kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int64}
    before, after = _SIGNATURES[name]
    function.argtypes = [kinds[kind] for kind in f"{before}ii{after}"]
    return function  # type: ignore[no-any-return]
