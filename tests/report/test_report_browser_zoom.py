"""Zooming the heatmaps of a watched run: by mouse, wheel, fingers, keys and buttons."""

import pytest
from report_browser import Tab

PANEL = """() => {
  const panel = GW.view.pictures.find((one) => one instanceof GW.Layers).panels[0];
  return [panel.x, panel.y, panel.width, panel.height];
}"""
ROWS = """() => {
  const layers = GW.view.pictures.find((one) => one instanceof GW.Layers);
  return [layers.top, layers.bottom];
}"""
TOUCH = """([kind, id, x, y]) => {
  const canvas = document.querySelector("#heat canvas");
  const { left, top } = canvas.getBoundingClientRect();
  const place = { clientX: left + x, clientY: top + y, pointerId: id, pointerType: "touch" };
  canvas.dispatchEvent(new PointerEvent(kind, { ...place, bubbles: true }));
}"""


@pytest.fixture
def heat(run_tab: Tab) -> Tab:
    """The page, scrolled to its heatmap."""
    run_tab.go("#heat figure")
    return run_tab


def at(tab: Tab, across: float, down: float) -> tuple[float, float]:
    """A place in the panel, in pixels of the window."""
    box = tab.box("#heat canvas")
    x, y, width, height = tab.page.evaluate(PANEL)
    return box["x"] + x + across * width, box["y"] + y + down * height


def drag(tab: Tab, start: tuple[float, float], end: tuple[float, float]) -> None:
    tab.page.mouse.move(*start)
    tab.page.mouse.down()
    tab.page.mouse.move(*end, steps=4)
    tab.page.mouse.up()
    tab.page.mouse.move(5, 5)
    tab.settle()


def test_a_box_zooms_into_steps_and_layers_everywhere(heat: Tab) -> None:
    before = heat.pixels("#heat canvas")
    chosen = heat.page.locator("#one select").input_value()
    drag(heat, at(heat, 0.25, 0.3), at(heat, 0.5, 0.7))
    low, high = heat.view()
    assert low == pytest.approx(500, abs=5)
    assert high == pytest.approx(1000, abs=5)
    assert heat.page.evaluate(ROWS) == [2, 6]
    assert heat.pixels("#heat canvas") != before
    assert heat.page.locator("#one select").input_value() == chosen, "a drag is no click"
    heat.go("#time")
    heat.page.wait_for_selector("#time .u-over")
    scale = "GW.view.pictures.find((one) => one.spec?.key === 'loss').plot.scales.x"
    assert heat.page.evaluate(f"[{scale}.min, {scale}.max]") == [low, high]
    heat.go("#heat figure")
    heat.page.mouse.dblclick(*at(heat, 0.5, 0.5))
    heat.page.mouse.move(5, 5)
    assert heat.view() == [0, 2000]
    assert heat.page.evaluate(ROWS) == [0, 8]
    heat.page.locator("#one select").select_option(chosen)
    heat.settle()
    assert heat.pixels("#heat canvas") == before


def test_a_chart_zooms_the_heatmap(heat: Tab) -> None:
    heat.go("#time")
    heat.page.wait_for_selector("#time .u-over")
    box = heat.box("#time .u-over")
    start = box["x"] + box["width"] * 0.5, box["y"] + 100
    drag(heat, start, (box["x"] + box["width"] * 0.75, box["y"] + 100))
    low, high = heat.view()
    assert low == pytest.approx(1000, abs=10)
    assert high == pytest.approx(1500, abs=10)
    heat.page.locator("#legend").get_by_role("button", name="Show all steps again").click()
    assert heat.view() == [0, 2000]


def test_shift_and_drag_moves_what_is_shown(heat: Tab) -> None:
    heat.page.evaluate("GW.view.set(800, 1200)")
    heat.settle()
    heat.page.keyboard.down("Shift")
    drag(heat, at(heat, 0.75, 0.5), at(heat, 0.25, 0.5))
    heat.page.keyboard.up("Shift")
    low, high = heat.view()
    assert low == pytest.approx(1000, abs=4)
    assert high - low == pytest.approx(400)


def test_the_wheel_zooms_only_with_ctrl(heat: Tab) -> None:
    heat.page.mouse.move(*at(heat, 0.5, 0.25))
    top = heat.page.evaluate("scrollY")
    heat.page.mouse.wheel(0, 40)
    for _ in range(200):  # the policy of the page forbids to wait for an expression
        if heat.page.evaluate("scrollY") > top:
            break
        heat.settle()
    assert heat.page.evaluate("scrollY") > top
    assert heat.view() == [0, 2000]
    heat.page.mouse.move(*at(heat, 0.5, 0.25))
    heat.page.keyboard.down("Control")
    heat.page.mouse.wheel(0, -120)
    low, high = heat.view()
    assert 0 < low < 1000 < high < 2000
    assert (low + high) / 2 == pytest.approx(1000, abs=4), "the place under the pointer stays"
    heat.page.keyboard.down("Shift")
    heat.page.mouse.wheel(0, -120)
    heat.page.keyboard.up("Shift")
    heat.page.keyboard.up("Control")
    assert heat.view() == [low, high]
    first, last = heat.page.evaluate(ROWS)
    assert 0 < first < 2 < last < 8
    heat.page.mouse.wheel(100, 0)
    assert heat.view()[0] > low, "sideways moves"


def test_keys_zoom_and_move(heat: Tab) -> None:
    heat.page.locator("#heat canvas").focus()
    heat.page.keyboard.press("+")
    low, high = heat.view()
    assert high - low == pytest.approx(1200)
    for _ in range(3):
        heat.page.keyboard.press("ArrowRight")
    assert heat.page.locator("#heat .status").inner_text().split(",")[1] == " head.weight"
    heat.page.keyboard.press("Alt+-")
    heat.page.keyboard.press("Alt+=")
    first, last = heat.page.evaluate(ROWS)
    assert last - first == pytest.approx(4.8)
    heat.page.keyboard.press("Shift+ArrowUp")
    assert heat.page.evaluate(ROWS)[0] == 0, "what is read is shown"
    heat.page.keyboard.press("0")
    assert heat.view() == [0, 2000]
    assert heat.page.evaluate(ROWS) == [0, 8]


def test_two_fingers_zoom_both_ways(heat: Tab) -> None:
    x, y, width, height = heat.page.evaluate(PANEL)
    middle = x + width / 2, y + height / 2
    for kind, near in (("pointerdown", 1.0), ("pointermove", 2.0), ("pointerup", 2.0)):
        for finger, side in ((1, -1), (2, 1)):
            place = middle[0] + side * 60 * near, middle[1] + side * 30 * near
            heat.page.evaluate(TOUCH, [kind, finger, *place])
    low, high = heat.view()
    assert high - low == pytest.approx(1000, rel=0.1)
    assert (low + high) / 2 == pytest.approx(1000, rel=0.1)
    first, last = heat.page.evaluate(ROWS)
    assert last - first == pytest.approx(4, rel=0.1)


def test_buttons_zoom_and_move(heat: Tab) -> None:
    bar = heat.page.locator("#legend")
    assert bar.get_by_role("button", name="zoom out").is_disabled()
    bar.get_by_role("button", name="zoom in").click()
    assert heat.view() == [500, 1500]
    bar.get_by_role("button", name="later steps").click()
    assert heat.view() == [1000, 2000]
    bar.get_by_role("button", name="zoom out").click()
    assert heat.view() == [0, 2000]
    assert bar.locator(".where").inner_text() == "all steps"
