"""Learning-rate schedules of the lab, as factors of the peak rate by step."""

from __future__ import annotations

import math
from collections.abc import Callable


def lr_factor(schedule: str, total: int, warmup: int = 0) -> Callable[[int], float]:
    """A function from the step (from 0) to the factor of the peak rate.

    Args:
        schedule: "cosine" falls to 0 at `total`; "step" is 1, then 0.1 from 50 % and 0.01 from
            75 % on (He et al. 2016, section 4.2); "constant" is 1.
        total: steps in all.
        warmup: steps of linear increase before the schedule counts from 0.

    Examples:
        >>> factor = lr_factor("step", 100)
        >>> factor(0), factor(50), factor(75)
        (1.0, 0.1, 0.01)
        >>> lr_factor("cosine", 110, warmup=10)(4), round(lr_factor("cosine", 100)(50), 6)
        (0.5, 0.5)
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(total - warmup, 1)
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
        if schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 1.0

    return factor
