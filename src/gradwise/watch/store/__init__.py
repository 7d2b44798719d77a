"""The run store: every statistic of every step in a folder of Parquet files.

`RunWriter` appends, `load` reads, also while the run goes on. The format is described column by
column in `docs/run-folder.md`; pandas, polars and DuckDB read the files directly.
"""

from gradwise.watch.store.downsample import Downsampled
from gradwise.watch.store.files import WriteError
from gradwise.watch.store.run import Run, load
from gradwise.watch.store.writer import RunWriter

__all__ = ["Downsampled", "Run", "RunWriter", "WriteError", "load"]
