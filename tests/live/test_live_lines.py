"""The lines of the screen: as wide as it is, whatever is in them; and the same as text or JSON."""

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from gradwise.live.follow import Look
from gradwise.live.layout import COLUMNS, fit
from gradwise.live.lines import ending, plain, wrapped
from gradwise.live.model import Snapshot
from gradwise.live.notebook import summary_html, worst_layers
from gradwise.live.order import Order
from gradwise.live.plain import as_text, as_values
from gradwise.live.rows import (
    alert_line,
    alert_text,
    alert_title,
    detail_line,
    head_line,
    keys_line,
    layer_lines,
)
from gradwise.live.spark import ASCII, UNICODE
from gradwise.live.state import State
from gradwise.live.top import top_lines
from live.live_helpers import METRICS, alert

EVIL = (
    "[red]bold[/red]",
    "\x1b[31mred\x1b[0m",
    "日本語のレイヤー名.weight",
    "a\nb\tc\u202egnp",
    "x" * 200,
    "",
    "\x9b2J\x00",
    "<script>alert(1)</script>",
)


def run_of(names=EVIL, **given):
    some = np.linspace(-3, 3, len(names))
    layers = dict.fromkeys(METRICS, 10.0 ** (5 * some)) | {"mean": -(10.0 ** (5 * some))}
    layers["norm"] = layers["norm"].copy()
    layers["norm"][:2] = (np.nan, np.inf)[: len(names)]
    layers["nonfinite"] = np.where(np.arange(len(names)) == 0, 123456.0, 0.0)
    values = {
        "title": "runs/\x1b]0;evil\x07[bold]",
        "names": tuple(names),
        "step": 123_456_789,
        "scalars": {
            "loss": 0.5,
            "alpha": 0.123,
            "grad_std": 1e-12,
            "grad_norm": np.inf,
            "applied_norm": 1.0,
            "noise_scale": 12345.6,
            "lr": 0.1,
            "lr/1": 1e-7,
            "skipped": 3.0,
            "\x1b[2Jaccuracy": 0.9,
            "transform/threshold": 2.5,
        },
        "curves": {"loss": np.linspace(1, 0, 24), "alpha": np.full(24, np.nan)},
        "layers": layers,
        "metric": "norm",
        "history": np.abs(np.random.default_rng(0).normal(size=(len(names), 24))),
        "covered": (0, 999),
        "alerts": (
            alert("nonfinite", 12, names[0], "error"),
            alert("exploding", 1_234_567, names[-1]),
            alert("old\x1b[31m", 3, None, ended=99),
        ),
        "rate": 1234.5,
        "about": ("Net", "AdamW"),
        "damaged": 2,
    }
    return Snapshot(**(values | given))


def all_lines(run, width, order, words, signs):
    look = Look(run, arrived=0.0)
    layout = fit([*run.layers], width, 200, (order.column, run.metric))
    rows = np.arange(len(run.names))
    yield from top_lines(look, width, 5.0, signs, rows=4, paused=True)
    yield from top_lines(Look(run, trouble="x" * 70), width, 5.0, signs)
    yield head_line(run, layout, order, words, 3, "1,000 steps", signs)
    yield from layer_lines(run, layout, rows, signs)
    for row in (None, *rows.tolist()):
        yield detail_line(run, row, layout, width, signs)
    yield alert_title(run, width, signs)
    for one in run.told:
        yield alert_line(one, width, signs)
        yield from alert_text(one, width)
    yield keys_line(width)


@pytest.mark.parametrize("width", [*range(40, 90), 100, 119, 120, 121, 160, 200, 300])
def test_every_line_has_the_width_of_the_screen_and_nothing_a_terminal_obeys(width):
    order = Order(random.Random(width).choice(["norm", "layer", "alerts", None, "weight_norm"]))
    for signs in (UNICODE, ASCII):
        for line in all_lines(run_of(), width, order, "two words", signs):
            text = plain(line)
            assert text.isprintable(), repr(text)
            assert cell_len(text) <= width, repr(text)


