"""Reading a run: tables as they are, one layer, one metric, or the whole in few points."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.store.downsample import Downsampled, downsampled
from gradwise.watch.store.folder import Folder
from gradwise.watch.store.pyramid import stacked
from gradwise.watch.store.queries import read_bins, read_block, read_grid, step_columns
from gradwise.watch.store.tables import long_table, wide_table

__all__ = ["Run", "load"]


def load(path: str | Path) -> "Run":
    """Open a run folder for reading, also while another process writes it.

    Args:
        path: the run folder.

    Raises:
        UserError: where there is no run, or one that a newer gradwise has written.
    """
    return Run(path)


class Run:
    """A run folder, read only.

    It shows the run up to `last_step`, as it was when it was loaded; `refresh` moves on. Nothing
    is read before it is asked for, and nothing but what is asked for. Files that are damaged are
    left out with a warning and named in `damaged`.

    Args:
        path: the run folder.

    Raises:
        UserError: where there is no run, or one that a newer gradwise has written.

    Examples:
        >>> import tempfile
        >>> from gradwise.watch.store import RunWriter
        >>> out = tempfile.mkdtemp()
        >>> with RunWriter(out, ["conv", "head"], layer_metrics=["norm"]) as writer:
        ...     writer.append(np.arange(2), {"norm": np.array([[1.0, 2.0], [3.0, 4.0]])}, {})
        >>> run = Run(out)
        >>> run.last_step, run.layer("head").to_pydict()
        (1, {'step': [0, 1], 'norm': [2.0, 4.0]})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._folder = Folder(self.path)

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}, {len(self.layer_names)} layers, last_step={self.last_step})"
        )

    def refresh(self) -> None:
        """Take in what has been written since; what is known already is not read again.

        Raises:
            UserError: where the folder is no longer a run folder.
        """
        self._folder.refresh()

    @property
    def meta(self) -> dict[str, Any]:
        """What the caller of the writer wanted to be kept with the run."""
        return self._folder.info.meta

    @property
    def units(self) -> dict[str, str]:
        """The unit of each metric that has a known one."""
        return self._folder.info.units

    @property
    def created(self) -> str:
        """When the run began, UTC, ISO 8601."""
        return self._folder.info.created

    @property
    def closed(self) -> bool:
        """Whether its writer closed it in good order; false while it is written or has crashed."""
        return self._folder.info.closed is not None

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers, in the order of the arrays."""
        return self._folder.info.layers

    @property
    def layer_metrics(self) -> tuple[str, ...]:
        """What is recorded for each layer: the columns of `layers`."""
        return self._folder.info.layer_metrics

    @property
    def histogram_edges(self) -> tuple[float, ...]:
        """The edges between the bins of `histograms`; empty where the run has none."""
        return self._folder.info.histogram_edges

    @property
    def step_metrics(self) -> tuple[str, ...]:
        """What is recorded once a step: the columns of `steps`, those that came later included."""
        return self._folder.read(lambda tables: step_columns(self._folder, tables))

    @property
    def last_step(self) -> int | None:
        """The last step that can be read in every table; None before the first.

        Where the newest file of one table is damaged, the other table goes on beyond it.
        """
        return self._folder.last if self._folder.last >= 0 else None

    @property
    def damaged(self) -> tuple[Path, ...]:
        """Files that could not be read and were left out."""
        return self._folder.damaged

    def files(self, table: str) -> list[Path]:
        """The files that make up a table now, for readers such as DuckDB or `polars.scan_parquet`.

        Args:
            table: "layers", "steps" or "histograms".

        Raises:
            UserError: where the run has no such table.
        """
        if table not in ("layers", "steps", "histograms"):
            raise UserError(f"expected table 'layers', 'steps' or 'histograms', got {table!r}")
        return self._folder.read(
            lambda tables: [reader.part.path for reader in tables.records.get(table, [])]
        )

    @property
    def steps(self) -> pa.Table:
        """One row a step: `step` and the step metrics (float64), in step order.

        Read from the files at each access.
        """
        return wide_table(read_grid(self._folder, "steps", self.step_metrics))

    @property
    def layers(self) -> pa.Table:
        """One row a step and layer, ordered by step and then as `layer_names`.

        The columns are `step`, `layer` (dictionary of strings) and the layer metrics (float32).
        Read from the files at each access; for long runs ask for one `layer` or `metric`.
        """
        return long_table(read_grid(self._folder, "layers", self.layer_metrics), self.layer_names)

    @property
    def histograms(self) -> pa.Table:
        """One row a sampled step and layer: `step`, `layer`, and a count (int64) for each bin.

        Ordered like `layers`; without bins where the run has no histograms.
        """
        bins = self._folder.info.histogram_bins
        return long_table(read_grid(self._folder, "histograms", bins), self.layer_names)

    def histogram(self, layer: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The histograms of one layer.

        Args:
            layer: its name.

        Returns:
            The sampled steps [K] and the counts [K, B], one bin more than `histogram_edges`.

        Raises:
            UserError: where the run has no such layer.
        """
        bins = self._folder.info.histogram_bins
        grid = read_grid(self._folder, "histograms", bins, only=self._index(layer))
        counts = [grid.values[name][0] for name in bins]
        shape = (grid.steps, len(bins))
        return grid.keys["step"], np.array(counts, np.int64).T.reshape(shape)

    def layer(self, name: str, metrics: Sequence[str] | None = None) -> pa.Table:
        """One layer over all steps: `step` and its metrics, in step order.

        Args:
            name: the layer.
            metrics: which metrics; None for all.

        Raises:
            UserError: where the run has no such layer or metric.
        """
        wanted = self._metrics(metrics)
        return wide_table(read_grid(self._folder, "layers", wanted, only=self._index(name)))

    def metric(
        self, name: str, *, first: int | None = None, last: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """One metric of all layers.

        Args:
            name: the layer metric.
            first: the first step wanted; None for the run's first.
            last: the last step wanted, itself included; None for the run's last.

        Returns:
            The steps [K] and the values [K, L], layers in the order of `layer_names`.

        Raises:
            UserError: where the run has no such metric.
        """
        self._check_metric(name)
        grid = read_grid(self._folder, "layers", (name,), first, last)
        return grid.keys["step"], grid.values[name].T

    def window(
        self,
        first: int | None = None,
        last: int | None = None,
        *,
        metrics: Sequence[str] | None = None,
    ) -> Block:
        """All there is on some steps: layer metrics and step metrics, as a recorder hands them on.

        Args:
            first: the first step wanted; None for the run's first.
            last: the last step wanted, itself included; None for the run's last.
            metrics: which layer metrics; None for all.

        Returns:
            The records from `first` to `last` which are in every table.

        Raises:
            UserError: where the run has no such metric.
        """
        return read_block(self._folder, self._metrics(metrics), first, last)

    def latest(self, records: int = 1, *, metrics: Sequence[str] | None = None) -> Block:
        """The newest records, also those that the last `refresh` brought; for a live view.

        What it costs follows from how many records are wanted, not from how long the run is.

        Args:
            records: how many; all there are where the run is shorter.
            metrics: which layer metrics; None for all.

        Raises:
            UserError: where the run has no such metric, or `records` is below 1.

        Examples:
            >>> import tempfile
            >>> from gradwise.watch.store import RunWriter
            >>> out = tempfile.mkdtemp()
            >>> with RunWriter(out, ["conv", "head"], layer_metrics=["norm"]) as writer:
            ...     writer.append(np.arange(9), {"norm": np.ones((9, 2))}, {"loss": np.arange(9.0)})
            >>> block = Run(out).latest(3)
            >>> block.steps, block.layers["norm"].shape, block.scalars["loss"]
            (array([6, 7, 8]), (3, 2), array([6., 7., 8.]))
        """
        if records < 1:
            raise UserError(f"expected records >= 1, got records={records}")
        return read_block(self._folder, self._metrics(metrics), newest=records)

    def downsampled(self, metric: str, points: int = 500) -> Downsampled:
        """One metric of all layers in at most so many bins, from the pyramid where it is long.

        Args:
            metric: the layer metric.
            points: the most bins; a run of fewer records has one bin a record.

        Raises:
            UserError: where the run has no such metric, or `points` is below 1.
        """
        self._check_metric(metric)
        _check_points(points)
        first, last, bins = read_bins(self._folder, "layers", (metric,), points)
        return downsampled(self.layer_names, first, last, bins[metric])

    def downsampled_steps(self, points: int = 500) -> Downsampled:
        """All step metrics in at most so many bins, from the pyramid where the run is long.

        Args:
            points: the most bins; a run of fewer records has one bin a record.

        Raises:
            UserError: where `points` is below 1.
        """
        _check_points(points)
        first, last, found = read_bins(self._folder, "steps", None, points)
        bins = stacked(list(found.values()), len(first))
        return downsampled(tuple(found), first, last, bins)

    def _metrics(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Layer metrics that the run has; all of them for None."""
        wanted = self.layer_metrics if names is None else tuple(dict.fromkeys(names))
        for name in wanted:
            self._check_metric(name)
        return wanted

    def _index(self, layer: str) -> int:
        if layer not in self.layer_names:
            raise UserError(
                f"expected one of the run's {len(self.layer_names)} layers, got {layer!r}"
            )
        return self.layer_names.index(layer)

    def _check_metric(self, name: str) -> None:
        if name not in self.layer_metrics:
            raise UserError(
                f"expected a layer metric among {list(self.layer_metrics)}, got {name!r}"
            )


def _check_points(points: int) -> None:
    if points < 1:
        raise UserError(f"expected points >= 1, got points={points}")
