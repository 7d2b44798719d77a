"""The page on watched runs in a real browser: what is drawn, read, sorted and jumped to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_browser import Tab
from report_pages import HOSTILE
from report_watched import alert, write_watched

from gradwise.report import write_report
from gradwise.watch.store import RunWriter, load


def test_everything_is_drawn(run_tab: Tab) -> None:
    assert run_tab.overflow() == 0
    for section, least in (("#time", 6), ("#layer", 8)):
        run_tab.go(section)
        run_tab.page.wait_for_selector(f"{section} .uplot")
        canvases = run_tab.page.locator(f"{section} .uplot canvas")
        assert canvases.count() >= 4
        assert run_tab.page.locator(f"{section} figure:visible").count() >= least
        for index in range(4):
            assert run_tab.pixels(f"{section} .uplot canvas", index)["colors"] > 20
    run_tab.go("#heat")
    assert run_tab.pixels("#heat canvas")["colors"] > 100
    run_tab.go("#one > figure")
    assert run_tab.pixels("#one > figure canvas")["colors"] > 20
    assert run_tab.page.locator("#rows tbody tr").count() == 8
    assert run_tab.page.locator("img").count() == 0


def test_curves_and_cells_are_those_of_the_run(run_tab: Tab, run_pages: dict[str, str]) -> None:
    run = load(Path(run_pages["one"].removeprefix("file://")).parent)
    first, means = run_tab.page.evaluate(
        """() => {
          const chart = GW.view.pictures.find((one) => one.spec?.key === "loss");
          return [chart.given.x, chart.given.lines[0].mean];
        }"""
    )
    loss = run.steps.to_pydict()["loss"]
    at = [place for place, step in enumerate(first) if step == 700]
    assert means[at[0]] == pytest.approx(loss[700], rel=1e-3)
    row, columns, shown, when = run_tab.page.evaluate(
        """() => {
          const layers = GW.view.pictures.find((one) => one instanceof GW.Layers);
          const cells = layers.matrix(0, "norm").cells("high");
          return [Array.from(cells.values), cells.columns, layers.rows.length, cells.when(3)];
        }"""
    )
    _, norm = run.metric("norm")
    found = np.reshape(row, (shown, columns))
    expected = norm[when[0] : when[1] + 1].max(axis=0)
    np.testing.assert_allclose(found[:, 3], expected, rtol=0.02)


def test_a_click_opens_a_layer_and_the_keyboard_does(run_tab: Tab) -> None:
    picked = "document.querySelector('#one select').selectedOptions[0].textContent"
    assert run_tab.page.evaluate(picked) == "head.weight", "what an alert names comes first"
    run_tab.go("#heat")
    canvas = run_tab.page.locator("#heat canvas")
    box = run_tab.box("#heat canvas")
    canvas.click(position={"x": box["width"] / 2, "y": 80})
    assert run_tab.page.evaluate(picked) == "stem.conv.weight"
    tip = run_tab.page.locator("#heat .tip").inner_text()
    assert tip.startswith("stem.conv.weight")
    assert "steps " in tip
    run_tab.page.keyboard.press("ArrowDown")
    assert run_tab.page.locator("#heat .status").inner_text().count("stem.norm.weight") == 1
    run_tab.page.keyboard.press("Enter")
    assert run_tab.page.evaluate(picked) == "stem.norm.weight"
    run_tab.page.get_by_label("next layer").click()
    assert run_tab.page.evaluate(picked) == "stem.norm.bias"
    run_tab.page.locator("#rows .jump").first.click()
    assert run_tab.page.evaluate(picked) == "stem.conv.weight"


def test_alerts_are_marked_told_and_jumped_to(run_tab: Tab) -> None:
    run_tab.go("#time")
    run_tab.page.wait_for_selector("#time .u-over")
    box = run_tab.box("#time .u-over")
    at = box["x"] + box["width"] * 700 / 2000
    run_tab.page.mouse.click(at, box["y"] + 40)
    told = run_tab.page.locator(".told")
    assert "Boom </script><img" in told.inner_text()
    assert "People lower the learning rate." in told.inner_text()
    run_tab.page.keyboard.press("Escape")
    assert told.count() == 0
    run_tab.page.mouse.click(at + 60, box["y"] + 40)
    assert told.count() == 0
    run_tab.go("#heat")
    panel = run_tab.page.evaluate(
        """() => {
          const layers = GW.view.pictures.find((one) => one instanceof GW.Layers);
          const { alert, x, y } = GW.marks.placed(layers, layers.panels[0]).find((one) => one.y);
          return [alert.layer, x, y];
        }"""
    )
    box = run_tab.box("#heat canvas")
    run_tab.page.mouse.click(box["x"] + panel[1], box["y"] + panel[2])
    told.get_by_role("button", name="show this place").click()
    low, high = run_tab.view()
    assert 600 < low < 700 < 705 < high < 800
    assert run_tab.page.locator("#legend .where").inner_text() == "steps 660 to 745"
    run_tab.page.locator(".alerts .jump").first.click()
    low, high = run_tab.view()
    assert low < 200 < high < 300


def test_the_table_sorts_and_finds(run_tab: Tab) -> None:
    run_tab.go("#table")
    names = run_tab.page.locator("#rows tbody th")
    first = names.first.inner_text()
    assert first == "stem.conv.weight"
    header = run_tab.page.locator("#rows thead").get_by_role("button", name="Std")
    header.click()
    assert names.first.inner_text() == "stem.conv.weight"
    assert run_tab.page.locator('#rows [aria-sort="descending"]').inner_text() == "Std ↓"
    header.click()
    assert names.first.inner_text() == "head.bias"
    assert run_tab.page.evaluate("document.activeElement.dataset.key") == "std"
    header.click()
    assert names.first.inner_text() == "stem.conv.weight"
    search = run_tab.page.locator('#rows input[type="search"]')
    search.fill("HEAD")
    assert names.all_inner_texts() == ["head.weight", "head.bias"]
    search.fill("nothing like it")
    assert names.count() == 0


@pytest.mark.parametrize(
    "label", ["mean", "variance", "zeros", "update ratio", "linear", "against its own median"]
)
def test_heatmap_controls(run_tab: Tab, label: str) -> None:
    run_tab.go("#heat")
    before = run_tab.pixels("#heat canvas")
    run_tab.page.locator("#heat .controls").get_by_text(label, exact=True).first.click()
    run_tab.settle()
    assert run_tab.pixels("#heat canvas") != before


def test_two_runs_share_axes_and_colours(two_tab: Tab) -> None:
    two_tab.go("#time")
    two_tab.page.wait_for_selector("#time .u-over")
    over = two_tab.page.locator("#time .u-over").first
    over.hover(position={"x": 100, "y": 60})
    tip = over.locator(".tip").inner_text()
    assert "one" in tip.split()
    assert "two" in tip.split()
    two_tab.go("#heat")
    layers = "GW.view.pictures.find((one) => one instanceof GW.Layers)"
    bounds, panels = f"JSON.stringify({layers}.bounds)", f"{layers}.panels.map((one) => one.title)"
    assert two_tab.page.evaluate(panels) == ["one", "two"]
    before = two_tab.page.evaluate(bounds)
    two_tab.page.locator("#legend").get_by_role("button", name="one").click()
    two_tab.settle()
    assert two_tab.page.evaluate(panels) == ["two"]
    assert two_tab.page.evaluate(bounds) == before
    two_tab.go("#table")
    two_tab.page.locator("#rows .controls").get_by_text("ratio", exact=True).click()
    assert "×" in two_tab.page.locator("#rows tbody td.num").first.inner_text()
    assert two_tab.overflow() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(
    browser: Any, run_pages: dict[str, str], scheme: str
) -> None:
    size = {"width": 400, "height": 800}
    tab = Tab(browser, run_pages["two"], viewport=size, color_scheme=scheme)
    try:
        for section in ("#alerts", "#time", "#heat", "#layer", "#table", "#facts"):
            tab.go(section)
            assert tab.overflow() == 0
        tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        tab.settle()
        assert tab.pixels("#time .uplot canvas", 5)["colors"] > 20, "drawn for print, seen or not"
        tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
        tab.page.set_viewport_size({"width": 900, "height": 800})
        tab.settle()
        assert tab.overflow() == 0
        assert tab.wrong == []
    finally:
        tab.context.close()


def test_pages_on_odd_runs_have_no_script_error(browser: Any, tmp_path: Path) -> None:
    runs = [write_watched(tmp_path / str(steps), steps=steps) for steps in (0, 1, 2)]
    runs.append(write_watched(tmp_path / "none", layers=[], metrics=()))
    hostile = f"x{HOSTILE}".replace("\n", " ")
    told = alert(3, rule=hostile, message=hostile)
    runs.append(write_watched(tmp_path / "hostile", layers=[hostile], steps=9, alerts=(told,)))
    for value in (np.nan, np.inf, 0.0, -1e300):
        with RunWriter(tmp_path / f"of {value}", ["a"], layer_metrics=["norm", "mean"]) as writer:
            table = np.full((9, 1), value)
            rows = {"loss": table[:, 0], "grad_norm": table[:, 0]}
            writer.append(np.arange(9) * 7, {"norm": table, "mean": table}, rows)
        runs.append(writer.path)
    context = browser.new_context(viewport={"width": 1000, "height": 3000})
    try:
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
        pages = [write_report(run)[0] for run in runs] + [write_report(runs[0], *runs[2:5])[0]]
        for address in pages:
            page.goto(address.as_uri())
            page.wait_for_selector("html[data-ready]", state="attached")
            page.evaluate("GW.view.zoom(0.5); scrollTo(0, 800)")
            page.evaluate("() => new Promise((done) => setTimeout(done, 40))")
            assert wrong == [], address
    finally:
        context.close()


def test_a_page_on_many_layers_is_small_in_every_way(browser: Any, tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", layers=500, steps=3000)
    page = write_report(run)[0]
    assert page.stat().st_size < 5_000_000
    tab = Tab(browser, page.as_uri(), viewport={"width": 1280, "height": 900})
    try:
        assert tab.page.evaluate("document.getElementsByTagName('*').length") < 3000
        assert tab.page.locator(".uplot").count() <= 6, "charts out of sight wait"
        assert tab.page.locator("#rows tbody tr").count() == 25
        tab.page.locator("#rows .more").click()
        assert tab.page.locator("#rows tbody tr").count() == 500
        assert tab.wrong == []
    finally:
        tab.context.close()
