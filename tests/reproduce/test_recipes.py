"""The recipes that are there: what each must say about itself, and that every one is tested."""

import copy
import runpy
from pathlib import Path

import pytest
from reproduce_helpers import CONTENT

from gradwise.errors import UserError
from gradwise.reproduce import SCALES, load_recipe, plan, recipes
from gradwise.reproduce.recipe import parse, read_override
from gradwise.reproduce.task import experiment
from gradwise.reproduce.verdicts import verdicts

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(recipes())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_where_its_settings_come_from(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.claim.endswith((".", "?"))
    assert set(recipe.cost) == {"small_cpu", "full_gpu"}
    assert isinstance(recipe.settings["seeds"].value, list)
    for key, setting in recipe.settings.items():
        # What no paper gives is ours, and a reader may ask why.
        assert setting.tag != "[X]" or setting.why, key
    if recipe.paper.url:
        assert recipe.paper.url.startswith("https://")
    for scale in SCALES:
        assert set(recipe.at(scale)) == set(recipe.settings)


@pytest.mark.parametrize("name", NAMES)
def test_every_scale_can_be_planned(name, tmp_path):
    for scale in SCALES:
        planned = plan(name, scale=scale, data_dir=tmp_path, device="cpu")
        assert planned.units > 0
        assert bool(planned.cells) != bool(planned.comparisons)
    assert hasattr(experiment(load_recipe(name).experiment), "conclude")


@pytest.mark.parametrize("name", NAMES)
def test_smoke_needs_no_files(name):
    assert plan(name, scale="smoke", device="cpu").units > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_test_that_runs_it(name):
    told = [
        path.read_text()
        for path in Path(__file__).parent.glob("test_*.py")
        if path != Path(__file__) and f'"{name}"' in path.read_text()
    ]
    assert any('scale="smoke"' in text for text in told)


def test_the_verdicts_are_those_of_the_pages():
    collect = runpy.run_path(str(ROOT / "docs/reproductions/collect.py"))
    assert verdicts() == collect["verdicts"]()
    page = ROOT / "docs/reproductions/README.md"
    assert page.read_text() == collect["index"]()
    assert set(verdicts()) <= set(NAMES)


def changed(**changes):
    content = copy.deepcopy(CONTENT)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings__factor__tag": "[W]"}, "expected the tag of factor to be one of"),
        ({"smoke__speed": 3}, "smoke sets 'speed', which is no setting"),
        ({"small__factor": "x"}, "expected factor to be a number like 2.0"),
        ({"unknown": 1}, "unknown key 'unknown'"),
    ],
)
def test_a_recipe_with_a_mistake(changes, told):
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        parse("doubling", changed(**changes))


def test_a_recipe_that_lacks_something():
    content = copy.deepcopy(CONTENT)
    del content["smoke"]
    with pytest.raises(KeyError):
        parse("doubling", content)
    with pytest.raises(TypeError):
        parse("doubling", changed(settings__factor__colour="red"))


def test_scales_and_kinds():
    recipe = parse("doubling", CONTENT)
    assert recipe.at("full")["data"] == "cifar10"
    assert recipe.at("small", {"factor": 3})["factor"] == 3.0
    assert recipe.paper.line == "A. Author, “On | twice”, arXiv 0000.00000"


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=1e-3", 1e-3), ("a=true", True), ("a=b=c", "b=c"), ('a="1"', "1"), ("a=", "")],
)
def test_overrides_are_json_or_words(text, value):
    assert read_override(text) == ("a", value)


@pytest.mark.parametrize("text", ["a", "=3", " =3"])
def test_an_override_needs_a_name(text):
    with pytest.raises(UserError, match="expected a setting as NAME=VALUE"):
        read_override(text)
