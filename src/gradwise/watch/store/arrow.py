"""Between NumPy and Arrow without a copy, and without what Arrow's own doors bring along.

`pyarrow.array` imports pandas where that is installed, a quarter of a second in the middle of
somebody's training. Handing over the buffers does not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["as_arrow", "as_dictionary", "as_numpy"]

_TYPES: dict[np.dtype[Any], Any] = {
    np.dtype(np.float32): pa.float32(),
    np.dtype(np.float64): pa.float64(),
    np.dtype(np.int32): pa.int32(),
    np.dtype(np.int64): pa.int64(),
}


def as_arrow(array: npt.NDArray[Any]) -> pa.Array:
    """A number array as an Arrow array without nulls; shares memory where it can.

    Args:
        array: of type float32, float64, int32 or int64; flattened in C order.

    Examples:
        >>> as_arrow(np.array([1.0, 2.0])).to_pylist()
        [1.0, 2.0]
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    return pa.Array.from_buffers(_TYPES[flat.dtype], len(flat), [None, pa.py_buffer(flat)])


def as_dictionary(indices: npt.NDArray[np.int32], names: Sequence[str]) -> pa.DictionaryArray:
    """Text that repeats, as an Arrow dictionary array.

    Args:
        indices: the index of each row's text.
        names: the texts.

    Examples:
        >>> as_dictionary(np.array([1, 0, 1], np.int32), ["conv", "head"]).to_pylist()
        ['head', 'conv', 'head']
    """
    encoded = [name.encode() for name in names]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    buffers = pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))
    texts = pa.StringArray.from_buffers(len(encoded), *buffers)
    return pa.DictionaryArray.from_arrays(as_arrow(indices), texts)


def as_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A number column without nulls as an array; shares memory where it is in one piece.

    Args:
        column: of type float32, float64, int32 or int64.

    Raises:
        pa.ArrowInvalid: where it is of another type or holds nulls.
    """
    dtype = next((dtype for dtype, kind in _TYPES.items() if kind == column.type), None)
    if dtype is None or column.null_count:
        raise pa.ArrowInvalid(f"expected numbers without nulls, got {column.type}")
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    if len(chunks) == 1:
        only: npt.NDArray[Any] = chunks[0]
        return only
    return np.concatenate([np.empty(0, dtype), *chunks])
