"""Where a trial's randomness comes from: one seed, and streams that nothing has to be saved of."""

from __future__ import annotations

import hashlib
import random

import torch

MAX_SEED = 2**32 - 1  # torch's generator on the CPU reads no more bits


def derived_seed(*words: str | int) -> int:
    """A seed that depends on all words, as unrelated to that of other words as can be.

    Args:
        words: such as the purpose, the trial's seed and the epoch.

    Examples:
        >>> derived_seed("order", 0, 1) == derived_seed("order", 0, 1)
        True
        >>> derived_seed("order", 0, 1) == derived_seed("order", 1, 0)
        False
    """
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def seed_everything(seed: int) -> None:
    """Seed what models draw from without asking for a generator: torch, Python's and NumPy's own.

    Args:
        seed: 0 to `MAX_SEED`.
    """
    # Not needed by anything but the code of a user's model.
    import numpy as np

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
