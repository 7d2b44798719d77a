"""Which rows are sent, and what is in them."""

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.sinks import Sink, SinkFeed


def block(steps, layers=None, scalars=None, names=("w",)):
    return Block(names, np.asarray(steps), layers or {}, scalars or {})


def rows(collector, play, records, **wishes):
    sink = collector(**wishes)
    play(sink, records)
    return {step: values for step, values, _ in sink.rows}


def test_a_row_every_so_many_steps_and_one_at_the_end(collector, play, blocks) -> None:
    found = rows(collector, play, blocks(), every=10)
    assert list(found) == [0, 10, 20, 30, 39]
    assert found[20] == {
        "grad/norm": 20,
        "grad/applied/norm": 10,
        "grad/noise_scale": 13,  # the latest since the row before
        "grad/nonfinite": 2,  # of step 15, in both layers
        "lr": 0.1,
        "lr/1": 0.2,
        "loss": 980,
        "grad/layer/body.weight/norm": 20,
        "grad/layer/head.bias/norm": pytest.approx(20.1),
        "grad/layer/body.weight/std": 120,
        "grad/layer/head.bias/std": pytest.approx(120.1),
    }
    assert "grad/noise_scale" not in found[0]
    assert found[39]["grad/norm"] == 39
    assert found[39]["grad/noise_scale"] == 33


@pytest.mark.parametrize("size", [1, 7, 10, 16, 64])
def test_where_blocks_end_makes_no_difference(collector, play, blocks, size) -> None:
    whole = rows(collector, play, blocks(size=1000), every=6, layer_metrics=["update_ratio"])
    assert rows(collector, play, blocks(size=size), every=6, layer_metrics=["update_ratio"]) == (
        whole
    )


def test_what_is_measured_in_turns_is_complete(collector, play, blocks) -> None:
    found = rows(collector, play, blocks(), every=10, layer_metrics=["update_ratio"])
    assert [step for step in found if "grad/layer/head.bias/update_ratio" in found[step]] == [
        10,
        20,
        30,
        39,
    ]
    assert found[30]["grad/layer/head.bias/update_ratio"] == pytest.approx(21.1)
    assert found[30]["grad/layer/body.weight/update_ratio"] == 30
    # At step 0 only the first layer had its turn; the other is left out, not sent as NaN.
    assert "grad/layer/body.weight/update_ratio" in found[0]
    assert "grad/layer/head.bias/update_ratio" not in found[0]


def test_a_run_that_records_every_seventh_step_is_sampled_as_densely(collector, play) -> None:
    steps = np.arange(0, 101, 7)
    found = rows(collector, play, [block(steps, scalars={"grad_norm": steps * 1.0})], every=10)
    assert list(found) == [0, 14, 21, 35, 42, 56, 63, 70, 84, 91, 98]


def test_layers_are_sent_as_often_as_they_can_be_without_a_flood(collector, play) -> None:
    names = tuple(f"layer{i}" for i in range(500))
    norm = np.ones((201, 500))
    records = [block(np.arange(201), {"norm": norm, "std": norm}, {"grad_norm": norm[:, 0]}, names)]
    found = rows(collector, play, records)
    with_layers = [step for step, values in found.items() if len(values) > 1]
    assert len(found) == 21
    assert with_layers == [0, 100, 200]
    assert len(found[100]) == 1 + 2 * 500
    found = rows(collector, play, records, layers_every=50, layers="layer[0-4]")
    assert [step for step, values in found.items() if len(values) == 1 + 2 * 5] == [
        0,
        50,
        100,
        150,
        200,
    ]
    found = rows(collector, play, records, layers="layer12?")
    assert [step for step, values in found.items() if len(values) == 1 + 2 * 10] == list(
        range(0, 201, 10)
    )


