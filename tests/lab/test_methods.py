"""What a name in --methods means, and what is said about one that means nothing."""

import pytest
import torch

from gradwise.errors import UserError
from gradwise.lab.methods import OPTIMIZERS, make_optimizer, resolve, resolve_all, split_methods


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sgd", ["sgd"]),
        ("sgd , clip( max_norm = 0.5 )", ["sgd", "clip(max_norm=0.5)"]),
        (
            "zclip(warmup=10, threshold=3),adamw+center",
            ["zclip(warmup=10,threshold=3)", "adamw+center"],
        ),
    ],
)
def test_split(text, parts):
    assert split_methods(text) == parts


@pytest.mark.parametrize(
    "text", ["", ",", "sgd,", "sgd,,clip", "clip(", "clip)", "clip(a=1))", "a+,b"]
)
def test_what_cannot_be_split(text):
    with pytest.raises(UserError, match="expected methods such as"):
        [resolve(part, "sgd") for part in split_methods(text)]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("autoscal", "did you mean 'autoscale'"),
        ("adanw", "did you mean 'adamw'"),
        ("xyzzy", "known are"),
        ("lbfgs", "needs a closure"),
        ("clip(max_norm=-1)", "got max_norm=-1"),
        ("clip(foo=1)", "got 'foo'"),
        ("clip(1)", "expected a method such as"),
        ("clip(__import__('os'))", "expected a method such as"),
        ("clip(max_norm=__import__('os').system('true'))", "expected a method such as"),
        ("clip+adamw", "optimizer first"),
        ("sgd+adamw", "optimizer first"),
        ("sgd(lr=1)", "unknown method"),
    ],
)
def test_a_wrong_method_gets_one_sentence(spec, told):
    with pytest.raises(UserError) as caught:
        resolve(spec, "sgd")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_twice():
    with pytest.raises(UserError, match="'clip' twice"):
        resolve_all(["clip", "sgd", " clip "], "sgd")
    with pytest.raises(UserError, match="at least one method"):
        resolve_all([], "sgd")


def test_chains_and_the_default_optimizer():
    arm = resolve("adamw+center+clip(max_norm=0.5)", "sgd")
    assert arm.optimizer == "adamw"
    assert [type(t).__name__ for t in arm.transform.transforms] == ["Center", "ClipNorm"]
    assert resolve("autoscale", "nadam").optimizer == "nadam"
    assert resolve("none", "nadam").optimizer == "nadam"
    assert resolve("none", "nadam").transform.transforms == ()


def test_folders_are_safe_and_differ():
    names = ["sgd", "clip(max_norm=0.5)", "clip(max_norm=0.05)", "clip(max_norm=5)", "adamw+center"]
    folders = [resolve(name, "sgd").folder for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert not set(folder) & set("/\\:()*?\"<>| '")
        assert not folder.startswith(".")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_settings_reach_the_optimizer(name):
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(resolve(name, "sgd"), model, 0.01, 0.8, 0.003)
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.01
    assert group["param_names"] == ["weight", "bias"]
    if "weight_decay" in group:
        assert group["weight_decay"] == 0.003
    if name == "sgd":
        assert group["momentum"] == 0.8
    if name == "rmsprop":
        assert group["momentum"] == 0
