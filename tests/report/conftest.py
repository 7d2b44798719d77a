"""A run that nothing is wrong with, and a browser to look at the page of another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_browser import FLAGS, Tab, executable
from report_synthetic import METHODS, write_run
from report_watched import alert, write_watched

# Without motion, scrolling to a section is done at once.
WINDOW = {
    "viewport": {"width": 1280, "height": 900}, "color_scheme": "light", "reduced_motion": "reduce",
}  # fmt: skip


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five methods and three seeds. Not to be changed by a test."""
    return write_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")  # while Playwright runs, asyncio.run is refused in its thread
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


@pytest.fixture(scope="session")
def run_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of pages on watched runs: `one`, and the same beside another, `two`."""
    from gradwise.report import write_report

    folder = tmp_path_factory.mktemp("watched")
    alerts = (
        alert(700, "head.weight", message="Boom </script><img src=x onerror=alert(1)>"),
        alert(200, severity="warning", rule="no_step", ended=None, advice="Wait."),
    )
    one = write_watched(folder / "one", steps=2000, alerts=alerts, histograms=50)
    two = write_watched(folder / "two", steps=900, seed=1, scale=3.0)
    return {
        "one": write_report(one)[0].as_uri(),
        "two": write_report(one, two)[0].as_uri(),
    }


@pytest.fixture
def run_tab(browser: Any, run_pages: dict[str, str]) -> Iterator[Tab]:
    found = Tab(browser, run_pages["one"], **WINDOW)
    yield found
    found.context.close()
    assert found.wrong == []
    assert found.requests == [run_pages["one"]]


@pytest.fixture
def two_tab(browser: Any, run_pages: dict[str, str]) -> Iterator[Tab]:
    found = Tab(browser, run_pages["two"], **WINDOW)
    yield found
    found.context.close()
    assert found.wrong == []
