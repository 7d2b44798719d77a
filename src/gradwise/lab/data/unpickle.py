"""Reading pickles of strings, numbers and byte arrays, and of nothing else.

A pickle is a program: it may name any function and have it called. The files of CIFAR need three
names of numpy, which stand for "an array of this type and shape with these bytes". Here those
names lead to inert stand-ins, no module is ever imported, and numpy sees nothing but bytes whose
length has been compared with the shape.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import UserError

# What a dictionary of strings, lists of numbers and byte arrays is written with, in any protocol
# from 2 on. Left out, among others: everything that makes objects of classes.
# fmt: off
_OPCODES = frozenset([
    "PROTO", "FRAME", "STOP", "MARK",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
])
# fmt: on
# The unpickler makes room for every memo number up to the one it meets, so a single instruction
# could ask for gigabytes. CIFAR-100, the largest of these files, stays below 200,000.
_MAX_MEMO = 2_000_000
# A broken stream can end in any of these, depending on where it is cut.
# fmt: off
_BROKEN = (
    EOFError, MemoryError, OverflowError, RecursionError,
    AttributeError, IndexError, KeyError, TypeError, ValueError,
)
# fmt: on


class _PickledDtype:
    """Stands in for a numpy dtype: remembers its code, takes and drops its layout."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Accept the byte order and alignment: single bytes have neither."""


class _PickledArray:
    """Stands in for a numpy array: remembers shape, type and bytes until they are checked."""

    def __init__(self) -> None:
        self.shape: object = None
        self.dtype: object = None
        self.fortran: object = None
        self.data: object = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array is described in an unknown way")
        _, self.shape, self.dtype, self.fortran, self.data = state


class _Admitted:
    """A name that a pickle may use and call. Calling is all: it cannot be given other contents."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


def _no_call(*_: object) -> object:
    raise pickle.UnpicklingError("it calls what is only to be named")


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> _PickledArray:
    array = _PickledArray()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _encode(text: object, encoding: object) -> bytes:
    # How Python 3 writes bytes in protocol 2.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
        raise pickle.UnpicklingError("it encodes something other than text as latin1")
    return text.encode("latin-1")


class _Unpickler(pickle.Unpickler):
    """Knows six names, under their old and new addresses; refuses the rest unread."""

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in for a name, or refuse."""
        # numpy moved its core from numpy.core to numpy._core in version 2.
        admitted: dict[tuple[str, str], Callable[..., object]] = {
            ("numpy", "dtype"): _PickledDtype,
            ("numpy", "ndarray"): _no_call,
            ("_codecs", "encode"): _encode,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.numeric", "_frombuffer"): _frombuffer,
            ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        }
        function = admitted.get((module, name))
        if function is None:
            wanted = f"{module}.{name}"
            if len(wanted) > 80 or not wanted.isprintable():
                wanted = ascii(wanted[:80])
            raise pickle.UnpicklingError(f"it asks for {wanted}, which data has no use for")
        return _Admitted(function)


def read_pickle(data: bytes, where: str) -> dict[str, object]:
    """Read a pickled dictionary without running anything it says.

    Args:
        data: the pickle, protocol 2 or later, written by Python 2 or 3.
        where: what to call the file in messages.

    Returns:
        The dictionary with its keys as text; strings of Python 2 are bytes. Arrays are opaque
        until `byte_array` has checked them.

    Raises:
        UserError: the file is truncated, no pickle, or asks for what data has no use for.

    Examples:
        >>> import pickle
        >>> read_pickle(pickle.dumps({b"labels": [1, 2]}, protocol=2), "batch")
        {'labels': [1, 2]}
        >>> read_pickle(pickle.dumps(print), "batch")
        Traceback (most recent call last):
        gradwise.errors.UserError: refused to read the pickle batch: it asks for builtins.print, \
which data has no use for
    """
    try:
        _check_opcodes(data)
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"refused to read the pickle {where}: {error}") from error
    except _BROKEN as error:
        raise UserError(f"cannot read the pickle {where}: it is truncated or damaged") from error
    if not isinstance(content, dict):
        raise UserError(f"expected a dictionary in the pickle {where}, got {_kind(content)}")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value
        for key, value in content.items()
    }


def byte_array(value: object, row_size: int, where: str) -> NDArray[np.uint8]:
    """Turn a pickled array into rows of bytes.

    Args:
        value: what `read_pickle` gave for it.
        row_size: bytes in a row.
        where: what to call the array in messages.

    Returns:
        uint8 `[N, row_size]`, read-only.

    Raises:
        UserError: it is no array of bytes, or its shape and its contents disagree.
    """
    if not isinstance(value, _PickledArray):
        raise UserError(f"expected an array as {where}, got {_kind(value)}")
    code = value.dtype.code if isinstance(value.dtype, _PickledDtype) else None
    if code not in ("u1", "uint8"):
        raise UserError(f"expected an array of bytes (u1) as {where}, got type {code!r}")
    shape, data = value.shape, value.data
    if (
        not isinstance(shape, tuple)
        or len(shape) != 2
        or not all(isinstance(size, int) and size > 0 for size in shape)
        or shape[1] != row_size
    ):
        raise UserError(f"expected shape (N, {row_size}) of {where}, got {shape}")
    if not isinstance(data, bytes | bytearray) or len(data) != shape[0] * shape[1]:
        size = len(data) if isinstance(data, bytes | bytearray) else 0
        raise UserError(
            f"expected {shape[0] * shape[1]} bytes in {where}, got {size}: it is truncated"
        )
    flat = np.frombuffer(data, np.uint8)
    return flat.reshape(shape, order="F" if value.fortran else "C")


def int_list(value: object, where: str) -> NDArray[np.int64]:
    """Turn a pickled list of small integers into int64 `[N]`.

    Raises:
        UserError: it is no list, or holds something else; names the first row that does.
    """
    if not isinstance(value, list):
        raise UserError(f"expected a list as {where}, got {_kind(value)}")
    for row, item in enumerate(value):
        if type(item) is not int or not -(2**31) <= item < 2**31:
            shown = item if type(item) is int and abs(item) < 10**18 else _kind(item)
            raise UserError(f"expected whole numbers as {where}, got {shown} in row {row}")
    return np.array(value, dtype=np.int64)


def _check_opcodes(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(
                f"it uses the instruction {opcode.name}, which data has no use for"
            )
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_MEMO:
            raise pickle.UnpicklingError(f"it numbers an object {argument}, above {_MAX_MEMO}")


def _kind(value: object) -> str:
    name = type(value).__name__
    return "an array" if isinstance(value, _PickledArray) else f"a value of type {name}"
