"""`gradwise doctor --run`: what happened to the gradients of a run, and what it means."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.progress import Progress
from rich.text import Text

from gradwise.cli.output import Screen, console, print_json
from gradwise.errors import UserError
from gradwise.watch.alerts import Alert
from gradwise.watch.replay import Replayed, replay
from gradwise.watch.store import Run, load

__all__ = ["doctor_run"]

_SHOWN = 8  # alerts of a rule; --json has all
_STYLES = {"error": "bold red", "warning": "bold yellow"}


def doctor_run(path: Path, as_json: bool) -> int:
    """Run the rules over a stored run and explain what they find.

    Args:
        path: the run folder.
        as_json: print JSON.

    Returns:
        1 where something was found that is an error, 0 otherwise.

    Raises:
        UserError: where there is no run that can be read.
    """
    _refuse_comparison(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what is damaged is told of below
        run = load(path)
        with _progress(run.last_step or 0) as progress:
            found = replay(run, progress=progress)
        if as_json:
            print_json(_facts(run, found))
        else:
            _print(run, found)
    return 1 if found.worst == "error" else 0


def _refuse_comparison(path: Path) -> None:
    """Say which folder to name instead, where it is that of a comparison."""
    if (path / "run.json").exists() or not (path / "config.json").is_file():
        return
    runs = sorted(run.parent for run in path.glob("trials/*/seed-*/watch/run.json"))
    instead = f"name one of its {len(runs)} runs, such as {runs[0]}" if runs else "it has no runs"
    raise UserError(f"{path} is the folder of a comparison: {instead}")


@contextlib.contextmanager
def _progress(last: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while it takes long, where that is a terminal."""
    screen = Screen(err=True)
    shown = screen.is_terminal and not screen.is_dumb_terminal
    with Progress(console=screen, transient=True, disable=not shown) as bars:
        task = bars.add_task("looking at the run", total=last + 1)
        yield lambda step: bars.update(task, completed=step + 1)


def _facts(run: Run, found: Replayed) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "closed": run.closed,
        "layers": len(run.layer_names),
        "records": found.records,
        "first_step": found.first_step,
        "last_step": found.last_step,
        "worst": found.worst,
        "alerts": [asdict(alert) for alert in found.alerts],
        "judged": list(found.judged),
        "not_judged": found.not_judged,
        "damaged": [str(file) for file in run.damaged],
    }


def _print(run: Run, found: Replayed) -> None:

    screen = console()
    screen.print(Text(_about(run, found)), soft_wrap=False)
    for file in run.damaged:
        screen.print(Text(f"{file} is damaged and was left out.", style="red"))
    kinds: dict[tuple[str, str], list[Alert]] = {}
    for alert in sorted(found.alerts, key=lambda alert: alert.severity != "error"):
        kinds.setdefault((alert.rule, alert.advice), []).append(alert)
    for alerts in kinds.values():
        screen.print()
        for line in _finding(alerts):
            screen.print(line)
    if not found.records:
        return
    screen.print()
    for sentence in _end(found):
        screen.print(Text(sentence))


def _about(run: Run, found: Replayed) -> str:
    """What kind of run it is, in a sentence."""
    if found.first_step is None or found.last_step is None:
        what = "nothing of it can be read" if run.damaged else "nothing is recorded yet"
        return f"{run.path}: a run of {len(run.layer_names):,} layers, {what}."
    made = [text for key in ("model", "optimizer") if isinstance(text := run.meta.get(key), str)]
    of = f" of {_plain(' with '.join(made))}" if made else ""
    end = "closed in good order" if run.closed else "still being written, or broken off"
    steps = f"{found.records:,} records, steps {found.first_step:,} to {found.last_step:,}"
    return f"{run.path}: a run{of}, {len(run.layer_names):,} layers, {steps}, {end}."


def _finding(alerts: list[Alert]) -> Iterator[RenderableType]:
    """Alerts of a rule that mean the same, and what that is."""
    for alert in alerts[:_SHOWN]:
        line = Text()
        line.append(alert.severity, style=_STYLES.get(alert.severity, ""))
        line.append(f"  {_plain(alert.rule)}", style="bold")
        line.append(f", {_when(alert)}: {_plain(alert.message)}")
        yield line
    if len(alerts) > _SHOWN:
        yield Text(f"... and {len(alerts) - _SHOWN} more of this kind; --json has all of them.")
    yield Padding(Text(_plain(alerts[0].advice)), (0, 0, 0, 2))


def _when(alert: Alert) -> str:
    if alert.ended is None:
        return f"from step {alert.step:,} to the end"
    if alert.ended == alert.step:
        return f"at step {alert.step:,}"
    return f"from step {alert.step:,} to {alert.ended:,}"


def _end(found: Replayed) -> Iterator[str]:
    """What was not found, what could not be told, and the sum."""
    quiet = [name for name in found.judged if name not in {alert.rule for alert in found.alerts}]
    if quiet:
        yield f"Nothing to report from: {', '.join(quiet)}."
    lacks: dict[str, list[str]] = {}
    for name, metrics in found.not_judged.items():
        lacks.setdefault(metrics, []).append(name)
    for metrics, names in lacks.items():
        yield f"Not judged, since {metrics} was not recorded: {', '.join(names)}."
    counts = dict.fromkeys(("error", "warning"), 0)
    for alert in found.alerts:
        counts[alert.severity] += 1
    parts = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items() if n]
    yield f"In all: {' and '.join(parts) or 'nothing out of the ordinary'}."


def _plain(text: str) -> str:
    """What somebody else wrote, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)
