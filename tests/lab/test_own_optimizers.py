"""The optimizers of gradwise as methods of a comparison."""

import json

import pytest
import torch
from lab_helpers import make_trial, numbers, recorded, run_inline, tiny

from gradwise import registry
from gradwise.attach import attachment_of
from gradwise.errors import UserError
from gradwise.lab import compare as compare_module
from gradwise.lab.compare import compare_methods
from gradwise.lab.methods import make_optimizer, resolve, usual_lr
from gradwise.lab.settings import Settings
from gradwise.registry import Method

FIRST_ORDER = ["sgdf", "hgm", "adamomentum", "adarem", "adagradota", "adamota"]
SOLVING = ["implicitsgd", "reng", "ring"]
PUBLISHED = {"sgdf": 0.5, "hgm": 1e-3, "adamomentum": 1e-3, "adarem": 0.1, "implicitsgd": 0.5}


# The registry


@pytest.mark.parametrize("name", ["gw-sgd", "gw-adamw", *FIRST_ORDER, *SOLVING, "rkalman"])
def test_the_registry_knows_them(name):
    method = registry.lookup(name)
    assert method.kind == "optimizer"
    for told in (method.summary, method.paper, method.equation, method.tag):
        assert told
    assert method.url.startswith("https://")
    assert method.signature().startswith(f"{name}(lr=")
    hidden = ("params", "model", "transform", "foreach", "fused", "maximize", "capturable")
    for word in (*hidden, "differentiable"):
        assert f"{word}=" not in method.signature()
        assert f"{word}," not in method.signature()


def test_text_gives_numbers_and_nothing_else():
    made = registry.build("sgdf(gamma=1.0, betas=(0.5, 0.9))")
    optimizer = made([torch.nn.Parameter(torch.zeros(2))], lr=0.25)
    group = optimizer.param_groups[0]
    assert (group["gamma"], tuple(group["betas"]), group["lr"]) == (1.0, (0.5, 0.9), 0.25)
    assert type(optimizer) is registry.lookup("sgdf").factory
    for text in ("sgdf(foreach=True)", "sgdf(params=[])", "sgdf(transform=None)", "sgdf(gama=1)"):
        with pytest.raises(UserError, match="method 'sgdf' takes lr, betas, eps, gamma"):
            registry.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sgdf(betas=(0.9,1.5))", "got betas[1]=1.5"),
        ("hgm(beta_s=1.5)", "got beta_s=1.5"),
        ("adarem(lam=-1)", "lam"),
        ("implicitsgd(max_inner=0)", "got max_inner=0"),
        ("reng(damping=-1.0)", "damping"),
        ("sgdf(gamma=-1.0)", "got gamma=-1.0"),
    ],
)
def test_a_wrong_argument_is_told_when_the_text_is_read(text, told):
    with pytest.raises(UserError) as caught:
        registry.build(text)
    assert str(caught.value).startswith(f"method {text!r}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        resolve(text, "sgd")


# What a name means


def test_names_arguments_and_transforms():
    arm = resolve("hgm( gamma = 0.3 ) + autoscale", "sgd")
    assert arm.name == "hgm(gamma=0.3)+autoscale"
    assert (arm.optimizer, arm.options) == ("hgm", {"gamma": 0.3})
    assert [type(t).__name__ for t in arm.transform.transforms] == ["Autoscale"]
    assert "; then " in arm.summary
    assert "Hindsight-Guided Momentum" in arm.paper
    assert not arm.plain
    plain = resolve("sgdf", "adamw")
    assert (plain.optimizer, plain.options, plain.transform.transforms) == ("sgdf", {}, ())
    assert plain.summary == registry.lookup("sgdf").summary
    assert plain.tag == registry.lookup("sgdf").tag
    assert resolve("center", "sgdf").optimizer == "sgdf"
    assert Settings(optimizer="sgdf").optimizer == "sgdf"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("adagradot", "did you mean 'adagradota'"),
        ("clip+sgdf", "optimizer first"),
        ("adamw+sgdf", "optimizer first"),
        ("sgdf(lr=0.1)", "learning rates are given with --lr and not in brackets"),
        ("sgdf(lr=0.5)", "learning rates are given with --lr and not in brackets"),
        ("rkalman", "it needs the residuals of a regression"),
        ("rkalman+clip", "it needs the residuals of a regression"),
        ("sgdf(foreach=True)", "got 'foreach'"),
        ("sgdf(", "expected methods such as"),
        ("sgdf(gamma=__import__('os'))", "expected a method such as"),
    ],
)
def test_a_wrong_method_gets_one_sentence(spec, told):
    with pytest.raises(UserError) as caught:
        resolve(spec, "sgd")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_default_optimizer_is_compared_with_all_names():
    with pytest.raises(UserError, match="did you mean 'adarem'"):
        Settings(optimizer="adaren")
    with pytest.raises(UserError, match="residuals"):
        Settings(optimizer="rkalman")


