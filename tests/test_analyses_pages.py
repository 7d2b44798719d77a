"""The pages in docs/analyses: every session in Python, and every command with its output, holds."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from gradwise.cli.app import run

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "analyses").glob("*.md"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


def session(page):
    """The page with nothing left but its Python sessions, each line where it was."""
    text = page.read_text("utf-8")
    kept = ["\n"] * (text.count("\n") + 1)
    for fence in FENCE.finditer(text):
        if fence[1] in ("python", "pycon") and ">>>" in fence[2]:
            first = text.count("\n", 0, fence.start(2))
            kept[first : first + fence[2].count("\n")] = fence[2].splitlines(keepends=True)
    return "".join(kept)


def commands(page):
    """Commands with the output that the page shows."""
    for fence in FENCE.finditer(page.read_text("utf-8")):
        if fence[1] == "console":
            first, _, output = fence[2].partition("\n")
            assert first.startswith("$ gradwise ")
            yield first.removeprefix("$ gradwise "), output


COMMANDS = [(page, *found) for page in PAGES for found in commands(page)]


def test_there_are_pages():
    assert {"noise", "landscape", "sparsity"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem != "README"], ids=lambda page: page.stem
)
def test_sessions_give_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(session(page), {}, page.stem, str(page), 0)
    assert test.examples, "a page of an analysis shows it in Python"
    told = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize(
    ("page", "command", "shown"), COMMANDS, ids=[f"{page.stem}" for page, _, _ in COMMANDS]
)
def test_commands_give_what_the_page_says(page, command, shown, tmp_path, monkeypatch, capsys):
    """The words are the same, and numbers as near as rounding on other machines allows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    assert run(shlex.split(command)) == 0
    got = capsys.readouterr().out
    assert words(got) == words(shown), got
    assert numbers(got) == pytest.approx(numbers(shown), rel=0.05, abs=1e-3)


def words(text):
    plain = NUMBER.sub("#", re.sub(r"[─\s]+", " ", text))
    return plain.strip()


def numbers(text):
    return [float(found.replace(",", "").rstrip(".")) for found in NUMBER.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
