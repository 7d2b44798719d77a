"""What is in order is quiet, what rules look at, and which numbers they take."""

import numpy as np
import pytest
from rules_streams import block, found, healthy, stream, whole

from gradwise.errors import UserError
from gradwise.watch import rules


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6])
def test_a_healthy_training_is_quiet(seed, sigma):
    assert found(stream(healthy(1500, seed=seed, sigma=sigma))) == []


def test_only_what_compare_records_is_enough_to_be_quiet():
    layers = healthy(1000)
    few = {name: layers[name] for name in ("mean", "norm", "nonfinite")}
    assert found(block(few, {"grad_norm": whole(few["norm"])})) == []
    assert found(block({"norm": few["norm"]})) == []
    assert found(block({}, {"loss": np.ones(100)}, names=())) == []


def test_what_rules_look_at():
    norm = np.array([[3.0, 4.0], [np.nan, 2.0], [np.nan, np.nan], [0.0, np.inf]])
    rates = {"lr": [0.0, 0.0, 0.1, np.nan], "lr/1": [0.0, np.nan, 0.0, np.nan]}
    view = rules.View(block({"norm": norm}, rates), 10)
    assert view.records.tolist() == [10, 11, 12, 13]
    assert view.measured.tolist() == [True, True, False, True]
    assert view.resting.tolist() == [True, True, False, True]
    np.testing.assert_equal(view.whole, [5.0, 2.0, np.nan, np.inf])
    np.testing.assert_equal(view.log_whole, [np.log(5.0), np.log(2.0), np.nan, np.nan])
    np.testing.assert_equal(view.log_norm[3], [np.nan, np.nan])
    np.testing.assert_equal(view.scalar("none"), [np.nan] * 4)
    told = rules.View(block({"norm": norm}, {"grad_norm": [7.0, np.nan, np.nan, 8.0]}), 0)
    np.testing.assert_equal(told.whole, [7.0, 2.0, np.nan, 8.0])
    assert not told.resting.any()


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("Exploding", {"factor": 1.0}, "expected 1 < factor < inf, got factor=1"),
        ("Exploding", {"streak": 0}, "expected streak >= 1, got streak=0"),
        ("Exploding", {"matters": 0}, "expected 0 < matters < inf, got matters=0"),
        ("NonFinite", {"persists": 1}, "expected persists >= 2, got persists=1"),
        ("Vanishing", {"drop": float("nan")}, "expected 0 < drop < 1, got drop=nan"),
        ("Dead", {"calm": 0}, "expected calm >= 1, got calm=0"),
        ("Dead", {"warmup": -1}, "expected warmup >= 0, got warmup=-1"),
        ("LargeUpdates", {"limit": 0}, "expected 0 < limit < inf, got limit=0"),
        ("SmallUpdates", {"small": 2}, "expected 0 < small < 1, got small=2"),
        ("Dominating", {"share": 0.5}, "expected 0.5 < share < 1, got share=0.5"),
        ("AlreadyClipped", {"same": 0}, "expected 0 < same < 1, got same=0"),
        ("NoStep", {"factor": 1}, "expected factor >= 2, got factor=1"),
    ],
)
def test_numbers_out_of_bounds(rule, options, message):
    with pytest.raises(UserError) as caught:
        getattr(rules, rule)(**options)
    assert str(caught.value).startswith(message)


def test_an_action_that_is_none():
    rule = rules.Stale()
    rule.action = "shout"
    with pytest.raises(UserError, match="expected action 'log', 'raise' or a function, got action"):
        rule.__post_init__()
