"""The consumer that keeps records: from blocks to the run store."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gradwise.watch.block import Block, Consumer
from gradwise.watch.store import RunWriter


class Archive(Consumer):
    """Writes blocks to a run folder; the disk's troubles are counted, never raised.

    Args:
        writer: of the run's folder.
    """

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer

    def take(self, block: Block) -> None:
        """Append the block's records."""
        self.writer.append(block.steps, block.layers, block.scalars)

    def take_histograms(self, steps: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        """Append histograms [N, L, B] of sampled steps [N]."""
        self.writer.append_histograms(steps, counts)

    def amend(self, step: int, scalars: Mapping[str, float]) -> None:
        """Complete a step's record by what became known late."""
        self.writer.amend(
            np.array([step], np.int64), {name: np.array([v]) for name, v in scalars.items()}
        )

    def close(self) -> None:
        """Write what is left and let go of the folder.

        Raises:
            WriteError: where that could not be written and is lost.
        """
        self.writer.close()
