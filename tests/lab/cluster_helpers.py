"""What tests of clusters share: clusters made of threads, and the processes of one's own trials."""

import os
import threading
import time
from pathlib import Path

from gradwise.lab.cluster import Cluster
from gradwise.lab.cluster.base import Lost

TIMES = {"wall_time_s", "samples_per_s", "peak_memory_bytes"}


class Thread:
    """A task in a thread of this process; `losing` tasks are lost before they begin."""

    def __init__(self, duty, order, losing):
        self.order, self.told, self.cancelled = order, None, False
        self._thread = threading.Thread(target=self._run, args=(duty,), daemon=True)
        self._losing = losing
        if not losing:
            self._thread.start()

    def _run(self, duty):
        self.told = duty(self.order)

    def over(self):
        return self._losing or not self._thread.is_alive()

    def outcome(self):
        if self._losing:
            raise Lost("lightning struck")
        return self.told

    def cancel(self):
        self.cancelled = True


class Threads(Cluster):
    """Runs what it is sent in threads.

    `lose` says of the number of a trial's attempt whether its worker dies before it begins.
    """

    name = "the cluster of threads"
    patience_s = 30.0

    def __init__(self, lose=lambda attempt: False, gpus=False):
        self._lose, self._gpus, self.sent, self.asked = lose, gpus, [], []

    def has_gpus(self):
        return self._gpus

    def room(self, threads, gpus):
        self.asked.append((threads, gpus))
        return 2

    def send(self, duty, order, threads, gpus):
        attempt = sum(one.order.get("folder") == order.get("folder") for one in self.sent)
        losing = duty.__name__ == "run" and self._lose(attempt)
        self.sent.append(Thread(duty, order, losing))
        return self.sent[-1]

    def close(self):
        pass


def without_times(value):
    """A summary without what two runs may differ in, all the way down."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def trial_processes(folder):
    """Of each trial that runs in a folder: its process, and the process that started that."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if entry.isdigit() and f"{folder.resolve()}/trial.json".encode() in words:
            found.append((int(entry), parent))
    return found


def gone(pid, seconds=60.0):
    """Whether a process ends while one waits."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


class Assassin:
    """A listener that kills the worker of one trial once, after its first checkpoint.

    It kills the process that started the trial's own, by its number, and no other.
    """

    def __init__(self, label, kill):
        self.label, self._kill = label, kill
        self.events, self.killed = [], None

    def __call__(self, job, event):
        self.events.append((job.label, event))
        if self.killed is None and job.label == self.label and event["event"] == "epoch":
            if not (job.folder / "checkpoint.pt").exists():
                return
            ((trial, holder),) = trial_processes(job.folder)
            self._kill(holder)
            self.killed = trial

    def of_the_victim(self):
        return [event for label, event in self.events if label == self.label]

    def check_that_it_went_on(self, folder):
        """The trial was sent again, its first process is no more, and no epoch began anew."""
        assert self.killed is not None, "it was over before it could be killed"
        assert gone(self.killed)
        events = self.of_the_victim()
        notes = [i for i, event in enumerate(events) if event["event"] == "note"]
        assert len(notes) == 1, [events[i] for i in notes]
        assert "goes on from its checkpoint on another worker, because" in events[notes[0]]["text"]
        steps = [e["step"] for e in events[notes[0] :] if e["event"] == "step"]
        assert steps[0] > 0
        epochs = [e["epoch"] for e in events[notes[0] :] if e["event"] == "epoch"]
        assert epochs[0] > 1
        assert [e["event"] for e in events].count("start") == 1
        assert (folder / "log.txt").read_text().count("--- started") == 2
