import sys

import pytest
from reproduce_helpers import CONTENT, Doubling

from gradwise.reproduce import recipe as recipe_module


@pytest.fixture
def doubling(monkeypatch):
    """The experiment, installed under the name of a recipe."""
    module = Doubling()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    parsed = recipe_module.parse("doubling", CONTENT)
    known = {**recipe_module.recipes(), "doubling": parsed}
    monkeypatch.setattr(recipe_module, "recipes", lambda: known)
    return module
