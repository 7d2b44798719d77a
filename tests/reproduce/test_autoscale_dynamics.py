"""The std of gradients over training: the smoke run, and claims on made-up records."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from trace_helpers import BLANK, LAYERS, made_up, results, told

from gradwise.errors import UserError
from gradwise.lab.files import read_json
from gradwise.reproduce import load_recipe, reproduce
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from gradwise.reproduce.experiments import _cifar, autoscale_dynamics
from gradwise.reproduce.experiments._dynamics_trends import apart, trends_of
from gradwise.watch.store import load

SETTINGS = {
    **load_recipe("autoscale-dynamics").at("small"),
    "data_dir": None,
    "device": "cpu",
    "models": ["resnet20"],
}


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("dynamics")
    return reproduce("autoscale-dynamics", scale="smoke", out=out, jobs=2, device="cpu")


@pytest.fixture(scope="module")
def recorded(smoke):
    folder = smoke["cells"]["digits-resnet"]["folder"]
    return _cifar.traces(smoke["settings"], "digits-resnet", folder)


def test_the_global_std_falls_as_the_digits_are_learnt(recorded):
    assert {method: len(ones) for method, ones in recorded.items()} == {"sgd": 2, "autoscale": 2}
    for ones in recorded.values():
        for one in ones:
            assert one.steps.tolist() == list(range(80))
            assert one.sigma[-8:].mean() < one.sigma[:8].mean() / 3
            assert one.loss[-8:].mean() < one.loss[:8].mean() / 3


def test_layers_fall_apart(recorded):
    for ones in recorded.values():
        found = trends_of(ones, 20)
        assert found is not None
        assert len(found.layers) == 12
        assert min(apart(found.change)) > math.log10(1.1)


def test_the_smoke_run_says_so(smoke):
    claims = smoke["claims"]
    assert [claim["verdict"] for claim in claims][1:] == [REPRODUCED] * 2
    assert claims[0]["verdict"] != NOT_REPRODUCED  # two seeds make wide intervals
    assert [row[:2] for row in smoke["tables"][0]["rows"]] == [
        ["digits-resnet", "sgd"],
        ["digits-resnet", "autoscale"],
    ]
    folder = Path(smoke["cells"]["digits-resnet"]["folder"]).parents[1]
    assert {path.name for path in folder.glob("*.svg")} == {"layer-std.svg", "global-std.svg"}


def test_records_hold_what_autoscale_itself_measured(recorded):
    """sigma of (1.3) from the layers' records gives the recorded factor by the rule "trend"."""
    for one in recorded["autoscale"]:
        memory = math.log(one.sigma[0])
        for step, (sigma, alpha) in enumerate(zip(one.sigma, one.alpha, strict=True), start=1):
            assert alpha == pytest.approx(min(1.0, math.exp(memory) / sigma), rel=1e-4)
            memory += (math.log(sigma) - memory) / math.sqrt(step)
    assert all((one.alpha == 1).all() for one in recorded["sgd"])


def test_only_tensors_that_the_transforms_work_on(recorded):
    one = recorded["sgd"][0]
    assert all(name.endswith(".weight") and "bn" not in name for name in one.layers)
    assert one.numel[0] == 8 * 9  # 8 kernels of 3x3 on one channel


