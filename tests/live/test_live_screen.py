"""The screen itself: what stands where, and that it survives what can happen to it."""

import numpy as np
import pytest
from rich.cells import cell_len

from gradwise.live.help import KEYS
from gradwise.live.order import Order
from gradwise.live.rows import alert_title
from gradwise.live.spark import ASCII, UNICODE
from gradwise.live.state import State
from gradwise.live.tail import Wish
from gradwise.live.widgets import Rows
from live.live_helpers import NAMES, alert, note
from live.live_pilot import NARROW, USUAL, WIDE, view


@pytest.mark.parametrize("size", [WIDE, USUAL, NARROW, (40, 10), (200, 60)])
def test_what_stands_on_the_screen(run, size):
    async def act(pilot):
        await pilot.until(lambda: "step 29" in pilot.text)
        lines = pilot.lines
        assert len(lines) == size[1]
        assert all(cell_len(line) == size[0] for line in lines)
        assert lines[0].rstrip().endswith("ago")
        assert "0.750" in pilot.text
        assert "conv.weight" in pilot.layers()
        assert pilot.line("q quit").startswith("q quit  ? help")
        assert "alerts: 2 active, 1 error, 1 over" in pilot.text
        if size[1] >= 20:
            assert pilot.layers() == list(NAMES)
            assert pilot.line("!! head.weight")
            assert pilot.line("!  conv.bias")
            assert pilot.line("!!›exploding")
            assert "The sentence on exploding." in pilot.text
        if size == WIDE:
            assert "Advice on exploding." in pilot.text
            assert "Net · SGD" in lines[0]
            assert "norm before" in pilot.text
            assert "weight" in pilot.line("!  layer (5)")
            assert "5.00" in pilot.line("   head.weight".replace("   ", "!! "))

    view(run.folder, act, size)


def test_new_steps_show_and_pause_holds_them_back(run):
    async def act(pilot):
        await pilot.until(lambda: "step 29" in pilot.text)
        run.write(range(30, 40))
        await pilot.until(lambda: "step 39" in pilot.text)
        await pilot.press("p")
        run.write(range(40, 50))
        await pilot.until(lambda: pilot.app.screen._newest.snapshot.step == 49)
        await pilot.pilot.pause()
        assert "step 39" in pilot.text
        assert "PAUSED" in pilot.lines[0]
        await pilot.press("greater_than_sign")  # one can look around meanwhile
        assert pilot.layers()[0] == "head.weight"
        await pilot.press("space")
        assert "step 49" in pilot.text
        assert "PAUSED" not in pilot.text

    view(run.folder, act)


