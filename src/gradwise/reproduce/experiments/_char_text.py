"""The text that the language model learns: a file of the user's, or one made up."""

from __future__ import annotations

import bisect
import hashlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradwise.errors import UserError
from gradwise.lab.seeding import derived_seed

__all__ = ["Text", "load_text"]

_MAX_BYTES = 64 * 2**20
_MAX_CHARACTERS = 4096  # a text with more kinds of them is no alphabet, and the embedding explodes
_SYNTHETIC_CHARACTERS = 20_000
_ALPHABET = "abcdefghijkl "


@dataclass(frozen=True)
class Text:
    """A text as numbers, cut by position: 90 % to learn, 5 % to choose by, 5 % to report.

    Attributes:
        train: int64 `[N]`, each below `vocabulary - 1`.
        validation: int64, each below `vocabulary`.
        test: likewise.
        vocabulary: the characters of `train`, and one more that stands for all others.
        sha256: of the whole text in UTF-8.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: int
    sha256: str

    @property
    def uniform_bits(self) -> float:
        """Loss in bits a character of guessing blindly."""
        return math.log2(self.vocabulary)

    def facts(self) -> dict[str, Any]:
        """What it is, in plain values."""
        parts = (self.train, self.validation, self.test)
        return {
            "characters": [len(part) for part in parts],
            "vocabulary": self.vocabulary,
            "sha256": self.sha256,
        }


def load_text(data: str, data_dir: str | None, context: int) -> Text:
    """The text of that name.

    Args:
        data: "tinyshakespeare", read from `tinyshakespeare/input.txt`, or "synthetic", a Markov
            chain of second order that is the same everywhere.
        data_dir: the folder that holds `tinyshakespeare`.
        context: >= 1, characters that the model sees; every part must be longer.

    Raises:
        UserError: where there is no such text, or the file is absent, too large, no UTF-8, or too
            short.
    """
    if data == "synthetic":
        text, where = _synthetic(), "the synthetic text"
    elif data == "tinyshakespeare":
        if data_dir is None:
            raise UserError("expected data_dir to be a folder with tinyshakespeare, got none")
        path = Path(data_dir) / "tinyshakespeare" / "input.txt"
        text, where = _read(path), str(path)
    else:
        raise UserError(f"expected data to be tinyshakespeare or synthetic, got data={data!r}")
    return _encode(text, context, where)


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"expected the text to learn in {path}, which is no file")
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"expected at most {_MAX_BYTES} bytes in {path}, got more")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"expected UTF-8 in {path}, got other bytes at {error.start}") from error


def _encode(text: str, context: int, where: str) -> Text:
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    ends = (len(codes) * 9 // 10, len(codes) * 19 // 20)
    train, validation, test = np.split(codes, ends)
    if min(len(part) for part in (train, validation, test)) <= context:
        raise UserError(
            f"expected more than {20 * (context + 1)} characters in {where} for "
            f"context={context}, got {len(codes)}"
        )
    known = np.unique(train)
    if len(known) > _MAX_CHARACTERS:
        raise UserError(
            f"expected at most {_MAX_CHARACTERS} kinds of characters in {where}, got {len(known)}"
        )

    def numbers(part: NDArray[np.uint32]) -> Tensor:
        place = np.minimum(np.searchsorted(known, part), len(known) - 1)
        return torch.from_numpy(np.where(known[place] == part, place, len(known)).astype(np.int64))

    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Text(numbers(train), numbers(validation), numbers(test), len(known) + 1, sha256)


@cache
def _synthetic() -> str:
    """Each character drawn with odds that follow from the two before it."""
    random = np.random.Generator(np.random.PCG64(derived_seed("markov text")))
    size = len(_ALPHABET)
    odds = np.exp(4.0 * random.standard_normal((size, size, size)))
    cumulative = (np.cumsum(odds, axis=2) / odds.sum(axis=2, keepdims=True)).tolist()
    a, b, out = 0, 1, []
    for drawn in random.random(_SYNTHETIC_CHARACTERS).tolist():
        # The last sum may fall short of 1 by a rounding.
        a, b = b, min(bisect.bisect(cumulative[a][b], drawn), size - 1)
        out.append(_ALPHABET[b])
    return "".join(out)
