"""The heatmaps of the page in a real browser: what is under the pointer, and the controls."""

import numpy as np
import pytest
from report_browser import Tab
from report_synthetic import unpack


def test_a_heatmap_tells_its_cells_and_opens_a_layer(tab: Tab) -> None:
    canvas = tab.page.locator("#heat .heat canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    panel = tab.page.evaluate("document.querySelector('#heat .heat canvas').clientWidth") / 2
    canvas.hover(position={"x": panel, "y": 80})
    tip = tab.page.locator("#heat .heat .tip")
    tip.wait_for(state="visible")
    first = tip.inner_text()
    assert first.startswith("stem.conv.weight")
    assert "step" in first
    title = tab.page.locator("#heat .layer h3")
    assert title.inner_text() == "Std of the gradient of stem.conv.weight"
    canvas.click(position={"x": panel, "y": 150})
    assert title.inner_text() != "Std of the gradient of stem.conv.weight"
    picked = tab.page.locator("#heat .layer select").evaluate(
        "(list) => list.selectedOptions[0].textContent"
    )
    assert title.inner_text().endswith(picked)
    assert tip.inner_text().startswith(picked)


def test_a_heatmap_is_read_by_keyboard(tab: Tab) -> None:
    tab.page.locator("#heat .heat canvas").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        tab.page.keyboard.press(key)
    status = tab.page.locator("#heat .heat .status")
    status.filter(has_text="sgd, stem.norm.bias, step 0").wait_for()  # drawn in a later frame
    tab.page.keyboard.press("Enter")
    title = tab.page.locator("#heat .layer h3")
    title.filter(has_text="Std of the gradient of stem.norm.bias").wait_for()


def test_heatmap_values_are_those_of_the_run(tab: Tab) -> None:
    values, packed = tab.page.evaluate(
        "[Array.from(GW.unpack(GW.data.heat.matrices[0].std)), GW.data.heat.matrices[0].std]"
    )
    np.testing.assert_allclose(values, unpack(packed).ravel(), rtol=1e-9)
    assert len(set(values)) > 100


@pytest.mark.parametrize(
    ("label", "changes"), [("variance", True), ("linear", True), ("znorm", True)]
)
def test_heatmap_controls(tab: Tab, label: str, changes: bool) -> None:
    before = tab.pixels("#heat .heat canvas")
    tab.page.locator("#heat .controls").get_by_text(label, exact=True).click()
    tab.settle()
    assert (tab.pixels("#heat .heat canvas") != before) is changes
    if label == "variance":
        assert tab.page.locator("#heat .layer h3").inner_text().startswith("Variance")


def test_a_seed_can_be_chosen(tab: Tab) -> None:
    before = tab.pixels("#heat .heat canvas")
    tab.page.locator("#heat .controls select").select_option("1")
    tab.settle()
    seed = tab.pixels("#heat .heat canvas")
    assert seed != before
    tab.page.locator("#heat .controls select").select_option("mean")
    tab.settle()
    assert tab.pixels("#heat .heat canvas") == before


def test_means_and_numbers_of_the_script(tab: Tab) -> None:
    assert tab.page.evaluate(
        "Array.from(GW.average([Float64Array.of(1, NaN, 0), Float64Array.of(3, 5, 0)]))"
    ) == [2, 5, 0]
    assert tab.page.evaluate(
        "Number.isNaN(GW.average([Float64Array.of(NaN), Float64Array.of(NaN)])[0])"
    )
    shown = {"0.0012345": "0.001235", "-12.3456": "−12.35", "0": "0", "1234567": "1.235×10⁶"}
    for value, words in shown.items():
        assert tab.page.evaluate(f"GW.number({value})") == words
    ticks = tab.page.evaluate("GW.logTicks(2e-5, 3e-1)")
    assert ticks == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert tab.page.evaluate("GW.logTicks(3, 40)") == [3, 5, 7, 10, 20, 30]
