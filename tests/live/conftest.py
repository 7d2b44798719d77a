"""What the tests of the live view share."""

import time

import pytest

from live.live_helpers import Made, alert, note


@pytest.fixture
def make(tmp_path):
    """Opens run folders, and closes what a test has left open."""
    made = []

    def begin(name="run", **given):
        made.append(Made(tmp_path / name, **given))
        return made[-1]

    yield begin
    for run in made:
        run.writer.close()


@pytest.fixture
def run(make):
    """A run of 30 steps with alerts."""
    made = make().write(range(30), loss=0.75, began=time.time() - 5)
    note(
        made.folder,
        alert("exploding", 12, "head.weight", "error"),
        alert("dead", 5, "conv.bias"),
        alert("frozen", 2, "block.2.weight", ended=9),
    )
    return made