def test_records_that_cannot_be_used(smoke, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(smoke["cells"]["digits-resnet"]["folder"], folder)
    with pytest.raises(UserError, match="is not one of mlp"):
        _cifar.traces(smoke["settings"], "mlp", str(folder))
    watch = folder / "trials/sgd/seed-0/watch"
    (part,) = load(watch).files("layers")
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(UserError, match="is damaged"):
        _cifar.traces(smoke["settings"], "digits-resnet", str(folder))
    shutil.rmtree(watch)
    with pytest.raises(UserError, match="expected a record of digits-resnet, sgd, seed 0"):
        _cifar.traces(smoke["settings"], "digits-resnet", str(folder))


def test_the_trials_are_as_the_recipe_says(smoke):
    config = read_json(Path(smoke["cells"]["digits-resnet"]["folder"]) / "config.json")
    for name in ("epochs", "batch_size", "lr", "momentum", "augment", "limit_train"):
        assert config["settings"][name] == smoke["settings"][name], name
    assert config["baseline"] == "sgd"


# --- conclusions from made-up records ---


def conclude(monkeypatch, by_model, drawn=False, **settings):
    monkeypatch.setattr(autoscale_dynamics, "traces", told(by_model))
    if not drawn:
        for name in ("layer_std", "global_std"):
            monkeypatch.setattr(autoscale_dynamics, name, lambda found: BLANK)
    return autoscale_dynamics.conclude({**SETTINGS, **settings}, results(by_model))


def verdicts(monkeypatch, std, seeds=4, **settings):
    ones = [made_up(seed, std) for seed in range(seeds)]
    found = conclude(monkeypatch, {"resnet20": {"sgd": ones, "autoscale": ones}}, **settings)
    return [claim.verdict for claim in found.claims]


def falling(time, layer):
    return 10.0 ** -(time * (1 + layer / LAYERS))


def test_what_the_paper_says_is_reproduced(monkeypatch):
    assert verdicts(monkeypatch, falling) == [REPRODUCED] * 3


@pytest.mark.parametrize(
    ("std", "expected"),
    [
        (lambda time, layer: 1 / falling(time, layer), [NOT_REPRODUCED, NOT_REPRODUCED, None]),
        # A step down at once: it falls, and then stays.
        (lambda time, layer: np.where(time < 0.1, 1.0, 0.1), [REPRODUCED, NOT_REPRODUCED, None]),
        # All alike.
        (lambda time, layer: 10.0**-time, [REPRODUCED, REPRODUCED, NOT_REPRODUCED]),
    ],
)
def test_what_is_otherwise_is_not(monkeypatch, std, expected):
    found = verdicts(monkeypatch, std)
    for verdict, wanted in zip(found, expected, strict=True):
        assert wanted in (None, verdict)


def test_one_seed_settles_nothing(monkeypatch):
    assert verdicts(monkeypatch, falling, seeds=1) == [INCONCLUSIVE] * 3


def test_one_model_without_the_effect_is_enough(monkeypatch):
    good = [made_up(seed, falling) for seed in range(4)]
    bad = [made_up(seed, lambda time, layer: 1 + time) for seed in range(4)]
    by_model = {
        "resnet20": {"sgd": good, "autoscale": good},
        "vgg16bn": {"sgd": bad, "autoscale": good},
    }
    found = conclude(monkeypatch, by_model, drawn=True)
    assert [picture.name for picture in found.pictures] == ["layer-std", "global-std"]
    assert [claim.verdict for claim in found.claims] == [NOT_REPRODUCED] * 3
    assert "VGG-16-BN 0.5" in found.claims[0].measured
    assert any("ResNet-56 took no part" in note for note in found.notes)
    assert [len(table.rows) for table in found.tables] == [4, 4]
    assert "× " in found.tables[1].rows[0][3]


def test_trainings_that_diverged_are_left_out_and_named(monkeypatch):
    ones = [made_up(seed, falling) for seed in range(3)]
    ones.append(made_up(3, lambda time, layer: 1 + 1e6 * time, ended="diverged", steps=4))
    ones.append(made_up(4, lambda time, layer: np.where(time > 0.5, math.nan, 1.0)))
    found = conclude(monkeypatch, {"resnet20": {"sgd": ones, "autoscale": ones[:3]}}, drawn=True)
    assert [claim.verdict for claim in found.claims] == [REPRODUCED] * 3
    assert "n = 3" in found.claims[0].measured
    assert any("ResNet-20 with sgd, seed 3, 4" in note for note in found.notes)


def test_nothing_but_diverged_trainings(monkeypatch):
    ones = [made_up(seed, falling, ended="diverged") for seed in range(3)]
    found = conclude(monkeypatch, {"resnet20": {"sgd": ones, "autoscale": ones}}, drawn=True)
    assert [claim.verdict for claim in found.claims] == [INCONCLUSIVE] * 3
    assert "nothing to judge" in found.claims[0].measured


def test_a_layer_that_dies_is_left_out_of_the_layers(monkeypatch):
    def dying(time, layer):
        return np.where((layer == 2) & (time > 0.5), 0.0, falling(time, layer))

    ones = [made_up(seed, dying) for seed in range(4)]
    found = trends_of(ones, 20)
    assert found is not None
    assert "layer2.weight" not in found.layers
    assert len(found.layers) == LAYERS - 1
    assert np.isfinite(found.spread).all()
    assert verdicts(monkeypatch, dying) == [REPRODUCED] * 3


def test_the_numbers_are_those_of_the_definition():
    one = made_up(0, lambda time, layer: 10.0**-time)
    found = trends_of([one], 20)
    assert found is not None
    assert found.fall[0] == pytest.approx(0.91, abs=0.02)  # middles of the tenths: 0.045 and 0.955
    assert found.lower[0] == 1.0
    assert found.change[0] == pytest.approx([-0.91] * LAYERS, abs=0.02)
    assert one.sigma == pytest.approx(np.sqrt((one.std**2).mean(axis=1)))


def test_chance_alone_takes_no_layers_apart():
    """Cross-fitted: 0 on average where layers differ by noise only."""
    generator = np.random.default_rng(0)
    means = [np.mean(apart(generator.normal(size=(4, 20)))) for _ in range(300)]
    assert abs(np.mean(means)) < 3 * np.std(means) / math.sqrt(len(means))
    assert apart(np.zeros((1, 5))) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"record_every": 0}, "got record_every=0"),
        ({"stretches": 5}, "expected stretches >= 10, got stretches=5"),
        ({"steady": 1.0}, "got steady=1"),
        ({"negligible": 0.5}, "got negligible=0.5"),
        ({"epochs": 1}, "expected at least stretches=20 records a training, got 8"),
        ({"models": []}, "expected at least one model"),
        ({"lr": -1.0}, "got lr=-1"),
    ],
)
def test_settings_out_of_bounds(changed, words):
    with pytest.raises(UserError, match=words):
        autoscale_dynamics.comparisons({**SETTINGS, **changed})


def test_data_of_unknown_shape(tmp_path):
    with pytest.raises(UserError, match="got data='mine:load'"):
        _cifar.traces({"data": "mine:load"}, "mlp", str(tmp_path))
