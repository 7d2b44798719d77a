"""What the tests of the live view share."""

import pytest

from live.live_helpers import Made


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