def test_layers_and_scalars_by_pattern(collector, play, blocks) -> None:
    found = rows(
        collector,
        play,
        blocks(),
        layers=["*.bias", "tail.*"],
        layer_metrics=["norm"],
        scalars=["grad/applied/*", "lr"],
    )
    assert set(found[10]) == {"grad/applied/norm", "lr", "grad/layer/head.bias/norm"}
    found = rows(collector, play, blocks(), layer_metrics=[], scalars="lr")
    assert set(found[10]) == {"lr"}
    assert rows(collector, play, blocks(), layer_metrics=[], scalars=[]) == {}


def test_a_metric_that_a_run_does_not_have_is_left_out(collector, play, blocks) -> None:
    found = rows(collector, play, blocks(), layer_metrics=["cosine", "norm"], scalars=[])
    assert set(found[10]) == {"grad/layer/body.weight/norm", "grad/layer/head.bias/norm"}


def test_nan_is_not_sent_and_infinite_is(collector, play) -> None:
    steps = np.arange(3)
    record = block(
        steps,
        {"norm": np.array([[1.0], [np.inf], [np.nan]])},
        {"grad_norm": np.array([1.0, np.nan, np.inf]), "loss": np.full(3, np.nan)},
    )
    found = rows(collector, play, [record], every=1, layer_metrics=["norm"])
    assert found == {
        0: {"grad/norm": 1, "grad/layer/w/norm": 1},
        1: {"grad/layer/w/norm": np.inf},
        2: {"grad/norm": np.inf},
    }


def test_nonfinite_counts_what_happened_between_rows(collector, play) -> None:
    bad = np.zeros((20, 2))
    bad[[3, 4, 17], [0, 1, 1]] = 5, 6, 7
    bad[12] = np.nan  # not measured
    record = block(np.arange(20), {"nonfinite": bad}, names=("a", "b"))
    found = rows(collector, play, [record], layer_metrics=[])
    assert found == {
        0: {"grad/nonfinite": 0},
        10: {"grad/nonfinite": 11},
        19: {"grad/nonfinite": 7},
    }


def test_rows_have_the_time_of_their_step(collector, play, blocks) -> None:
    sink = collector()
    play(sink, blocks())
    assert [time for _, _, time in sink.rows] == [1e9, 1e9 + 10, 1e9 + 20, 1e9 + 30, 1e9 + 39]


def test_layers_that_join_later(collector, play) -> None:
    one, two = np.ones((10, 1)), np.full((10, 2), 2.0)
    records = [
        block(np.arange(10), {"norm": one}, names=("a",)),
        block(np.arange(10, 20), {"norm": two}, names=("a", "b")),
    ]
    found = rows(collector, play, records, layer_metrics=["norm"])
    assert list(found) == [0, 9, 10, 19]
    assert found[9] == {"grad/layer/a/norm": 1}
    assert found[10] == {"grad/layer/a/norm": 2, "grad/layer/b/norm": 2}


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"every": 0}, "expected every >= 1, got every=0"),
        ({"layers_every": -1}, "expected layers_every >= 1, got layers_every=-1"),
        ({"layer_metrics": ["nrom"]}, "got 'nrom'; did you mean 'norm'"),
    ],
)
def test_wishes_that_cannot_be_met(collector, wishes, message) -> None:
    with pytest.raises(UserError, match=message):
        collector(**wishes)


def test_a_subclass_may_set_attributes_instead(play, blocks) -> None:
    class Bare(Sink):
        every = 20
        layer_metrics = ()
        scalars = "grad/norm"  # a lone pattern, not its letters

        def __init__(self):
            self.rows = []

        def write(self, step, values, time):
            self.rows.append((step, values))

    sink = Bare()
    play(sink, blocks())
    assert sink.rows == [(0, {"grad/norm": 0}), (20, {"grad/norm": 20}), (39, {"grad/norm": 39})]

    class Wrong(Sink):
        every = 0

    with pytest.raises(UserError, match="every=0"):
        SinkFeed(Wrong.__new__(Wrong))
