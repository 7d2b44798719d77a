"""What is shown, computed from values: order, filter, marks, curves, the newest numbers."""

import numpy as np
import pytest

from gradwise.live.model import Snapshot, snapshot_of, words_about
from gradwise.live.order import Order, arrange
from gradwise.live.spark import ASCII, UNICODE, binned, heights, signs_for, sparklines
from gradwise.live.state import State, sortable
from gradwise.live.text import natural, number, shown
from gradwise.live.values import newest, pace
from gradwise.watch.block import Block
from live.live_helpers import alert

NAN = np.nan


def run_with(**given):
    values = {
        "title": "runs/a",
        "names": ("h.2.w", "h.10.w", "head.w"),
        "layers": {"norm": np.array([1.0, NAN, 3.0]), "std": np.array([3.0, 2.0, 1.0])},
        "metric": "norm",
    }
    return Snapshot(**(values | given))


@pytest.mark.parametrize(
    ("order", "rows"),
    [
        (Order(), [0, 1, 2]),
        (Order(None, True), [2, 1, 0]),
        (Order("norm"), [2, 0, 1]),
        (Order("norm", True), [0, 2, 1]),  # what has no value is last in both directions
        (Order("layer"), [0, 1, 2]),
        (Order("layer", True), [2, 1, 0]),
        (Order("std", True), [2, 1, 0]),
        (Order("not there"), [0, 1, 2]),
    ],
)
def test_order(order, rows):
    assert arrange(run_with(), order).tolist() == rows


def test_infinite_values_are_the_largest():
    run = run_with(layers={"norm": np.array([1.0, np.inf, NAN])})
    assert arrange(run, Order("norm")).tolist() == [1, 0, 2]


def test_layers_with_alerts_come_first_errors_before_warnings():
    run = run_with(
        alerts=(
            alert(layer="head.w"),
            alert("exploding", layer="h.10.w", severity="error"),
            alert("old", layer="h.2.w", ended=9),
        )
    )
    assert run.marks.tolist() == [0, 2, 1]
    assert arrange(run, Order("alerts")).tolist() == [1, 2, 0]
    assert arrange(run, Order(), only_alerts=True).tolist() == [1, 2]
    assert [one.rule for one in run.told] == ["exploding", "dead", "old"]


def test_an_alert_finds_its_layer_even_if_the_name_has_control_characters():
    run = run_with(names=("a\x1b[31mb", "c", "d"), alerts=(alert(layer="a [31mb"),))
    assert run.marks.tolist() == [1, 0, 0]
    assert run.row("a [31mb") == 0
    assert run.row("gone") is None


@pytest.mark.parametrize(
    ("words", "rows"), [("", [0, 1, 2]), ("H.", [0, 1]), ("w  10", [1]), ("x", [])]
)
def test_filter(words, rows):
    assert arrange(run_with(), Order(), words).tolist() == rows


def test_names_sort_as_people_count():
    names = ["h.10.a", "h.2.b", "h.2", "a", "h.2.a10", "h.2.a9"]
    assert sorted(names, key=natural) == ["a", "h.2", "h.2.a9", "h.2.a10", "h.2.b", "h.10.a"]


def test_the_newest_value_that_was_recorded():
    latest = {}
    newest(latest, {"norm": np.array([[1.0, 2.0], [NAN, 3.0], [NAN, NAN]])})
    assert latest["norm"].tolist() == [1.0, 3.0]
    newest(latest, {"norm": np.array([[NAN, 4.0]])})
    assert latest["norm"].tolist() == [1.0, 4.0]
    newest(latest, {"norm": np.empty((0, 2))})
    assert latest["norm"].tolist() == [1.0, 4.0]


