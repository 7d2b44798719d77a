"""`gradwise watch`: see a run while it goes on, or run a script that knows nothing of gradwise."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gradwise.errors import UserError

VIEW, SCRIPT = "Options of the view", "Options of watching a script"
_COMMAND = "gradwise.watch.command"
_WIDTH = 100  # of text that goes into a file


class _Option(click.Option):
    """An option that belongs to one of the two uses of the command.

    Args:
        use: `VIEW` or `SCRIPT`.
    """

    def __init__(self, *declared: Any, use: str, **settings: Any) -> None:
        super().__init__(*declared, **settings)
        self.use = use


class _Watch(click.Command):
    """A command of two uses: what comes after `--` is a command line and nobody else's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = args[at + 1 :]
            args = args[:at]
        rest = super().parse_args(ctx, args)
        self._check(ctx, ctx.meta.get(_COMMAND))
        return rest

    def _check(self, ctx: click.Context, command: Sequence[str] | None) -> None:
        """Say what to write instead where it is not clear which use is meant."""
        if ctx.resilient_parsing:
            return
        runs: tuple[Path, ...] = ctx.params["runs"]
        if command is not None and runs:
            raise click.UsageError(
                f"expected options before --, got {runs[0]}; a folder to record into is given "
                "as --out DIR",
                ctx,
            )
        if command is not None and not command:
            raise click.UsageError("expected a command after --, such as python train.py", ctx)
        if command is None and not runs:
            raise click.UsageError("expected a run folder to show, or -- and a command to run", ctx)
        if command is None and len(runs) > 1:
            raise click.UsageError(
                f"expected one run folder, got {len(runs)} arguments; a command to run comes "
                "after --, as in: gradwise watch -- python train.py",
                ctx,
            )
        other = VIEW if command is not None else SCRIPT
        for option in self.params:
            if not isinstance(option, _Option) or option.use != other or option.name is None:
                continue
            if ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
                what = "watching a script" if command is None else "the view"
                raise click.UsageError(f"{option.opts[0]} is an option of {what}", ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        path = ctx.command_path
        formatter.write_usage(path, "[OPTIONS] RUN")
        formatter.write_usage(path, "[OPTIONS] -- COMMAND [ARGUMENTS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for use in (VIEW, SCRIPT, None):
            records = [
                record
                for option in self.get_params(ctx)
                if isinstance(option, click.Option)
                and getattr(option, "use", None) == use
                and (record := option.get_help_record(ctx)) is not None
            ]
            if records:
                with formatter.section(use or "Other options"):
                    formatter.write_dl(records)


_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def view_option(*declared: str, **settings: Any) -> _Decorator:
    """A `click.option` of the live view."""
    return click.option(*declared, cls=_Option, use=VIEW, **settings)


def script_option(*declared: str, **settings: Any) -> _Decorator:
    """A `click.option` of watching a script; it is handed to `run_watched` by its name."""
    return click.option(*declared, cls=_Option, use=SCRIPT, **settings)


@click.command(cls=_Watch, short_help="Show a run live, or run a script and watch its gradients.")
@click.argument("runs", nargs=-1, metavar="RUN", type=click.Path(path_type=Path))
@view_option("--once", is_flag=True, help="Print what there is now and exit.")
@view_option("--json", "as_json", is_flag=True, help="The same as JSON.")
@view_option("--sort", metavar="COLUMN", help="Sort by layer, alerts, or a metric such as norm.")
@view_option("--filter", "words", metavar="WORDS", default="", help="Only layers named like this.")
@view_option("--metric", metavar="NAME", help="Metric of the curves.  [default: norm]")
@view_option(
    "--window",
    type=click.Choice(["100", "1000", "10000", "all"]),
    default="1000",
    show_default=True,
    help="How many records the curves cover.",
)
@view_option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks at the folder.",
)
@script_option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to record into.  [default: a new one in runs/]",
)
@script_option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="STEPS",
    help="Record every so many steps.",
)
@script_option(
    "--per",
    type=click.Choice(["parameter", "module"]),
    default="parameter",
    show_default=True,
    help="What a layer is.",
)
@script_option(
    "--histograms",
    type=click.IntRange(min=0),
    default=0,
    metavar="STEPS",
    help="Record histograms every so many steps.",
)
@script_option(
    "--directions",
    type=click.IntRange(min=0),
    default=0,
    metavar="STEPS",
    help="Compare the gradient's direction with the last every so many steps.",
)
def watch(runs: tuple[Path, ...], out: Path | None, **given: Any) -> int:
    """See what every layer's gradient does, while it does it.

    With RUN, the folder of a run: shows it live on a screen in the manner of htop, also one that
    another machine writes into a shared folder, and one that has ended. Nothing is changed in it;
    where it does not exist yet, it is waited for. Where there is no terminal, prints what there
    is and exits.

    With -- and a command: runs it, and records the gradients of every torch optimizer in it. The
    script needs no change.

    \b
    Examples:
      gradwise watch runs/a
      gradwise watch runs/a --sort update_ratio --filter attn
      gradwise watch runs/a --json | jq .alerts
      gradwise watch --out runs/a -- python train.py --epochs 3
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    command = click.get_current_context().meta.get(_COMMAND)
    view = {
        option.name for option in watch.params if isinstance(option, _Option) and option.use == VIEW
    }
    if command is not None:
        options = {name: value for name, value in given.items() if name not in view}
        from gradwise.cli.watch_script import run_watched

        return run_watched(list(command), out, **options)
    return _view(runs[0], **{name: value for name, value in given.items() if name in view})


def _view(
    folder: Path,
    *,
    once: bool,
    as_json: bool,
    sort: str | None,
    words: str,
    metric: str | None,
    window: str,
    interval: float,
) -> int:
    from gradwise.live.order import Order
    from gradwise.live.state import State
    from gradwise.live.tail import Wish

    wish = Wish(metric=metric, window=None if window == "all" else int(window))
    state = State(wish=wish, order=Order(sort), words=words)
    if not (once or as_json) and _is_screen():
        try:
            from gradwise.live.terminal import show
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("textual"):
                raise
            raise UserError(
                "the live view needs 'textual': pip install 'gradwise[lab]'; without it, "
                "--once prints what there is"
            ) from None
        code = show(folder, state, interval)
        sys.stdout.flush()
        sys.stderr.flush()
        # Somebody waits for the prompt, and torch takes a second or two to take itself apart.
        os._exit(code)
    return _print(folder, state, as_json=as_json)


def _is_screen() -> bool:
    """Whether there is a terminal to draw on, and keys to be read."""
    if os.name != "nt" and os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return False
    # Textual reads from the first and draws on the last.
    streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    return all(stream is not None and stream.isatty() for stream in streams)


def _print(folder: Path, state: Any, *, as_json: bool) -> int:
    from gradwise.cli.output import print_json
    from gradwise.live.follow import Seer
    from gradwise.live.plain import as_text, as_values, wish_for
    from gradwise.live.spark import signs_for
    from gradwise.live.state import sortable

    seer = Seer(folder)
    look = seer.look(state.wish)
    if look.snapshot is None:
        raise UserError(f"nothing to show in {folder}: {look.waiting}")
    known = [name for name in sortable(look.snapshot) if name is not None]
    if state.order.column not in (None, *known):
        raise UserError(f"expected --sort {', '.join(known)}, got {state.order.column!r}")
    now = time.monotonic()
    if as_json:
        print_json(as_values(look, state, now))
        return 0
    terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    width = shutil.get_terminal_size().columns if terminal else _WIDTH
    signs = signs_for(getattr(sys.stdout, "encoding", None), os.environ.get("TERM"))
    look = seer.look(wish_for(look.snapshot, state, width))
    click.echo(as_text(look, state, width, now, signs))
    return 0
