"""What layers are multiplied with: the smoke run, and claims on made-up records."""

import math

import numpy as np
import pytest
from trace_helpers import BLANK, LAYERS, made_up, results, told

from gradwise.errors import UserError
from gradwise.reproduce import load_recipe, reproduce
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from gradwise.reproduce.experiments import _cifar, znorm_amplification
from gradwise.reproduce.experiments._amplification_factors import factors
from gradwise.watch.store import load

SETTINGS = {
    **load_recipe("znorm-amplification").at("small"),
    "data_dir": None,
    "device": "cpu",
}


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("amplification")
    return reproduce("znorm-amplification", scale="smoke", out=out, jobs=2, device="cpu")


@pytest.fixture(scope="module")
def recorded(smoke):
    folder = smoke["cells"]["digits-resnet"]["folder"]
    return _cifar.traces(smoke["settings"], "digits-resnet", folder)


def test_znorm_amplifies_layers_unevenly(recorded):
    for one in recorded["znorm"]:
        found = factors(one, "znorm")
        assert 10**found.ratio > 20
        assert found.ends[0] > 5
        assert found.ends[1] > 500


def test_autoscale_amplifies_none_and_dampens_some(recorded):
    for one in recorded["autoscale"]:
        found = factors(one, "autoscale")
        assert found.by_layer.max() <= 1
        assert found.by_layer.min() < 0.99
        assert found.ratio == 0


def test_the_smoke_run_says_so(smoke):
    verdicts = [claim["verdict"] for claim in smoke["claims"]]
    assert verdicts == [REPRODUCED, INCONCLUSIVE, REPRODUCED]  # no two models to compare
    assert smoke["claims"][1]["measured"] == "no other model took part"


@pytest.mark.parametrize("method", ["znorm", "autoscale"])
def test_factors_explain_the_gradients_after_the_transform(smoke, recorded, method):
    """The norm of what was applied follows from the factors, and so they are the true ones."""
    folder = smoke["cells"]["digits-resnet"]["folder"]
    for one in recorded[method]:
        run = load(f"{folder}/trials/{method}/seed-{one.seed}/watch")
        norms = run.metric("norm")[1].astype(np.float64)
        rest = [place for place, name in enumerate(run.layer_names) if name not in one.layers]
        by_layer = factors(one, method).by_layer
        others = by_layer[:, :1] if method == "autoscale" else 1.0  # biases and norm layers
        total = ((by_layer * one.std) ** 2) @ one.numel
        total += ((others * norms[:, rest]) ** 2).sum(axis=1)
        applied = run.steps.column("applied_norm").to_numpy()
        assert np.sqrt(total) == pytest.approx(applied, rel=1e-4)


# --- conclusions from made-up records ---


def constant(spread):
    """Layers whose std differ by so many powers of ten."""
    return lambda time, layer: 0.1 * 10.0 ** (-spread * layer / (LAYERS - 1))


def model(spread, alpha=0.9, seeds=4, **others):
    znorm = [made_up(seed, constant(spread + 0.01 * seed), **others) for seed in range(seeds)]
    scaled = [made_up(seed, constant(spread), alpha=alpha) for seed in range(seeds)]
    return {"znorm": znorm, "autoscale": scaled}


def conclude(monkeypatch, by_model, drawn=False, **settings):
    monkeypatch.setattr(znorm_amplification, "traces", told(by_model))
    if not drawn:
        monkeypatch.setattr(znorm_amplification, "_picture", lambda found: BLANK)
    return znorm_amplification.conclude({**SETTINGS, **settings}, results(by_model))


