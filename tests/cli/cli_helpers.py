"""Real `gradwise` processes for tests, and the options of a comparison of a few seconds."""

import os
import subprocess
import sys
import time
from pathlib import Path

# fmt: off
TINY = [
    "--model", "mlp", "--epochs", "2", "--batch-size", "32", "--limit-train", "128",
    "--limit-test", "64", "--device", "cpu", "--threads", "1",
]
# fmt: on


class Process:
    """A `gradwise` process in a session of its own, as from a terminal."""

    def __init__(self, folder, *arguments, **popen):
        self.folder = folder
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "gradwise", *map(str, arguments)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **popen,
        )

    def wait_for(self, condition, seconds=60.0):
        end = time.monotonic() + seconds
        while not condition():
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)

    def end(self, seconds=60.0):
        out, err = self.popen.communicate(timeout=seconds)
        assert "Traceback" not in out + err
        return self.popen.returncode, out, err

    def workers(self):
        """Ids of processes that run trials of this folder."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != self.popen.pid:
                try:
                    words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                    there = Path(f"/proc/{entry}/cwd").resolve() == self.folder.resolve()
                except OSError:
                    continue
                if there and any(word.endswith(b"trial.json") for word in words):
                    found.append(int(entry))
        return found