@pytest.mark.parametrize(("name", "rate"), PUBLISHED.items())
def test_the_learning_rate_is_the_published_one(name, rate):
    assert usual_lr(name) == rate
    assert Settings().learning_rate(name) == rate
    assert Settings(lr=0.2).learning_rate(name) == 0.2


def test_a_class_without_a_learning_rate_of_its_own(monkeypatch):
    class Plain(torch.optim.SGD):
        def __init__(self, params, lr, weight_decay=0.0):
            super().__init__(params, lr=lr, weight_decay=weight_decay)

    def known(**defaults):
        method = Method("plain", "optimizer", Plain, defaults, "-", "-", "https://x", "-", "[X]")
        monkeypatch.setitem(registry._METHODS, "plain", method)

    known()
    assert usual_lr("plain") == 1e-3
    assert registry.lookup("plain").signature() == "plain(lr, weight_decay=0.0)"
    assert resolve("plain", "sgd").options == {}
    known(lr=0.7)
    assert usual_lr("plain") == 0.7
    with pytest.raises(UserError, match="--lr"):
        resolve("plain(lr=0.1)", "sgd")
    optimizer = make_optimizer(resolve("plain", "sgd"), torch.nn.Linear(2, 2), 0.3, 0.9, 0.01)
    assert optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("name", [*FIRST_ORDER, *SOLVING])
def test_settings_reach_the_optimizer(name):
    model = torch.nn.Linear(3, 2)
    group = make_optimizer(resolve(name, "sgd"), model, 0.01, 0.8, 0.003).param_groups[0]
    assert group["lr"] == 0.01
    assert group["param_names"] == ["weight", "bias"]
    assert group.get("weight_decay", 0.003) == 0.003
    usual = registry.lookup(name).factory(
        model.named_parameters(), **({"model": model} if name in ("reng", "ring") else {})
    )
    for key, value in usual.param_groups[0].items():
        if key not in ("params", "param_names", "lr", "weight_decay"):
            assert group[key] == value, key


def test_arguments_in_brackets_go_before_the_settings():
    arm = resolve("adarem(weight_decay=0.25,lam=0.5)", "sgd")
    group = make_optimizer(arm, torch.nn.Linear(3, 2), 0.01, 0.8, 0.003).param_groups[0]
    assert (group["weight_decay"], group["lam"]) == (0.25, 0.5)


# Trials


@pytest.mark.parametrize("name", [*FIRST_ORDER, *SOLVING, "sgdf+autoscale", "implicitsgd+clip"])
def test_a_trial(tmp_path, name):
    # On so small a net the natural gradients need a smaller rate than their own.
    rate = 2e-3 if name in ("reng", "ring") else None
    settings = tiny(epochs=2, augment="none", limit_train=320, lr=rate)
    trial = make_trial(tmp_path / "t", settings, name)
    result = trial.run()
    assert result["status"] == "finished"
    assert result["learning_rate"] == (rate or usual_lr(name.partition("+")[0]))
    losses = result["history"]["train_loss"]
    assert losses[1] < losses[0] < 2.6
    steps, layers = recorded(tmp_path / "t")
    assert steps["step"].to_pylist() == list(range(20))  # one row a step, whatever it evaluates
    assert all(value > 0 for value in steps["grad_norm"].to_pylist())
    assert layers.num_rows == 20 * len(trial.learner.attachment.names)


