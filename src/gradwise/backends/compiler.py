"""Compile the C kernels once a machine, where there is a compiler, and load them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC")
# Compiled for OpenMP, but not linked with one: the loader finds the one that torch has brought.
THREADS = ("-fopenmp",)
# Roots and selections become vector instructions; every result stays the one IEEE 754 asks for.
MORE_FLAGS = {"update.c": ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")}
TIMEOUT = 60.0


@cache
def kernels(source: str = "kernels.c") -> ctypes.CDLL | str:
    """The loaded kernels, or a sentence that says why there are none.

    Args:
        source: which file of kernels; each is compiled when it is asked for first.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return "there is no C compiler (cc, or what CC names)"
    try:
        try:
            return ctypes.CDLL(str(_compiled(compiler, FOLDER / source, THREADS)))
        except (OSError, subprocess.CalledProcessError):  # no OpenMP in the compiler or in torch
            return ctypes.CDLL(str(_compiled(compiler, FOLDER / source, ())))
    except (OSError, subprocess.SubprocessError) as error:
        return f"the C kernels could not be compiled: {error}"


def _compiled(compiler: str, source: Path, more: tuple[str, ...]) -> Path:
    """The shared library, from the cache or made now; whole or not there."""
    flags = (*FLAGS, *MORE_FLAGS.get(source.name, ()), *more)
    key = hashlib.sha256()
    for part in (source.read_bytes(), compiler.encode(), " ".join(flags).encode(), _processor()):
        key.update(part)
    folder = _cache_folder()
    library = folder / f"{source.stem}-{key.hexdigest()[:24]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            compiled, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
            for command in (
                [*flags, "-c", str(source), "-o", str(compiled)],
                ["-shared", str(compiled), "-o", str(linked), "-lm"],
            ):
                subprocess.run(  # noqa: S603 - a fixed command without a shell
                    [compiler, *command],
                    check=True,
                    capture_output=True,
                    stdin=subprocess.DEVNULL,
                    timeout=TIMEOUT,
                )
            linked.replace(library)
    return library


def _processor() -> bytes:
    """What -march=native depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))})).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()


def _cache_folder() -> Path:
    """A folder of the user's alone, because what lies in it is loaded as code."""
    base = os.environ.get("GRADWISE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    folder = (root if os.environ.get("GRADWISE_CACHE") else root / "gradwise") / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise OSError(f"{folder} can be written by others")
    return folder
