"""A stored run once more: its records in blocks, and what rules have to say about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from gradwise.errors import UserError
from gradwise.watch.alerts import Alert, read_alerts
from gradwise.watch.block import Block
from gradwise.watch.rules import AnyRule, Rule, Rules, default_rules
from gradwise.watch.store import Run

__all__ = ["Replayed", "blocks_of", "replay"]

_VALUES = 2**24  # in memory at once, about: 128 MiB, and two or three times that while reading
_FASTER = 8  # a stretch of steps is at most so many times as long as the one before
_NOT_JUDGED = ("std", "var", "max_abs", "cosine", "sign_agreement")  # no rule looks at these


def blocks_of(
    run: Run, *, metrics: Sequence[str] | None = None, records: int = 256, values: int = _VALUES
) -> Iterator[Block]:
    """The records of a run from the first to the last, in blocks.

    Memory stays bounded for any length of run. Runs are stored layer by layer, so a stretch of
    steps costs a look at all of a large file; stretches are as long as memory allows, and the
    blocks are cut from them.

    Args:
        run: the run, up to its `last_step` as it is now.
        metrics: the layer metrics wanted; None for all.
        records: the most records in a block.
        values: about how many numbers are in memory at once.

    Raises:
        UserError: where the run has no such metric, or a number is below 1.

    Examples:
        >>> import tempfile, numpy as np
        >>> from gradwise.watch.store import RunWriter, load
        >>> out = tempfile.mkdtemp()
        >>> with RunWriter(out, ["conv", "head"], layer_metrics=["norm"]) as writer:
        ...     writer.append(np.arange(5), {"norm": np.ones((5, 2))}, {})
        >>> [block.steps.tolist() for block in blocks_of(load(out), records=2)]
        [[0, 1], [2, 3], [4]]
    """
    for name, number in (("records", records), ("values", values)):
        if number < 1:
            raise UserError(f"expected {name} >= 1, got {name}={number}")
    wanted = run.layer_metrics if metrics is None else tuple(metrics)
    last = run.last_step
    width = len(run.layer_names) * len(wanted) + len(run.step_metrics)
    most = max(values // max(width, 1), 1)  # records in memory
    first, stretch = 0, most
    while last is not None and first <= last:
        end = min(first + stretch - 1, last)
        whole = run.window(first, end, metrics=wanted)
        yield from _cut(whole, records)
        first = end + 1
        # Not every step need be recorded: then a stretch may be as much longer.
        stretch = max(min(stretch * most // max(len(whole), 1), stretch * _FASTER), 1)


def _cut(whole: Block, records: int) -> Iterator[Block]:
    for start in range(0, len(whole), records):
        here = slice(start, start + records)
        yield Block(
            whole.names,
            whole.steps[here],
            {name: values[here] for name, values in whole.layers.items()},
            {name: values[here] for name, values in whole.scalars.items()},
        )


@dataclass(frozen=True)
class Replayed:
    """What rules say about a stored run.

    Attributes:
        alerts: in the order in which they were found. Those of rules that records cannot tell of
            (an optimizer step that never came, rules of the user's own) are those that the run
            noted while it went on.
        judged: names of the rules that had something to judge by.
        not_judged: names of the others, each with the metrics that it lacks.
        records: how many records there were.
        first_step: the first of them; None where there is none.
        last_step: the last of them.
    """

    alerts: tuple[Alert, ...]
    judged: tuple[str, ...]
    not_judged: dict[str, str]
    records: int
    first_step: int | None
    last_step: int | None

    @property
    def worst(self) -> str | None:
        """The highest severity among the alerts; None where there are none."""
        found = {alert.severity for alert in self.alerts}
        return "error" if "error" in found else "warning" if found else None


def replay(
    run: Run,
    rules: Sequence[AnyRule] | None = None,
    progress: Callable[[int], object] = lambda step: None,
) -> Replayed:
    """Run rules over a stored run, as they would have run over it live.

    Nothing is logged, called or raised.

    Args:
        run: the run.
        rules: the rules; None takes `default_rules()`.
        progress: called with the last step judged so far, now and then.

    Raises:
        UserError: where the run cannot be read.

    Examples:
        >>> import tempfile, numpy as np
        >>> from gradwise.watch.store import RunWriter, load
        >>> out, norm = tempfile.mkdtemp(), np.linspace(2, 1, 90)[:, None] * [1.0, 0.5]
        >>> norm[40:, 1] = 0.0
        >>> with RunWriter(out, ["conv", "head"], layer_metrics=["norm"]) as writer:
        ...     writer.append(np.arange(90), {"norm": norm}, {})
        >>> [(alert.rule, alert.layer, alert.step) for alert in replay(load(out)).alerts]
        [('dead', 'head', 40)]
    """
    known = {*run.layer_metrics, *run.step_metrics}
    silent = [replace(r, action=_nothing) for r in (default_rules() if rules is None else rules)]
    judging = [rule for rule in silent if isinstance(rule, Rule)]
    lacking = {rule.name: lacks for rule in judging if (lacks := _lacking(rule, known))}
    engine = Rules(silent)
    metrics = [name for name in run.layer_metrics if name not in _NOT_JUDGED]
    found: dict[tuple[str, int, str | None], Alert] = {}
    records, first, last = 0, None, None
    for block in blocks_of(run, metrics=metrics):
        found |= {alert.key: alert for alert in engine.look(block)}
        records += len(block)
        first = int(block.steps[0]) if first is None else first
        last = int(block.steps[-1])
        progress(last)
    engine.close()
    found |= {alert.key: alert for alert in engine.alerts}  # with their ends
    replayed = {rule.name for rule in judging}
    noted = [alert for alert in read_alerts(run.path) if alert.rule not in replayed]
    return Replayed(
        tuple(sorted([*found.values(), *noted], key=lambda alert: alert.step)),
        tuple(rule.name for rule in judging if rule.name not in lacking),
        lacking,
        records,
        first,
        last,
    )


def _nothing(alert: Alert) -> None:
    """The action of a rule that only looks."""


def _lacking(rule: Rule, known: Collection[str]) -> str:
    """The metrics that a rule needs and a run does not have, in words."""
    missing = [need for need in rule.needs if not {*need.split("|")} & {*known}]
    return ", ".join(need.replace("|", " or ") for need in missing)
