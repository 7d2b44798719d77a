"""Nothing in these tests asks the network for anything, whichever library is imported first."""

import os
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Lightning tell of Slurm on machines that have it."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:The `srun` command is available"))
