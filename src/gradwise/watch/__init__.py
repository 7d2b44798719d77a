"""Watch: record what every layer's gradient does, and read it back."""

from gradwise.watch.recorder import Recorder
from gradwise.watch.store import Run, RunWriter, load

__all__ = ["Recorder", "Run", "RunWriter", "load"]
