"""What keys and the mouse do to the screen, with a pilot who uses them."""

import pytest
from textual.widgets import Input

from live.live_helpers import NAMES, alert, note
from live.live_pilot import WIDE, view


def test_sorting_with_keys(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        await pilot.press(">")
        assert pilot.layers()[:2] == ["head.weight", "conv.bias"]  # error, warning
        await pilot.press(">")
        assert pilot.layers() == sorted(NAMES, key=lambda n: [n.split(".")[0], len(n)])
        await pilot.press(">")
        assert "▼norm" in pilot.text
        assert pilot.layers() == list(NAMES[::-1])
        await pilot.press("r")
        assert "▲norm" in pilot.text
        assert pilot.layers() == list(NAMES)
        await pilot.press("<", "r")
        assert pilot.layers()[0] == "head.weight"
        await pilot.press("o")
        assert pilot.layers() == list(NAMES)
        assert "▼" not in pilot.text

    view(run.folder, act)


def test_sorting_with_the_mouse(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)

        async def click(title):
            head = next(line for line in pilot.lines if "layer (5)" in line)
            await pilot.pilot.click("#head", offset=(head.index(title), 0))
            await pilot.pilot.pause()

        await click("norm")
        assert pilot.layers() == list(NAMES[::-1])
        await click("norm")
        assert pilot.layers() == list(NAMES)
        await click("layer")
        assert "▲ layer (5)" in pilot.text
        await pilot.pilot.click("#head", offset=(0, 0))
        await pilot.pilot.pause()
        assert pilot.layers()[0] == "head.weight"
        at = len(pilot.line("!▼").rstrip()) - 1
        await pilot.pilot.click("#head", offset=(at, 0))
        await pilot.until(lambda: "std, 30 steps" in pilot.text)

    view(run.folder, act, WIDE)


def test_a_click_on_a_line_moves_the_cursor(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        await pilot.pilot.click("#layers", offset=(10, 3))
        await pilot.pilot.pause()
        assert pilot.line("  ›block.10.weight")
        await pilot.pilot.click("#alerts", offset=(10, 1))
        await pilot.until(lambda: "The sentence on dead." in pilot.text)
        await pilot.pilot.click("#layers", offset=(10, 15))  # below the last line: nothing
        assert pilot.line("  ›block.10.weight")

    view(run.folder, act, WIDE)


def test_filtering_while_typing(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        await pilot.press("slash", *"WEIGHT", "space", *"block")
        assert pilot.layers() == ["block.2.weight", "block.10.weight"]
        assert pilot.line("filter: WEIGHT block")
        assert "2 of 5 WEIG" in pilot.text
        await pilot.press("enter", "greater_than_sign")  # goes to the table, not into the filter
        assert pilot.app.state.words == "WEIGHT block"
        assert pilot.app.state.order.column == "alerts"
        assert pilot.line("q quit  ? help  / filter: WEIGHT block  <> sort")
        await pilot.press("slash", "x")
        assert pilot.layers() == []
        assert "Esc ends the filter" in pilot.text
        await pilot.press("escape")
        assert len(pilot.layers()) == 5
        assert pilot.app.screen.query_one("#words", Input).value == ""

    view(run.folder, act)


def test_q_is_a_letter_in_the_filter_and_quits_elsewhere(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        await pilot.press("slash", "q")
        assert pilot.app.state.words == "q"
        await pilot.press("down")
        assert pilot.app.is_running
        await pilot.press("q")
        await pilot.until(lambda: not pilot.app.is_running)

    assert view(run.folder, act).return_code == 0


@pytest.mark.parametrize("keys", ["q", "ctrl+c", "slash ctrl+c", "question_mark ctrl+c"])
def test_quitting_from_anywhere(run, keys):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        for key in keys.split():
            await pilot.pilot.press(key)
        await pilot.until(lambda: not pilot.app.is_running)

    app = view(run.folder, act)
    assert (app.return_code, app.mistake) == (0, None)


def test_the_alerts(run):
    async def act(pilot):
        await pilot.until(lambda: "The sentence on exploding." in pilot.text)
        assert pilot.line("   frozen").split()[1:5] == ["step", "2", "to", "9"]
        await pilot.press("a", "down")
        assert "The sentence on dead." in pilot.text
        assert "Advice on dead." in pilot.text
        assert "The sentence on exploding." not in pilot.text
        await pilot.press("enter")  # to its layer
        assert pilot.line("! ›conv.bias")
        assert "dead since step 5" in pilot.line("conv.bias")
        await pilot.press("exclamation_mark")
        assert pilot.layers() == ["conv.bias", "head.weight"]
        assert "2 of 5" in pilot.text
        await pilot.press("exclamation_mark")
        assert len(pilot.layers()) == 5

    view(run.folder, act, WIDE)


def test_an_alert_leads_through_a_filter_that_hides_its_layer(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        await pilot.press("slash", *"block", "enter")
        assert len(pilot.layers()) == 2
        await pilot.press("tab", "enter")
        assert len(pilot.layers()) == 5
        assert pilot.line("!!›head.weight")

    view(run.folder, act)


def test_alerts_that_come_and_end_while_one_looks(run):
    async def act(pilot):
        await pilot.until(lambda: "2 active" in pilot.text)
        await pilot.press("a", "down")
        assert "The sentence on dead." in pilot.text
        note(run.folder, alert("nonfinite", 20, "conv.weight", "error"))
        await pilot.until(lambda: "3 active, 2 errors" in pilot.text)
        assert "The sentence on dead." in pilot.text  # the cursor stays with its alert
        assert pilot.line("! ›dead")

    view(run.folder, act, WIDE)


def test_metric_and_window_of_the_curves(run):
    async def act(pilot):
        await pilot.until(lambda: "norm, 30 steps" in pilot.text)
        await pilot.press("m")
        await pilot.until(lambda: "std, 30 steps" in pilot.text)
        await pilot.press("M", "M")
        await pilot.until(lambda: "update_ratio, 30 steps" in pilot.text)
        await pilot.press("w", "w")
        await pilot.until(lambda: "30 steps, all" in pilot.text)

    view(run.folder, act, (160, 40))
