"""Every check begins with kernels that work, and a warning that they do not is an error."""

from __future__ import annotations

import pytest

from gradwise.backends.gpu import launching, measuring


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_broken", [])
    monkeypatch.setattr(measuring, "_proven", {})
    assert launching.interpreted()
