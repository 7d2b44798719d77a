"""The page in a real browser: it draws, it answers, it asks the network for nothing."""

from pathlib import Path
from typing import Any

import pytest
from report_browser import Tab
from report_synthetic import write_run

from gradwise.report import write_report


def test_everything_is_drawn(tab: Tab) -> None:
    charts = tab.page.locator("[data-charts] canvas")
    assert charts.count() == 8
    for index in range(charts.count()):
        assert tab.pixels("[data-charts] canvas", index)["colors"] > 20
    assert tab.pixels("#heat .heat canvas")["colors"] > 100
    assert tab.pixels("#heat .layer canvas")["colors"] > 20
    assert tab.overflow() == 0


def test_hostile_names_are_shown_as_text(tab: Tab) -> None:
    assert "clip</script><img" in tab.page.locator("#legend button").nth(4).inner_text()
    assert tab.page.locator("img").count() == 0
    assert tab.page.title() == "resnet8 on digits · gradwise"


def test_the_legend_hides_and_shows_a_method_everywhere(tab: Tab) -> None:
    button = tab.page.locator("#legend button").nth(2)
    before = [tab.pixels("[data-charts] canvas"), tab.pixels("#heat .heat canvas")]
    button.focus()
    tab.page.keyboard.press("Enter")
    tab.settle()
    assert button.get_attribute("aria-pressed") == "false"
    hidden = [tab.pixels("[data-charts] canvas"), tab.pixels("#heat .heat canvas")]
    assert hidden[0] != before[0]
    assert hidden[1] != before[1]
    button.click()
    tab.settle()
    tab.page.mouse.move(5, 5)
    tab.settle()
    assert [tab.pixels("[data-charts] canvas"), tab.pixels("#heat .heat canvas")] == before


def test_hiding_every_method_breaks_nothing(tab: Tab) -> None:
    for index in range(5):
        tab.page.locator("#legend button").nth(index).click()
    tab.settle()
    tab.page.locator("#training .u-over").first.hover()
    tab.page.locator("#legend button").first.click()
    tab.settle()
    assert tab.pixels("[data-charts] canvas")["colors"] > 20


def test_a_chart_tells_its_values(tab: Tab) -> None:
    over = tab.page.locator("#training .u-over").first
    over.hover(position={"x": 20, "y": 60})
    tip = over.locator(".tip")
    tip.wait_for(state="visible")
    words = tip.inner_text()
    assert words.startswith("step 10 · epoch 1.0")
    assert "autoscale" in words
    assert "%" in words
    assert "znorm, seed 1 (diverged)" in words
    tab.page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_a_chart_is_read_by_keyboard(tab: Tab) -> None:
    plot = tab.page.locator("#training .plot").first
    plot.focus()
    tab.page.keyboard.press("End")
    status = tab.page.locator("#training .status").first
    assert status.inner_text().startswith("step 60 · epoch 6.0: ")
    tab.page.keyboard.press("ArrowLeft")
    assert status.inner_text().startswith("step 50 · epoch 5.0: ")
    assert plot.locator(".tip").is_visible()
    tab.page.keyboard.press("Escape")
    assert plot.locator(".tip").is_hidden()


def test_dragging_zooms_every_chart_and_the_button_goes_back(tab: Tab) -> None:
    over = tab.page.locator("#global .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    before = tab.pixels("#global canvas", 2)
    tab.page.mouse.move(box["x"] + 60, box["y"] + 80)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 200, box["y"] + 80, steps=4)
    tab.page.mouse.up()
    tab.page.mouse.move(5, 5)
    tab.settle()
    back = tab.page.get_by_role("button", name="whole run")
    assert back.count() >= 4
    assert tab.pixels("#global canvas", 2) != before
    back.first.click()
    tab.settle()
    assert back.count() == 0  # out of sight as well
    tab.page.locator("#global canvas").nth(2).scroll_into_view_if_needed()  # to be drawn again
    tab.settle()
    assert tab.pixels("#global canvas", 2) == before


def test_axes_and_quantities_switch(tab: Tab) -> None:
    figure = tab.page.locator("#global figure").first
    pictures = [tab.pixels("#global canvas")]
    for name in ("show variance", "linear axis"):
        figure.get_by_role("button", name=name).click()
        tab.settle()
        pictures.append(tab.pixels("#global canvas"))
    assert len({picture["sum"] for picture in pictures}) == 3
    assert figure.locator("h3").inner_text() == "Variance of all gradients pooled"


def test_dark_mode_reaches_the_canvases_at_once(tab: Tab) -> None:
    light = [tab.pixels("[data-charts] canvas"), tab.pixels("#heat .heat canvas")]
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.page.emulate_media(color_scheme="dark")
    tab.settle()
    dark = [tab.pixels("[data-charts] canvas"), tab.pixels("#heat .heat canvas")]
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    assert tab.overflow() == 0
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.settle()
    assert tab.pixels("[data-charts] canvas") == light[0]
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    tab.settle()
    assert tab.pixels("[data-charts] canvas") == dark[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(browser: Any, address: str, scheme: str) -> None:
    tab = Tab(browser, address, viewport={"width": 375, "height": 740}, color_scheme=scheme)
    try:
        assert tab.overflow() == 0
        assert tab.pixels("[data-charts] canvas")["colors"] > 20
        tab.page.set_viewport_size({"width": 900, "height": 740})
        tab.settle()
        tab.settle()
        assert tab.overflow() == 0
        width = tab.page.locator("#training .uplot").first.evaluate("(plot) => plot.clientWidth")
        assert width > 350
        assert tab.wrong == []
    finally:
        tab.context.close()


def test_a_run_without_records_has_no_script_error(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", watched=False, seeds=(0,), methods=("sgd",))
    context = browser.new_context()
    try:
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(write_report(run)[0].as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.locator("#training canvas").count() == 3
        assert page.locator("#heat").count() == 0
        assert wrong == []
    finally:
        context.close()