def test_a_gradient_that_is_not_finite_has_no_older_value():
    latest = {}
    newest(
        latest,
        {
            "norm": np.array([[1.0, 1.0], [NAN, NAN]]),
            "weight_norm": np.array([[5.0, 5.0], [NAN, NAN]]),
            "nonfinite": np.array([[0.0, 0.0], [3.0, 0.0]]),
        },
    )
    assert np.isnan(latest["norm"][0])
    assert latest["norm"][1] == 1.0
    assert latest["weight_norm"].tolist() == [5.0, 5.0]  # measured in turns: that says nothing


def test_what_was_handed_out_is_not_changed_later():
    latest = {}
    newest(latest, {"norm": np.array([[1.0]])})
    before = latest["norm"]
    newest(latest, {"norm": np.array([[2.0]])})
    assert before.tolist() == [1.0]


def test_pace_is_that_of_the_last_half_minute():
    steps = np.arange(200)
    times = np.where(steps < 100, steps * 1.0, 100 + (steps - 100) * 0.5)
    assert pace(steps, times) == pytest.approx(2.0)
    assert pace(steps, None) is None
    assert pace(steps[:1], times[:1]) is None
    assert pace(steps, np.zeros(200)) is None
    assert pace(np.array([0, 10]), np.array([0.0, 500.0])) == pytest.approx(0.02)
    assert pace(np.arange(3), np.array([0.0, NAN, 1.0])) == pytest.approx(2.0)


def test_bins_keep_their_borders_as_steps_are_added():
    """The curve moves to the left by whole bins; what is in a bin stays there."""
    values = np.random.default_rng(0).normal(size=(2000, 1))
    before = binned(np.arange(1500), values[:1500], 1000, 20)
    after = binned(np.arange(1550), values[:1550], 1000, 20)
    assert np.array_equal(after[0, :-1], before[0, 1:])
    assert after.shape == (1, 20)


@pytest.mark.parametrize("every", [1, 7, 100])
@pytest.mark.parametrize("there", [1, 2, 19, 21, 55, 1000, 1500])
def test_bins_have_no_gaps_and_no_step_twice(every, there):
    steps = np.arange(there) * every
    found = binned(steps, np.arange(there, dtype=float)[:, None], 1000, 20)[0]
    known = ~np.isnan(found)
    first = int(np.argmax(known))
    assert known[first:].all()
    assert known.sum() >= min(there, 11)  # the curve uses more than half of its width
    assert np.all(np.diff(found[first:]) > 0)


def test_bins_of_values_that_are_missing_or_infinite():
    values = np.array([[NAN, 1.0], [NAN, np.inf], [2.0, -np.inf], [4.0, NAN]])
    found = binned(np.arange(4), values, 4, 2)
    assert np.isnan(found[0, 0])
    assert found[0, 1] == 3.0
    assert found[1].tolist() == [np.inf, -np.inf]
    assert binned(np.arange(2), np.array([[np.inf], [-np.inf]]), 2, 1).tolist() == [[np.inf]]
    assert binned(np.arange(4), values, 4, 0).shape == (2, 0)
    assert np.isnan(binned(np.arange(0), np.empty((0, 2)), 4, 3)).all()


def test_a_value_that_hardly_changes_looks_like_one():
    flat = 5 + 0.01 * np.sin(np.arange(30.0))[None]
    for log in (True, False):
        assert np.ptp(heights(flat, log=log)) < 0.2
    assert np.ptp(heights(np.geomspace(1, 1000, 30)[None], log=True)) == 1.0


def test_sparklines():
    values = np.array([[0.0, 1.0, 10.0, 100.0, np.inf, NAN], [NAN] * 6, [0.0] * 6, [-1, 0, 1] * 2])
    lines = sparklines(values, log=True)
    assert lines[0] == "▁▁▄▇! "
    assert lines[1] == " " * 6
    assert lines[2] == "▁" * 6
    assert set(sparklines(values, log=False, signs=ASCII)[3]) <= set(ASCII.blocks)
    assert sparklines(np.empty((0, 5)), log=True) == []
    assert sparklines(np.empty((2, 0)), log=True) == ["", ""]


