"""`gradwise compare` with a list of learning rates and with optimizers of gradwise."""

import json

import pytest
from cli_helpers import TINY

GRID = [
    "compare",
    *TINY,
    "--methods",
    "sgdf,adamw",
    "--seeds",
    "2",
    "--lr",
    "0.01,1e-6",
    "--out",
    "o",
]


def test_a_grid_from_the_command_line(gradwise, inline, here, read_json, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # pytest-xdist hands on a narrow one
    code, out, err = gradwise(*GRID)
    assert code == 0
    summary = read_json("o/summary.json")
    lines = out.splitlines()
    head = next(line for line in lines if line.startswith("method"))
    assert head.split()[:2] == ["method", "lr"]
    for name in ("sgdf", "adamw"):
        rate = summary["methods"][name]["learning_rate"]
        shown = next(line.split() for line in lines if line.startswith(name))
        assert shown[1] == {0.01: "0.01", 1e-6: "1e-06"}[rate]
    assert "validation accuracy by learning rate, 2 learning rates x 2 seeds each; * is" in out
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("lr ")) :]
    assert table[0].split() == ["lr", "1e-06", "0.01"]
    for row, name in zip(table[2:4], ("sgdf", "adamw"), strict=True):
        told, *cells = row.replace(" %", "%").split()
        assert told == name
        entries = summary["methods"][name]["grid"]
        for cell, entry in zip(cells, entries, strict=True):
            chosen = entry["learning_rate"] == summary["methods"][name]["learning_rate"]
            mean = entry["validation_accuracy"]["mean"]
            assert cell == f"{100 * mean:.2f}%{'*' if chosen else ''}"
    assert "8 trials to run" in err
    assert "sgdf lr 0.01 seed 1: " in err
    assert err.splitlines()[-1].endswith("[8/8, done]")
    assert summary["config"]["settings"]["lr"] == [0.01, 1e-6]
    assert summary["baseline"] == "adamw"
    code, again, err = gradwise(*GRID, "--json")
    assert code == 0
    assert json.loads(again)["methods"] == summary["methods"]
    assert err == ""


@pytest.mark.parametrize("columns", ["40", "60"])
def test_a_narrow_terminal_gets_a_list(gradwise, inline, here, monkeypatch, columns):
    assert gradwise(*GRID)[0] == 0
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = gradwise(*GRID[:-4], "--lr", "0.01,1e-6", "--out", "o")
    assert code == 0
    assert max(map(len, out.splitlines())) <= int(columns)
    assert "sgdf lr " in out
    assert "1e-06" in out


def test_what_diverged_and_what_failed_in_a_grid(gradwise, here, monkeypatch):
    from lab_helpers import run_inline

    from gradwise.lab import compare as compare_module

    def half(jobs, settings, dataset, at_once, listen):
        run_inline(jobs[1:], settings, dataset, at_once, listen)
        listen(jobs[0], {"event": "start"})
        listen(jobs[0], {"event": "failed", "reason": "no memory"})
        return {jobs[0]: "no memory"}

    monkeypatch.setattr(compare_module, "run_jobs", half)
    code, out, err = gradwise(
        "compare", *TINY, "--methods", "sgd", "--seeds", "2", "--lr", "1e-7,0.05,1e6", "--out", "o"
    )
    assert code == 1
    assert "sgd lr 1e-07 seed 0: failed, no memory" in err
    flat = " ".join(out.split())
    assert "10.00 % (2 diverged)" in flat
    assert "sgd lr 1e-07 seed 0 failed: no memory" in flat
    assert "1 trial of the grid has no result, so the choice is not final." in flat
    assert "The same command tries again what is missing." in flat
    assert "counts as guessing" not in flat  # not what the methods are judged by


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--lr", "0.1,"], "expected lr to be a number or a list such as 0.01,0.1,1, got '0.1,'"),
        (["--lr", "high"], "got 'high'"),
        (["--lr", "0.1,0.1"], "expected every lr once, got lr=0.1 twice"),
        (["--lr", "0.1,-1"], "expected a finite lr > 0, got lr=-1.0"),
        (["--lr", "0.1,nan"], "got lr=nan"),
        (["--validation", "0.2"], "with validation=0.2, got lr=None"),
        (["--lr", "0.1,1", "--validation", "1"], "got validation=1.0"),
        (["--methods", "sgdf(lr=0.1)"], "learning rates are given with --lr"),
        (["--methods", "rkalman"], "it needs the residuals of a regression"),
        (["--methods", "sgdf(gama=1)"], "got 'gama'"),
        (["--methods", "sgdf(betas=(0.9,2.0))"], "got betas[1]=2.0"),
        (["--methods", "implicitsgd", "--amp", "fp16"], "several times a step"),
        (["--lr", "0.1,1", "--limit-train", "2", "--batch-size", "2"], "besides the 1 held out"),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(gradwise, here, given, told):
    code, out, err = gradwise("compare", *TINY, *given, "--out", "o")
    assert code == 2
    assert out == ""
    assert told in err
    (line,) = err.splitlines()
    assert line.startswith("gradwise: ")
    assert list(here.iterdir()) == []


def test_a_grid_that_is_killed_goes_on(start, here, read_json):
    arguments = [*GRID[:-2], "--jobs", "1", "--out", "o"]
    first = start(*arguments)
    first.wait_for(lambda: len(list(here.glob("o/trials/*/lr-*/seed-*/result.json"))) >= 2)
    first.popen.kill()
    first.popen.communicate()
    kept = {path: path.read_bytes() for path in here.glob("o/trials/*/lr-*/seed-*/result.json")}
    assert 2 <= len(kept) < 8
    code, out, err = start(*arguments).end()
    assert code == 0, (out, err)
    assert f"{len(kept)} of 8 trials are there from earlier calls" in err
    assert {path: path.read_bytes() for path in kept} == kept
    assert read_json("o/summary.json")["grid"]["final"]


def test_methods_lists_optimizers_with_their_sources(gradwise, here):
    code, out, _ = gradwise("methods")
    assert code == 0
    transforms, optimizers = out.split("Optimizers\n")
    assert "autoscale" in transforms
    for name in ("sgdf", "hgm", "adamomentum", "adarem", "adagradota", "adamota", "implicitsgd"):
        assert f"\n{name}  " in optimizers
        assert f"\n{name}  " not in transforms
    for told in ("https://arxiv.org/abs/2603.06120", "(3.1)-(3.6)", "[V]", "CVPR"):
        assert told in optimizers
    code, out, _ = gradwise("methods", "--json")
    entry = next(one for one in json.loads(out) if one["name"] == "sgdf")
    assert entry["kind"] == "optimizer"
    assert entry["signature"].startswith("sgdf(lr=0.5, betas=(0.9, 0.999), eps=1e-08, gamma=0.5")
    assert "params" not in entry["signature"]
    assert all(entry[key] for key in ("paper", "url", "equation", "tag", "summary"))
    code, out, _ = gradwise("methods", "hgm")
    assert out.startswith("hgm(lr=0.001")
