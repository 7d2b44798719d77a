"""The `gradwise` command: its subcommands, and how mistakes and interruptions end."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from gradwise._version import __version__
from gradwise.cli.compare import compare
from gradwise.cli.doctor import doctor
from gradwise.cli.methods import methods
from gradwise.cli.report import report
from gradwise.errors import UserError

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gradwise")
def cli() -> None:
    """See your gradients, keep them in line, and prove what helps.

    \b
    Try it, no data needed:
      gradwise compare --methods sgd,autoscale --seeds 3 --out runs/first
    """  # noqa: D301 - a real backspace: click keeps the lines that follow


for command in (compare, doctor, methods, report):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Returns:
        0; 1 where a job failed; 2 where the user asked for something that cannot be; 130 after
        Ctrl-C. No traceback for any of them.
    """
    try:
        code = cli.main(
            list(arguments) if arguments is not None else None,
            prog_name="gradwise",
            standalone_mode=False,
        )
    except UserError as error:
        return _end(MISTAKE, f"gradwise: {error}")
    except click.UsageError as error:
        error.show(sys.stderr)
        return MISTAKE
    except click.ClickException as error:
        return _end(MISTAKE, f"gradwise: {error.format_message()}")
    except (KeyboardInterrupt, click.Abort):
        return _end(INTERRUPTED, "gradwise: interrupted; the same command goes on from here")
    except BrokenPipeError:
        # Somebody closed the pipe, as `| head` does; keep the interpreter from complaining again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = "the disk is full; what was written before is whole, the same command goes on"
            return _end(FAILED, f"gradwise: {told}")
        where = f" {error.filename}" if error.filename else ""
        return _end(FAILED, f"gradwise: cannot use{where}: {error.strerror or error}")
    return code if isinstance(code, int) else OK


def _end(code: int, message: str) -> int:
    click.echo(message, err=True)
    return code