def test_help_and_back(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        await pilot.press("question_mark")
        seen = set(pilot.lines)
        for _ in range(4):
            await pilot.press("pagedown")
            seen |= set(pilot.lines)
        everything = " ".join(" ".join(seen).split())
        for key, _ in KEYS:
            assert key.split()[0] in everything
        assert "Euclidean norm of the layer's gradient" in everything
        assert "gradient noise scale" in everything
        run.write(range(30, 40))
        await pilot.until(lambda: pilot.app._run_screen._newest.snapshot.step == 39)
        await pilot.press("q")  # back, and not out
        assert "step 39" in pilot.text

    view(run.folder, act)


@pytest.mark.parametrize("size", [WIDE, NARROW, (30, 8)])
def test_help_fits_the_screen(run, size):
    async def act(pilot):
        await pilot.press("question_mark")
        for _ in range(10):
            await pilot.press("pagedown")
            assert all(cell_len(line) == size[0] for line in pilot.lines)

    view(run.folder, act, size)


def test_the_size_may_change_at_any_time(run):
    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        for size in (NARROW, WIDE, (20, 5), (1, 1), (300, 80), USUAL):
            await pilot.pilot.resize_terminal(*size)
            await pilot.pilot.pause()
            assert len(pilot.lines) == size[1]
            assert all(cell_len(line) == size[0] for line in pilot.lines)
        await pilot.until(lambda: len(pilot.layers()) == 5)
        assert set(UNICODE.blocks) & set(pilot.lines[2])

    view(run.folder, act)


def test_names_are_shown_and_not_obeyed(make):
    names = (
        "[red]bold[/red]",
        "\x1b[31mred\x1b[0m",
        "[/]",
        "日本語のレイヤー",
        "a\nb",
        "[@click=q]",
    )
    made = make(names=names).write(range(5), **{"[bold]\x1b[2Jscore": 1.0})
    note(made.folder, alert("[blink]", 1, names[0]), alert("dead", 1, names[1], "error"))

    async def act(pilot):
        await pilot.until(lambda: "step 4" in pilot.text)
        for name in (
            "[red]bold[/red]",
            r"\x1b[31mred\x1b[0m",
            "[/]",
            "日本語",
            r"a\nb",
            "[@click=q]",
        ):
            assert name in pilot.text
        assert "[blink]" in pilot.text
        assert "\x1b" not in pilot.text
        assert pilot.line("!! " + r"\x1b[31mred")
        await pilot.press("slash", *"[red]", "enter")
        assert pilot.layers() == ["[red]bold[/red]"]

    view(made.folder, act, WIDE)


def test_waiting_for_a_run_that_then_begins(make, tmp_path):
    async def act(pilot):
        await pilot.until(lambda: "waiting: there is no such folder yet" in pilot.text)
        (tmp_path / "run").mkdir()
        await pilot.until(lambda: "nothing is recorded yet" in pilot.text)
        keys = "> a r m w p p enter down slash x escape question_mark escape ! ! o"
        await pilot.press(*keys.split())
        made = make().write(range(3))
        await pilot.until(lambda: "step 2" in pilot.text)
        assert len(pilot.layers()) == 5
        made.close()
        await pilot.until(lambda: "ended" in pilot.text)

    view(tmp_path / "run", act)


def test_a_run_that_cannot_be_shown_ends_the_view_with_a_sentence(tmp_path):
    (tmp_path / "photo.png").touch()

    async def act(pilot):
        await pilot.until(lambda: not pilot.app.is_running)

    assert "is not a run folder" in str(view(tmp_path, act).mistake)


def test_sorting_by_something_the_run_does_not_have(run):
    async def act(pilot):
        await pilot.until(lambda: not pilot.app.is_running)

    app = view(run.folder, act, state=State(order=Order("nonsense")))
    assert "expected --sort alerts, layer, norm" in str(app.mistake)
    assert "got 'nonsense'" in str(app.mistake)


def test_a_view_begins_as_it_was_asked_for(run):
    state = State(wish=Wish("std", None), order=Order("norm"), words="block")

    async def act(pilot):
        await pilot.until(lambda: "std, 30 steps" in pilot.text)
        assert pilot.layers() == ["block.10.weight", "block.2.weight"]

    view(run.folder, act, WIDE, state=state)


def test_a_terminal_without_unicode(run):
    async def act(pilot):
        await pilot.until(lambda: "step 29" in pilot.text)
        pilot.text.encode("ascii")
        await pilot.press("greater_than_sign")
        pilot.text.encode("ascii")

    view(run.folder, act, signs=ASCII)


def test_many_layers_are_drawn_as_quickly_as_few(make):
    """Only what is in sight is drawn: counted, because time depends on the machine."""
    names = tuple(f"model.layers.{at}.weight" for at in range(3000))
    made = make(names=names).write(range(20))

    async def act(pilot):
        await pilot.until(lambda: "step 19" in pilot.text)
        drawn = []
        rows = pilot.app.screen.query_one("#layers", Rows)
        plain = rows._draw
        rows._draw = lambda start, stop: drawn.append(stop - start) or plain(start, stop)
        rows.redraw()
        await pilot.pilot.pause()
        await pilot.press("end")
        assert pilot.layers()[-1] == names[-1]
        await pilot.press("home", "pagedown", "pagedown")
        assert sum(drawn) <= 6 * rows.size.height
        assert pilot.app.state.layer is not None

    view(made.folder, act, WIDE)


def test_the_cursor_stays_with_its_layer_while_values_change(make):
    made = make().write(range(10))

    async def act(pilot):
        await pilot.until(lambda: len(pilot.layers()) == 5)
        await pilot.press("greater_than_sign", "greater_than_sign", "greater_than_sign", "down")
        assert pilot.line("  ›block.10.weight")
        made.writer.append(np.array([10]), {"norm": np.array([[9.0, 1.0, 2.0, 8.0, 3.0]])}, {})
        made.writer.flush()
        await pilot.until(lambda: pilot.layers()[0] == "conv.weight")
        assert pilot.layers()[1] == "block.10.weight"
        made.writer.append(np.array([11]), {"norm": np.array([[1.0, 1.0, 2.0, 8.0, 3.0]])}, {})
        made.writer.flush()
        await pilot.until(lambda: pilot.layers()[0] == "block.10.weight")
        assert pilot.line("  ›block.10.weight")

    view(made.folder, act)


def test_the_titles_of_alerts_in_both_signs():
    for signs in (UNICODE, ASCII):
        assert alert_title(None, 20, signs)[0][0].strip() == "no alerts"
