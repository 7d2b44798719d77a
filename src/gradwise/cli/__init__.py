"""The command line. Importing this module needs nothing but the core; running it needs the lab."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `gradwise` command."""
    try:
        from gradwise.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("gradwise"):
            raise
        sys.stderr.write(
            f"gradwise: the command line needs {error.name!r}: pip install 'gradwise[lab]'\n"
        )
        sys.exit(2)
    except KeyboardInterrupt:  # torch takes its time to load
        sys.exit(130)
    code = run()
    if code > 128:  # ended by a signal: nobody wants to wait while torch takes itself apart
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
