"""The same records give the same alerts however they are cut, and nothing in them does harm."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules_streams import LAYER_METRICS, block, found, healthy, whole

from gradwise.watch import rules

NAMES = ("conv.weight", "conv.bias", "mid.weight", "norm.weight", "norm.bias", "head.weight")


@np.errstate(all="ignore")
def infected(seed):
    """A healthy stream with troubles of all kinds at random places."""
    random = np.random.default_rng(seed)
    steps = int(random.integers(50, 500))
    layers = healthy(steps, seed=seed, sigma=random.choice([0.05, 0.4]))
    scalars = {"lr": np.full(steps, 0.1), "backwards": np.ones(steps)}
    for _ in range(random.integers(1, 7)):
        first = int(random.integers(0, steps)) * int(random.random() < 0.7)
        span = slice(first, first + int(random.integers(1, 400)))
        which = random.random(6) < random.choice([0.2, 0.5, 1.0])
        kind = random.choice(
            [
                "factor",
                "dead",
                "stale",
                "nan",
                "missing",
                "ratio",
                "small",
                "clip",
                "rate",
                "backwards",
            ]
        )
        if kind == "factor":
            factor = 10.0 ** random.integers(-7, 7)
            which = random.integers(0, 6) if random.random() < 0.5 else which
            for metric in ("norm", "mean"):
                layers[metric][span, which] *= factor
        elif kind == "dead":
            layers["norm"][span, which], layers["zeros"][span, which] = 0.0, 1.0
        elif kind == "stale":
            for metric in ("norm", "mean"):
                layers[metric][span] = layers[metric][first]
        elif kind == "nan":
            layers["nonfinite"][span, which] = 1.0
            layers["norm"][span, which] = random.choice([np.nan, np.inf])
        elif kind == "missing":
            for metric in layers:
                layers[metric][span] = np.nan
        elif kind == "ratio":
            layers["update_ratio"][span, which] *= 10.0 ** random.integers(-6, 4)
            layers["update_ratio"][span, which] *= random.random() < 0.7
        elif kind == "small":
            layers["update_ratio"][:, which] *= 1e-6
        elif kind == "clip":
            factor = random.choice([1.0, 2.0**-16]) / whole(layers["norm"])[span, None]
            layers["norm"][span] *= np.nan_to_num(factor, posinf=1.0)
        elif kind == "rate":
            scalars["lr"][span] = 0.0
        else:
            scalars["backwards"][span] = 0.0
    scalars["grad_norm"] = whole(layers["norm"])
    kept = {name: values for name, values in layers.items() if random.random() < 0.9}
    kept = kept or {"norm": layers["norm"]}
    return block(kept, scalars, names=NAMES, first=int(random.integers(0, 1000)))


def told(alerts):
    """All but the last digits of values, which depend on how processors round."""
    return [(a.rule, a.step, a.layer, a.message, a.ended, f"{a.value:.9g}") for a in alerts]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 100), min_size=1, max_size=6))
def test_blocks_of_any_cut_give_the_same_alerts(seed, sizes):
    stream = infected(seed)
    at_once = told(found(stream, sizes=[1000]))
    assert told(found(stream, sizes=[1])) == at_once
    assert told(found(stream, sizes=sizes)) == at_once


def test_the_streams_do_have_every_trouble():
    spoke = {alert.rule for seed in range(150) for alert in found(infected(seed))}
    assert spoke == {rule.name for rule in rules.default_rules()} - {"no-step"}


NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0, 1e-300, 1e300, 5e-324])


@given(st.data(), st.integers(1, 3), st.integers(1, 12))
def test_no_number_does_harm(data, width, steps):
    metrics = data.draw(st.sets(st.sampled_from(LAYER_METRICS)))
    column = st.lists(NUMBERS, min_size=steps, max_size=steps)
    layers = {m: np.array([data.draw(column) for _ in range(width)]).T for m in metrics}
    scalars = {
        m: data.draw(column)
        for m in ("grad_norm", "lr", "backwards", "loss")
        if data.draw(st.booleans())
    }
    names = [f"l{i}" for i in range(width)]
    stream = block(layers, scalars, names=names, steps=range(steps))
    eager = [
        rules.NonFinite(), rules.Exploding(streak=1), rules.Vanishing(streak=1, warmup=0),
        rules.Dead(streak=1), rules.Frozen(streak=1, never=1), rules.LargeUpdates(streak=1),
        rules.SmallUpdates(streak=1, warmup=0), rules.Dominating(streak=1, warmup=0),
        rules.ClippedBeforeUnscale(streak=1), rules.AlreadyClipped(streak=1), rules.Stale(streak=1),
    ]  # fmt: skip
    for alert in found(stream, eager, sizes=[7]):  # asserts that no rule failed
        assert alert.message.endswith(".")
        assert "nan" not in alert.message
        assert alert.step in range(steps)


def test_an_empty_block_is_nothing():
    stream = infected(0)
    empty = block({"norm": np.zeros((0, 6))}, {}, names=NAMES, steps=[])
    engine = rules.Rules()
    assert engine.look(empty) == []
    engine.look(stream)
    engine.look(empty)
    engine.close()
    assert engine.errors == 0


@pytest.mark.parametrize(
    "rule", [r for r in rules.default_rules() if r.name != "no-step"], ids=lambda r: r.name
)
def test_a_flapping_signal_gives_few_alerts(rule):
    """Every signal a rule looks at jumps between bad and calm, at all speeds."""
    for period in (2, 5, 13, 40, 90, 250):
        layers, steps = healthy(6000, sigma=0.05), np.arange(6000)
        on = steps // period % 2 == 1
        name = rule.name
        if name == "non-finite":
            layers["nonfinite"][on, 2] = 1
        elif name == "exploding":
            layers["norm"][on] *= 1e4
        elif name == "vanishing":
            layers["norm"][on, 2] *= 1e-8
            layers["update_ratio"][:] = np.nan
        elif name == "dead":
            layers["zeros"][on, 2] = 1.0
        elif name in ("frozen", "large-updates", "small-updates"):
            bad = {"frozen": 0.0, "large-updates": 0.5, "small-updates": 1e-9}[name]
            on = steps // (10 * period) % 2 == 1
            layers["update_ratio"][:, 2] = np.where(on, bad, 2e-7)
            layers["update_ratio"][steps % 10 != 0] = np.nan
        elif name == "dominating":
            layers["norm"][on, 2] *= 1e3
        elif name in ("clipped-before-unscale", "already-clipped"):
            bound = 1.0 if name == "already-clipped" else 2.0**-16
            layers["norm"][on] *= (bound / whole(layers["norm"]))[on, None]
        else:
            for metric in ("norm", "mean"):
                layers[metric][on] = layers[metric][0]
        stream = block(layers, {"grad_norm": whole(layers["norm"])})
        alerts = found(stream, [rule])
        assert len(alerts) <= 14, period
