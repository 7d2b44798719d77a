"""Call a compiled kernel on a list of tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gradwise.backends.compiler import kernels

PIECE = 1 << 16  # values that stay with one thread; sums do not depend on the number of threads
WORTH_THREADS = 1 << 19  # values; what is less is read before a second thread has begun
# What each kernel takes: (p)ointers and (i)ntegers before the count and the threads, and after.
_SIGNATURES = {
    "gradwise_measure": ("pp", "ip"),
    "gradwise_apply": ("pp", "pipi"),
    "gradwise_collect": ("ppp", "pp"),
    "gradwise_copy": ("ppp", ""),
    "gradwise_difference": ("ppp", "p"),
    "gradwise_direction": ("ppp", "p"),
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


def plainly_laid_out(tensors: Sequence[Tensor]) -> bool:
    """Whether all are contiguous and none is lazily negated, so that `in_one_piece` holds."""
    return all(map(Tensor.is_contiguous, tensors)) and not any(map(Tensor.is_neg, tensors))


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_uint64]:
    """Where the tensors' values begin; they have to live as long as that is used."""
    return (ctypes.c_uint64 * len(tensors))(*map(Tensor.data_ptr, tensors))


def integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """The numbers as kernels read them."""
    return (ctypes.c_int64 * len(values))(*values)


def launch(kernel: str, values: int, count: int, lists: tuple[Any, ...], *rest: int) -> int:
    """Run a kernel on all tensors; what it writes is there on return.

    Args:
        kernel: its name.
        values: how many it reads in all, which decides whether threads are worth while.
        count: entries in the lists.
        lists: the arrays (or addresses of arrays) that it works through.
        rest: what the kernel takes besides.

    Returns:
        What the kernel returns, of those that do.
    """
    threads = torch.get_num_threads() if values >= WORTH_THREADS and count > 1 else 1
    return _function(kernel)(*lists, count, threads, *rest)


@cache
def _function(name: str) -> Callable[..., int]:
    library = kernels("update.c") if name.startswith("gradwise_update") else kernels()
    assert not isinstance(library, str)
    function = getattr(library, name)
    function.restype = ctypes.c_int64
    kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int64}
    before, after = _SIGNATURES[name]
    function.argtypes = [kinds[kind] for kind in f"{before}ii{after}"]
    return function  # type: ignore[no-any-return]
