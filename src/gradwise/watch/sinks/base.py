"""What every sink is: a place that takes named numbers, and which of them it wants."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.sinks.names import LAYER_METRICS

VALUES_A_STEP = 10  # of layers, on the average, where the user does not say how often


class Sink:
    """A place that takes a run's numbers: one of ours, or your own.

    To write one, subclass it and define `write`; `open` and `close` are there if you need them.
    All three are called in one thread of the sink's own, never in the training's, so they may take
    their time, and may raise: the training goes on, see `SinkFeed`.

    What is sent is a sample: a row every so many steps. A number that was not measured at the very
    step of a row (a noise scale, a loss that is logged now and then) is the latest one since the
    row before; one that was not measured since then is not in the row. `grad/nonfinite` is the sum
    since the row before, and the last step of a run always has its row.

    Args:
        every: steps from row to row.
        layer_metrics: what of each layer: of mean, std, var, norm, max_abs, zeros, nonfinite,
            weight_norm, update_ratio, cosine, sign_agreement; nothing for none.
        layers: which layers, as a shell pattern or several ("*.weight"); None for all.
        layers_every: steps from one row with layers to the next. None chooses: `every`, or the
            smallest multiple of it at which the layers' numbers are at most 10 a step on the
            average, so 500 layers with 2 metrics are sent every 100 steps.
        scalars: which of the other numbers, as patterns of the names that they have in the tool
            ("grad/*", "lr"); None for all.

    Raises:
        UserError: for a number below 1 or a metric that layers do not have.

    Examples:
        >>> class Printer(Sink):
        ...     def write(self, step, values, time):
        ...         print(step, {name: round(value, 2) for name, value in values.items()})
        >>> Printer(every=100, layer_metrics=[]).write(0, {"grad/norm": 1.0}, 0.0)
        0 {'grad/norm': 1.0}
    """

    every: int = 10
    layer_metrics: tuple[str, ...] = ("norm", "std")
    layers: tuple[str, ...] | None = None
    layers_every: int | None = None
    scalars: tuple[str, ...] | None = None

    def __init__(
        self,
        *,
        every: int = 10,
        layer_metrics: Sequence[str] = ("norm", "std"),
        layers: str | Sequence[str] | None = None,
        layers_every: int | None = None,
        scalars: str | Sequence[str] | None = None,
    ) -> None:
        self.every = every
        self.layer_metrics = patterns(layer_metrics) or ()
        self.layers = patterns(layers)
        self.layers_every = layers_every
        self.scalars = patterns(scalars)
        check(self)

    def open(self, names: tuple[str, ...], meta: Mapping[str, Any]) -> None:
        """Called once, before the first row.

        Args:
            names: the run's layers, those that are not sent among them.
            meta: what the run says of itself: optimizer, transform, ...
        """

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Take a row.

        Args:
            step: the optimizer's step, ascending, except that a row that could not be written comes
                again.
            values: by name, see `gradwise.watch.sinks.names`; not NaN, possibly infinite.
            time: when the step was, in seconds since 1970.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write")

    def close(self) -> None:
        """Called after the last row, where `open` was called and did not fail."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(every={self.every})"


def patterns(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """One pattern or several as a tuple, so that a lone string is not taken for its letters."""
    if given is None:
        return None
    return (given,) if isinstance(given, str) else tuple(given)


def matches(name: str, wanted: str | Sequence[str] | None) -> bool:
    """Whether a name fits one of the shell patterns; None lets every name pass.

    Examples:
        >>> matches("head.weight", ("*.bias", "head.*")), matches("head.weight", ())
        (True, False)
    """
    chosen = patterns(wanted)
    return chosen is None or any(fnmatchcase(name, pattern) for pattern in chosen)


def check(sink: Sink) -> None:
    """Refuse what a sink cannot want; subclasses may have set their attributes themselves.

    Raises:
        UserError: for a number below 1 or a metric that layers do not have.
    """
    for name in ("every", "layers_every"):
        value = getattr(sink, name)
        if value is not None and value < 1:
            raise UserError(f"expected {name} >= 1, got {name}={value}")
    for metric in sink.layer_metrics:
        if metric not in LAYER_METRICS:
            near = difflib.get_close_matches(metric, LAYER_METRICS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"expected layer_metrics among {', '.join(LAYER_METRICS)}, got {metric!r}{hint}"
            )


def layer_interval(sink: Sink, values: int) -> int:
    """Steps from one row with layers to the next.

    Args:
        sink: whose.
        values: how many numbers of layers such a row has.

    Examples:
        >>> layer_interval(Sink(every=10), 120), layer_interval(Sink(every=10), 1000)
        (20, 100)
    """
    if sink.layers_every is not None:
        return sink.layers_every
    return sink.every * max(1, -(-values // (VALUES_A_STEP * sink.every)))


def load_tool(module: str, package: str) -> Any:
    """The tool's module, imported now.

    Args:
        module: what to import.
        package: what to install where it is not there.

    Raises:
        UserError: where it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this sink needs {package}, which cannot be imported ({error}): pip install {package}"
        ) from error