def test_signs_that_a_terminal_knows():
    assert signs_for("UTF-8", "xterm-256color") is UNICODE
    for encoding, terminal in (("ascii", "xterm"), ("latin-1", "xterm"), ("utf-8", "linux")):
        assert signs_for(encoding, terminal) is ASCII
    "".join(vars(ASCII).values()).encode("ascii")
    assert len(UNICODE.blocks) == len(ASCII.blocks)


@pytest.mark.parametrize("exponent", range(-320, 309, 7))
def test_numbers_fit_their_columns(exponent):
    for mantissa in (1.0, -1.0, 9.996, -9.996, 1.2345):
        text = number(float(f"{mantissa}e{exponent}"))
        assert len(text) <= (8 if mantissa > 0 else 9) + (abs(exponent) >= 99)
        assert float(text) == pytest.approx(float(f"{mantissa}e{exponent}"), rel=6e-3)


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\u202eevil", "\x9b2J", "\x00", "\ud800"])
def test_names_are_shown_without_anything_a_terminal_would_obey(text):
    assert shown(text).isprintable()
    assert shown("[red]" + text).startswith("[red]")


def test_words_about_a_run_are_taken_from_anything():
    assert words_about({"model": ["x"], "optimizer": "Ad\x1bam", "seed": 3, "transform": ""}) == (
        "Ad\\x1bam",
        "seed 3",
    )


def test_a_snapshot_of_records_in_memory():
    steps = np.arange(10, 30)
    block = Block(
        ("a", "b"),
        steps,
        {"norm": np.stack([steps, 2 * steps], 1).astype(float)},
        {"loss": steps / 10, "time": steps * 0.5, "noise_scale": np.full(20, NAN)},
    )
    run = snapshot_of(block, title="runs/a", alerts=[alert(layer="b")], width=5)
    assert (run.step, run.covered, run.rate) == (29, (10, 29), 2.0)
    assert run.scalars == {"loss": 2.9, "time": 14.5}
    assert run.history.shape == (2, 5)
    assert run.curves["loss"].shape == (5,)
    assert run.marks.tolist() == [0, 1]
    empty = snapshot_of(Block(("a",), np.empty(0, np.int64), {"norm": np.empty((0, 1))}, {}))
    assert (empty.step, empty.covered, empty.scalars) == (None, None, {})


def test_the_cursor_stays_with_the_layer_it_was_moved_to():
    state, run = State(order=Order("norm")), run_with()
    assert state.follow(run, state.rows(run)) == 0  # never moved: it stays in the first line
    state.move(run, state.rows(run), 1)
    assert state.layer == "h.2.w"
    risen = run_with(layers={"norm": np.array([9.0, 1.0, 3.0])})
    assert state.follow(risen, state.rows(risen)) == 0
    state.words = "nothing"
    assert state.follow(risen, state.rows(risen)) == 0


def test_going_round_the_columns_the_metrics_and_the_windows():
    state, run = State(), run_with()
    seen = []
    for _ in sortable(run):
        seen.append(state.order.column)
        state.sort(run, 1)
    assert seen == [None, "alerts", "layer", "norm", "std"]
    assert state.order == Order()
    state.sort(run, -1)
    assert state.order == Order("std")
    state.next_metric(run, 1)
    assert state.wish.metric == "std"
    windows = []
    for _ in range(4):
        windows.append(state.wish.window)
        state.next_window()
    assert windows == [1000, 10_000, None, 100]


def test_an_alert_leads_to_its_layer_also_through_a_filter():
    state, run = State(words="head"), run_with()
    assert state.reveal(run, "h.2.w")
    assert (state.layer, state.words) == ("h.2.w", "")
    state.words = "head"
    assert state.reveal(run, "head.w")
    assert state.words == "head"  # it hides nothing that is asked for
    assert not state.reveal(run, "gone")
