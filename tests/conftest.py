"""Shared by all tests: run-time type checks, one thread, the real data where it is."""

import os
from pathlib import Path

from beartype import BeartypeConf
from beartype.claw import beartype_package

# Before anything imports gradwise: every call checks its annotations.
beartype_package("gradwise", conf=BeartypeConf(is_pep484_tower=True))

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "gradwise", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gradwise")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded data goes to a temporary folder, also from processes that tests start."""
    os.environ["GRADWISE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CIFAR and text, or a skip with the reason."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GRADWISE_DATA", default))
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"no real data in {folder}: set GRADWISE_DATA to a folder with cifar10/")
    return folder
