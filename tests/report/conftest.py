"""A run that nothing is wrong with, and a browser to look at the page of another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_browser import FLAGS, Tab, executable
from report_synthetic import METHODS, write_run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five methods and three seeds. Not to be changed by a test."""
    return write_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = executable()
    if path is None:
        pytest.skip("no chromium found: install it or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    from gradwise.report import write_report

    hostile = "</script><img src=x onerror=alert(1)>"
    methods = (*METHODS[:4], f"clip{hostile}")
    run = write_run(
        tmp_path_factory.mktemp("browser") / "run", methods=methods, diverged=(("znorm", 1),)
    )
    return write_report(run)[0].as_uri()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    found = Tab(browser, address, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield found
    found.context.close()
    assert found.wrong == []
    assert found.requests == [address]