def test_transforms_are_folded_and_not_written(tmp_path):
    trial = make_trial(tmp_path / "t", tiny(epochs=1), "sgdf+clip(max_norm=1e-6)")
    optimizer = trial.learner.optimizer
    assert attachment_of(optimizer) is trial.learner.attachment
    trial.run()
    grads = [p.grad for p in trial.learner.model.parameters()]
    assert sum(float(g.square().sum()) for g in grads) ** 0.5 > 1e-3  # as backward left them
    steps, _ = recorded(tmp_path / "t")
    assert max(steps["applied_norm"].to_pylist()) <= 1.001e-6


@pytest.mark.parametrize("name", ["sgdf+autoscale", "implicitsgd(max_inner=3)", "ring"])
def test_a_resumed_trial_gives_the_numbers_of_a_whole_one(tmp_path, name):
    settings = tiny(epochs=3, model="digits-resnet", limit_train=96)
    whole = make_trial(tmp_path / "whole", settings, name).run()

    class Stop(Exception):
        pass

    def stop(event):
        if event["event"] == "step" and event["step"] > 6:
            raise Stop

    with pytest.raises(Stop):
        make_trial(tmp_path / "t", settings, name, progress=stop).run()
    assert (tmp_path / "t" / "checkpoint.pt").exists()
    notes = []
    resumed = make_trial(tmp_path / "t", settings, name, progress=notes.append).run()
    assert [event for event in notes if event["event"] == "note"] == []
    assert notes[0]["step"] == 6
    assert numbers(resumed) == numbers(whole)


def test_a_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "run_jobs", run_inline)
    methods = ["sgdf", "adamw", "hgm(gamma=0.3)", "implicitsgd"]
    summary = compare_methods(tiny(epochs=1), methods, [0, 1], tmp_path / "out")
    assert summary["baseline"] == "adamw"  # the new is compared with the known
    assert summary["fairness"]["differences"] == []
    rates = {name: method["learning_rate"] for name, method in summary["methods"].items()}
    assert rates == {"sgdf": 0.5, "adamw": 1e-3, "hgm(gamma=0.3)": 1e-3, "implicitsgd": 0.5}
    assert any(note.startswith("implicitsgd: each step evaluates") for note in summary["notes"])
    assert any("usual learning rate; none was tuned" in note for note in summary["notes"])
    assert "Wiener" in summary["methods"]["sgdf"]["summary"]
    json.dumps(summary, allow_nan=False)
    alone = compare_methods(tiny(epochs=1), ["clip", "sgdf"], [0], tmp_path / "b")
    assert alone["baseline"] == "sgdf"


def test_a_loss_scale_does_not_go_with_several_evaluations(tmp_path):
    with pytest.raises(
        UserError, match=r"'implicitsgd' evaluates a batch several times.*amp='fp16'"
    ):
        compare_methods(tiny(amp="fp16"), ["sgd", "implicitsgd"], [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("transform", ["", "+center+clip(max_norm=0.1)"])
def test_torchs_and_its_folding_twin_are_one_method(tmp_path, name, transform):
    """The same start, learning rate, momentum and numbers, up to the order of roundings."""
    assert usual_lr(name) == usual_lr(f"gw-{name}")
    found = []
    for i, method in enumerate((f"{name}{transform}", f"gw-{name}{transform}")):
        result = make_trial(tmp_path / str(i), tiny(), method, 0).run()
        found.append(result["history"]["train_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
