"""The `gradwise` command: its subcommands, and how mistakes and interruptions end."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

from gradwise._version import __version__
from gradwise.cli.analyse import analyse
from gradwise.cli.compare import compare
from gradwise.cli.doctor import doctor
from gradwise.cli.methods import methods
from gradwise.cli.report import report
from gradwise.cli.reproduce import reproduce
from gradwise.cli.watch import watch
from gradwise.errors import UserError

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
_INTERRUPTED = "interrupted; the same command goes on from here"


class _Ended(BaseException):
    """Somebody wants this process to end: as Ctrl-C does, but with a signal of its own."""

    def __init__(self, number: int) -> None:
        self.number = number


class _ReaderGone(Exception):
    """Somebody closed the pipe that the answer goes into, as `| head` does."""


class _Commands(click.Group):
    """The commands; a reader who has seen enough is no failure, though click ends with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="gradwise")
def cli() -> None:
    """See your gradients, keep them in line, and prove what helps.

    \b
    Try it, no data needed:
      gradwise compare --methods sgd,autoscale --seeds 3 --out runs/first
    """  # noqa: D301 - a real backspace: click keeps the lines that follow


for command in (analyse, compare, doctor, methods, report, reproduce, watch):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        0; 1 where a job failed; 2 where the user asked for something that cannot be; 130 after
        Ctrl-C, and likewise 128 and the number of another signal to end. No traceback for any of
        them.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without ± is no reason to fail
            stream.reconfigure(errors="replace")
    try:
        with _orderly_end():
            code = cli.main(given, prog_name="gradwise", standalone_mode=False, obj=given)
    except UserError as error:
        return _end(MISTAKE, str(error))
    except click.UsageError as error:
        error.show(sys.stderr)
        return MISTAKE
    except click.ClickException as error:
        return _end(MISTAKE, error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return _end(INTERRUPTED, _INTERRUPTED)
    except _Ended as error:
        return _end(128 + error.number, _INTERRUPTED)
    except _ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return OK
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = "the disk is full; what was written before is whole, the same command goes on"
            return _end(FAILED, f"{told} once there is space")
        where = f" {error.filename}" if error.filename else ""
        return _end(FAILED, f"cannot use{where}: {error.strerror or error}")
    return code if isinstance(code, int) else OK


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM, and the terminal's closing, unwind as Ctrl-C does: trials end, files are whole.

    Ignored signals stay ignored, as under `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(code: int, message: str) -> int:
    with contextlib.suppress(OSError):  # the terminal may be what has gone
        click.echo(f"gradwise: {message}", err=True)
    return code
