"""Reading a run: tables as they are, one layer, one metric, or the whole in few points."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradwise.errors import UserError
from gradwise.watch.store.downsample import Downsampled, collect, downsampled
from gradwise.watch.store.folder import Folder, Tables
from gradwise.watch.store.grid import Grid
from gradwise.watch.store.pieces import pieces_between, read_pieces
from gradwise.watch.store.pyramid import Bins, stacked
from gradwise.watch.store.reading import PartReader
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

        def columns(tables: Tables) -> tuple[str, ...]:
            found = [name for reader in tables.records["steps"] for name in reader.columns]
            return tuple(dict.fromkeys([*self._folder.info.step_metrics, *found]))

        return self._folder.read(columns)

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
        return wide_table(self._read("steps", self.step_metrics))

    @property
    def layers(self) -> pa.Table:
        """One row a step and layer, ordered by step and then as `layer_names`.

        The columns are `step`, `layer` (dictionary of strings) and the layer metrics (float32).
        Read from the files at each access; for long runs ask for one `layer` or `metric`.
        """
        return long_table(self._read("layers", self.layer_metrics), self.layer_names)

    @property
    def histograms(self) -> pa.Table:
        """One row a sampled step and layer: `step`, `layer`, and a count (int64) for each bin.

        Ordered like `layers`; without bins where the run has no histograms.
        """
        bins = self._folder.info.histogram_bins
        return long_table(self._read("histograms", bins), self.layer_names)

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
        grid = self._read("histograms", bins, only=self._index(layer))
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
        wanted = self.layer_metrics if metrics is None else tuple(dict.fromkeys(metrics))
        for metric in wanted:
            self._check_metric(metric)
        index = self._index(name)
        return wide_table(self._read("layers", wanted, only=index))

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
        grid = self._read("layers", (name,), first, last)
        return grid.keys["step"], grid.values[name].T

    def downsampled(self, metric: str, points: int = 500) -> Downsampled:
        """One metric of all layers in at most so many bins, from the pyramid where it is long.

        Args:
            metric: the layer metric.
            points: the most bins; a run of fewer records has one bin a record.

        Raises:
            UserError: where the run has no such metric, or `points` is below 1.
        """
        self._check_metric(metric)
        first, last, bins = self._collect("layers", (metric,), points)
        return downsampled(self.layer_names, first, last, bins[metric])

    def downsampled_steps(self, points: int = 500) -> Downsampled:
        """All step metrics in at most so many bins, from the pyramid where the run is long.

        Args:
            points: the most bins; a run of fewer records has one bin a record.

        Raises:
            UserError: where `points` is below 1.
        """
        names = self.step_metrics
        first, last, bins = self._collect("steps", names, points)

        return downsampled(names, first, last, stacked([bins[name] for name in names], len(first)))

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

    def _read(
        self,
        table: str,
        columns: Sequence[str],
        first: int | None = None,
        last: int | None = None,
        only: int | None = None,
    ) -> Grid:
        """Columns of a table over some steps, of all layers or of only one."""
        spec = self._folder.info.tables.get(table)
        end = self._folder.end if last is None else min(last, self._folder.end)
        if spec is None:  # a run without layers, or without histograms
            return Grid({"step": np.empty(0, np.int64)}, {n: np.empty((0, 0)) for n in columns})
        start, stop = (0, spec.width) if only is None else (only, only + 1)

        def read(tables: Tables) -> Grid:
            pieces = pieces_between(tables.records[table], first or 0, end)
            return read_pieces(pieces, spec, columns, start, stop)

        return self._folder.read(read)

    def _collect(
        self, table: str, metrics: Sequence[str], points: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, Bins]]:
        if points < 1:
            raise UserError(f"expected points >= 1, got points={points}")
        spec = self._folder.info.tables[table]

        def read(
            tables: Tables,
        ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, Bins]]:
            records: list[PartReader] = tables.records[table]
            return collect(records, tables.levels[table], spec, metrics, points, self._folder.end)

        return self._folder.read(read)