@pytest.mark.parametrize("width", range(1, 40))
def test_a_screen_too_narrow_for_anything_is_no_error(width):
    for line in all_lines(run_of(), width, Order("norm"), "", UNICODE):
        assert plain(line).isprintable()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_titles_stand_above_their_columns(width):
    run = run_of(("a", "b"), alerts=())
    layout = fit([*run.layers], width, 1, ())
    head = plain(head_line(run, layout, Order("std"), "", 2, "9 steps", UNICODE))
    row = plain(layer_lines(run, layout, np.array([1]), UNICODE)[0])
    assert "▼std" in head
    for column in layout.columns:
        end = head.index(column.title) + len(column.title)
        assert row[end - 1] != " "
        assert row[end] == " "
        assert layout.at(head.index(column.title)) == column.metric
    assert layout.at(0) == "alerts"
    assert layout.at(3) == "layer"
    assert layout.at(width - 1) in ("", None)


def test_columns_go_by_importance_when_it_gets_narrow():
    def titles(width, keep=()):
        return [column.title for column in fit(METRICS, width, 25, keep).columns]

    assert titles(60) == ["norm", "std", "update"]
    assert titles(60, ["zeros"]) == ["norm", "std", "zeros"]
    assert titles(40) == ["norm"]
    assert len(titles(120)) == len(METRICS)
    for width in range(40, 200):
        assert set(titles(width)) <= set(titles(width + 1))
        assert fit(METRICS, width, 25).width <= width


@given(st.lists(st.sampled_from([c.metric for c in COLUMNS] + ["mine", "x" * 30])), st.data())
def test_any_set_of_metrics_has_a_layout(metrics, data):
    metrics = list(dict.fromkeys(metrics))
    width, longest = data.draw(st.integers(20, 250)), data.draw(st.integers(0, 120))
    layout = fit(metrics, width, longest)
    assert layout.width <= width
    found = {c.metric for c in layout.columns} | {c.metric for c in layout.hidden}
    assert found == set(metrics)


def test_signs_tell_without_colour():
    run = run_of(("a", "b", "c", "d"))
    layout = fit([*run.layers], 120, 5)
    lines = [plain(line) for line in layer_lines(run, layout, np.arange(4), UNICODE)]
    assert [line[:3] for line in lines] == ["!! ", "   ", "   ", "!  "]
    assert " nan " in lines[0]  # the norm of a gradient with entries that are not finite
    assert " inf " in lines[1]
    title = plain(alert_title(run, 80, UNICODE))
    assert title.startswith("alerts: 2 active, 1 error, 1 over")


def test_layers_without_a_value_have_a_dash():
    run = run_of(("a",), layers={"weight_norm": np.array([np.nan])}, alerts=())
    layout = fit(["weight_norm"], 80, 5)
    assert plain(layer_lines(run, layout, np.array([0]), UNICODE)[0]).split()[:2] == ["a", "-"]


def test_shares_are_100_percent_only_if_they_are_all():
    run = run_of(
        ("a", "b", "c"), layers={"zeros": np.array([0.99999, 1.0, 1e-9])}, alerts=(), metric=None
    )
    layout = fit(["zeros"], 80, 5)
    texts = [plain(line).split()[1] for line in layer_lines(run, layout, np.arange(3), UNICODE)]
    assert texts == ["99.9", "100", "0.1"]


@pytest.mark.parametrize("width", range(1, 12))
def test_an_ending_has_its_width(width):
    for text in ("conv1.weight", "日本語のレイヤー", "a"):
        assert cell_len(ending(text, width, "…")) == width
        assert ending("abc", 2, "…") == "…c"


def test_wrapping_keeps_every_word():
    text = "One sentence, with a very-long-hyphenated word and 日本語のレイヤー名."
    for width in (6, 10, 30):
        lines = wrapped(text, width)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(cell_len(line) <= width for line in lines)


