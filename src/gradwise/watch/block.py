"""What travels from the recorder to everybody who wants it: records, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive records of a run.

    Attributes:
        names: the L layers, which are parameters, or modules.
        steps: [K] int64, ascending.
        layers: layer metric -> [K, L] float64; NaN where it was not recorded at that step.
        scalars: step metric -> [K] float64; NaN where it was not recorded.
    """

    names: tuple[str, ...]
    steps: npt.NDArray[np.int64]
    layers: Mapping[str, npt.NDArray[Any]]
    scalars: Mapping[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.steps)


class Consumer:
    """Somebody who takes records, from one thread at a time and in the order of the steps.

    What arrives belongs to everybody and is not to be changed.
    """

    def take(self, block: Block) -> None:
        """Take records in."""

    def amend(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take in what became known of a step after its record was handed on."""

    def take_histograms(self, steps: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        """Take in the histograms [N, L, B] of N sampled steps."""

    def stop(self) -> None:
        """There will be no more; said to all before the first is closed, and not to wait for."""

    def close(self) -> None:
        """Finish what is left."""