@pytest.mark.parametrize(
    ("spreads", "alpha", "expected"),
    [
        ((1.5, 1.7, 3.0), 1.0, [REPRODUCED, REPRODUCED, REPRODUCED]),
        ((0.5, 1.7, 3.0), 1.0, [NOT_REPRODUCED, REPRODUCED, REPRODUCED]),
        ((1.5, 3.5, 3.0), 1.0, [REPRODUCED, NOT_REPRODUCED, REPRODUCED]),
        ((1.5, 3.0, 3.0), 1.0, [REPRODUCED, NOT_REPRODUCED, REPRODUCED]),
        ((1.5, 1.7, 3.0), 1.0 + 1e-6, [REPRODUCED, REPRODUCED, NOT_REPRODUCED]),
    ],
)
def test_claims(monkeypatch, spreads, alpha, expected):
    names = ("resnet20", "resnet56", "vgg16bn")
    by_model = {name: model(spread) for name, spread in zip(names, spreads, strict=True)}
    by_model["resnet20"] = model(spreads[0], alpha=[0.5] * 99 + [alpha])
    if spreads[1] == spreads[2]:  # the same trainings: no difference at all
        by_model["resnet56"] = by_model["vgg16bn"]
    found = conclude(monkeypatch, by_model)
    assert [claim.verdict for claim in found.claims] == expected
    assert len(found.tables[0].rows) == 9


def test_the_words_say_how_far(monkeypatch):
    found = conclude(monkeypatch, {"resnet20": model(2.0), "vgg16bn": model(3.0)}, drawn=True)
    assert found.pictures[0].name == "factors"
    assert "ResNet-20 10" in found.claims[0].measured  # a hundred and a few
    assert "VGG-16-BN over that of ResNet-20 9." in found.claims[1].measured or (
        "VGG-16-BN over that of ResNet-20 10" in found.claims[1].measured
    )
    row = found.tables[0].rows[0]
    assert row[:3] == ("ResNet-20", "znorm", "10")
    assert row[-1] == "layer7.weight"
    control = found.tables[0].rows[2]
    assert control[1] == "znorm, on autoscale's gradients"
    assert control[4].startswith("1")
    assert control[4] != row[4]
    assert any("ResNet-20 4.95 to 4.05" in note for note in found.notes)
    assert any("ResNet-56 took no part" in note for note in found.notes)


def test_seeds_that_disagree_settle_nothing(monkeypatch):
    mixed = {**model(2.0), "znorm": [made_up(s, constant(2.0 + (-1) ** s)) for s in range(4)]}
    found = conclude(monkeypatch, {"resnet20": model(2.0), "vgg16bn": mixed})
    assert found.claims[1].verdict == INCONCLUSIVE


def test_without_the_worst_model_nothing_is_said_of_it(monkeypatch):
    found = conclude(monkeypatch, {"resnet20": model(2.0)})
    assert found.claims[1].verdict == INCONCLUSIVE
    assert "nothing to judge" in found.claims[1].measured


def test_diverged_and_empty_trainings(monkeypatch):
    """What was recorded up to a divergence counts; a training without a record says nothing."""
    broken = model(2.0)
    cut = made_up(0, lambda time, layer: np.where(time < 0.5, constant(2.0)(time, layer), np.nan))
    broken["znorm"][0] = cut
    broken["znorm"][1] = made_up(1, constant(2.0), ended="diverged", steps=0)
    broken["autoscale"] = [
        made_up(seed, constant(2.0), alpha=math.nan, ended="diverged") for seed in range(2)
    ]
    found = conclude(monkeypatch, {"resnet20": broken}, drawn=True)
    assert "n = 3" in found.claims[0].measured
    assert found.claims[0].verdict == REPRODUCED
    assert found.claims[2].verdict == INCONCLUSIVE
    assert found.claims[2].measured == "no factor was recorded"
    assert any("ResNet-20 with znorm, seed 1, diverged" in note for note in found.notes)


def test_a_dead_layer_has_no_factor():
    one = made_up(0, lambda time, layer: 0.0 if layer == 3 else 0.5)
    found = factors(one, "znorm")
    assert np.isnan(found.by_layer[:, 3]).all()
    assert found.ratio is not None
    assert 10**found.ratio < 1.2
    assert math.isnan(found.profile[3])


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"record_every": 0}, "got record_every=0"), ({"far": 1.0}, "expected far > 1, got far=1")],
)
def test_settings_out_of_bounds(changed, words):
    with pytest.raises(UserError, match=words):
        znorm_amplification.comparisons({**SETTINGS, **changed})