def test_a_run_without_a_transform_has_one_norm_and_no_alpha():
    same = {"alpha": 1.0, "grad_norm": 2.0, "applied_norm": 2.0}
    text = "\n".join(map(plain, top_lines(Look(run_of(scalars=same)), 120, 0.0, UNICODE)))
    assert "grad norm" in text
    assert "alpha" not in text
    differs = "\n".join(
        map(plain, top_lines(Look(run_of(scalars=same | {"alpha": 0.5})), 120, 0.0, UNICODE))
    )
    assert "norm before" in differs
    assert "norm after" in differs
    assert "alpha" in differs


# The same without a screen


def test_plain_text_has_all_layers_and_the_alerts_that_last_with_their_advice():
    names = tuple(f"layer.{i}.weight" for i in range(700))
    look = Look(run_of(names), arrived=0.0)
    text = as_text(look, State(order=Order("layer", True)), 100, 12.0, UNICODE)
    lines = text.splitlines()
    assert all(cell_len(line) <= 100 for line in lines)
    rows = [line for line in lines if line[3:9] == "layer."]
    assert len(rows) == 700
    assert "layer.699.weight" in rows[0]
    assert "The sentence on exploding." in text
    assert "Advice on nonfinite." in text
    assert "Advice on old" not in text  # it is over
    assert "no news for 12 s" in text
    assert "\x1b" not in text


def test_plain_text_before_the_first_step():
    text = as_text(Look(Snapshot("a", ("x",))), State(), 80, 0.0, ASCII)
    assert "waiting: the run has begun, no step is recorded yet" in text
    text.encode("ascii")


def test_values_for_a_program():
    look = Look(run_of(("a", "b", "c")), arrived=2.0)
    values = as_values(look, State(words="a"), 5.0)
    assert (values["state"], values["step"]) == ("live", 123_456_789)
    assert values["seconds_since_last_record"] == 3.0
    assert [row["layer"] for row in values["layers"]] == ["a"]
    row = values["layers"][0]
    assert (row["alert"], row["nonfinite"]) == ("error", 123456)
    assert set(row) == {"layer", "alert", *METRICS}
    assert [one["active"] for one in values["alerts"]] == [True, True, False]
    assert values["alerts"][2]["ended"] == 99
    json.dumps(values)
    assert as_values(Look(waiting="no"), State(), 0.0)["step"] is None


# The notebook


def test_the_notebook_escapes_everything_and_runs_nothing():
    evil = "<img src=x onerror=alert(1)>'\"&\x1b[31m"
    run = run_of(
        (evil, "b"),
        title=evil,
        about=(evil,),
        metric="norm",
        history=np.ones((2, 24)),
        alerts=(alert(evil, 1, evil, "error"),),
    )
    html = summary_html(run)
    assert "<img" not in html
    assert "\x1b" not in html
    assert "<script" not in html
    assert html.count("&lt;img") >= 4
    assert set(re.findall(r"<([a-z]+)", html)) <= {
        *("div", "b", "span", "table", "tr", "td", "th", "code", "svg", "path", "ul", "li")
    }
    for tag in ("div", "b", "span", "table", "tr", "td", "th", "code", "svg", "ul", "li"):
        assert len(re.findall(rf"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag
    assert not re.search(r"url\(|href|src=[^x]|on[a-z]+=[^a]", html.replace(evil, ""))


def test_the_notebook_shows_the_worst_layers():
    names = tuple(f"layer.{i}" for i in range(100))
    layers = {"norm": np.arange(100.0), "nonfinite": (np.arange(100) == 7) * 3.0}
    run = run_of(names, layers=layers, alerts=(alert(layer="layer.3"),))
    assert worst_layers(run, 4) == [3, 7, 99, 98]
    html = summary_html(run)
    assert "layer.3<" in html
    assert "layer.50<" not in html
    assert "92 more" in html
    assert "step 123,456,789" in html


def test_the_notebook_has_no_curve_where_there_are_no_values():
    run = run_of(("a", "b"), history=np.array([[np.nan] * 5, [1.0, np.nan, 2.0, 3.0, np.inf]]))
    paths = re.findall(r"<path d='([^']+)'", summary_html(run))
    assert any(path.count("M") == 2 for path in paths)
    assert "nan" not in "".join(paths)
    assert "no alerts" in summary_html(Snapshot("a", ()))
