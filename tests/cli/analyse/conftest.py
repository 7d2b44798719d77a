"""A folder with modules of the user's, as the current directory, and strict JSON."""

import json
import sys

import pytest
from analyse_own import MISTAKES, REGRESSION, TOKENS

MODULES = {"regression_of_user": REGRESSION, "tokens_of_user": TOKENS, "mistakes_of_user": MISTAKES}


@pytest.fixture
def own(here):
    """The current directory, with the user's modules."""
    for name, source in MODULES.items():
        (here / f"{name}.py").write_text(source)
    yield here
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def analyse(gradwise):
    """Runs `gradwise analyse ... --json`: what it found."""

    def call(*arguments):
        code, out, err = gradwise("analyse", *arguments, "--device", "cpu", "--json")
        assert code == 0, err

        def refuse(name):
            raise AssertionError(f"{name} is not JSON")

        return json.loads(out, parse_constant=refuse)

    return call
