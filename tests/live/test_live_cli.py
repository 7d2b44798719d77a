"""`gradwise watch` as a command line: which of its two uses is meant, and what it prints."""

import json
import sys
import types
from pathlib import Path

import pytest

from gradwise.cli import watch as module
from gradwise.cli.app import run
from gradwise.live.spark import UNICODE
from live.live_helpers import NAMES, alert, note


@pytest.fixture
def gradwise(capsys, monkeypatch):
    """Runs a command line in this process: `(exit code, output, errors)`."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments):
        capsys.readouterr()
        code = run(["watch", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(make):
    made = make().write(range(30), loss=0.75)
    note(made.folder, alert("exploding", 12, "head.weight", "error"))
    return made.close()


@pytest.fixture
def ran(monkeypatch):
    """What the command for scripts was called with."""
    calls = []

    def run_watched(command, out, **options):
        calls.append((command, out, options))
        return 7

    script = types.ModuleType("gradwise.cli.watch_script")
    script.run_watched = run_watched
    monkeypatch.setitem(sys.modules, "gradwise.cli.watch_script", script)
    return calls


def test_without_a_terminal_it_prints_once(gradwise, folder):
    code, out, err = gradwise(folder)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert [line.split()[-0] for line in out.splitlines() if ".weight" in line]
    for name in NAMES:
        assert name in out
    assert "step 29" in out
    assert "The sentence on exploding." in out
    assert all(len(line) <= 100 for line in out.splitlines())
    assert gradwise(folder, "--once")[1].splitlines()[1:] == out.splitlines()[1:]


def test_the_width_of_the_output_is_that_of_the_terminal(gradwise, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    narrow = gradwise(folder)[1]
    assert max(map(len, narrow.splitlines())) <= 60
    assert "mean" not in narrow.splitlines()[6]


def test_curves_fill_the_width_they_have(gradwise, folder):
    line = next(line for line in gradwise(folder)[1].splitlines() if "conv.weight" in line)
    assert len(line) == 100
    assert len(line.rpartition(" ")[2]) >= 14
    assert set(line[-14:]) <= set(UNICODE.blocks)


def test_json(gradwise, folder):
    code, out, _ = gradwise(folder, "--json", "--sort", "norm", "--filter", "weight")
    assert code == 0
    found = json.loads(out)
    assert (found["state"], found["step"], found["run"]) == ("ended", 29, str(folder))
    assert found["steps"]["loss"] == 0.75
    assert found["steps_per_s"] == pytest.approx(10)
    assert [row["layer"] for row in found["layers"]] == [n for n in NAMES[::-1] if "weight" in n]
    assert found["layers"][0]["alert"] == "error"
    assert found["alerts"][0]["advice"] == "Advice on exploding."
    assert out.isascii()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sort", "nonsense"], "expected --sort alerts, layer, norm, std, mean"),
        (["--metric", "nonsense"], "expected a metric of"),
        (["--window", "7"], "'7' is not one of '100', '1000', '10000', 'all'"),
        (["--interval", "0"], "0.0 is not in the range 0.1<=x<=3600"),
        (["--out", "x"], "--out is an option of watching a script"),
    ],
)
def test_options_that_mean_nothing_here(gradwise, folder, arguments, told):
    code, out, err = gradwise(folder, *arguments)
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.parametrize("window", ["100", "all"])
def test_options_of_the_curves(gradwise, folder, window):
    code, out, _ = gradwise(folder, "--metric", "std", "--window", window)
    assert code == 0
    assert "  std, 30 steps" in out


def test_folders_that_are_no_runs(gradwise, make, tmp_path):
    code, out, err = gradwise(tmp_path / "none")
    assert (code, out) == (2, "")
    assert err == f"gradwise: nothing to show in {tmp_path}/none: there is no such folder yet\n"
    make("group/a").write(range(3)).close()
    make("group/b").write(range(3)).close()
    code, _, err = gradwise(tmp_path / "group", "--json")
    assert code == 2
    assert "is not a run folder itself, but 2 runs are in it: " in err
    assert f"{tmp_path}/group/a" in err
    script = tmp_path / "train.py"
    script.touch()
    assert "to run and watch a script: gradwise watch -- python" in gradwise(script)[2]


def test_what_comes_after_two_dashes_is_a_command_and_nobody_elses(gradwise, ran):
    code, _, _ = gradwise("--out", "runs/a", "--", "python", "train.py", "--sort", "x", "--", "-h")
    assert code == 7
    command, out, options = ran[0]
    assert command == ["python", "train.py", "--sort", "x", "--", "-h"]
    assert out == Path("runs/a")
    assert not {"once", "as_json", "sort", "words", "metric", "window", "interval"} & set(options)
    gradwise("--", "python", "train.py")
    assert ran[1][:2] == (["python", "train.py"], None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected a run folder to show, or -- and a command to run"),
        (["--"], "expected a command after --, such as python train.py"),
        (["runs/a", "--", "python"], "expected options before --, got runs/a; a folder to record"),
        (["python", "train.py"], "expected one run folder, got 2 arguments; a command to run come"),
        (["--sort", "norm", "--", "python"], "--sort is an option of the view"),
        (["--once", "--", "python"], "--once is an option of the view"),
        (["--nonsense", "--", "python"], "No such option"),
    ],
)
def test_which_of_the_two_is_meant_is_never_guessed(gradwise, ran, arguments, told):
    code, out, err = gradwise(*arguments)
    assert (code, out, ran) == (2, "", [])
    assert told in " ".join(err.split())
    assert "Usage: gradwise watch [OPTIONS] RUN" in err


def test_options_of_a_script_reach_it_by_their_names(gradwise, ran, monkeypatch):
    """So that whoever adds an option there has to add nothing here."""
    option = module._Option(["--mine"], use=module.SCRIPT, type=int, default=1)
    monkeypatch.setattr(module.watch, "params", [*module.watch.params, option])
    gradwise("--mine", "5", "--", "python")
    assert ran[0][0] == ["python"]
    assert ran[0][2]["mine"] == 5


def test_help_keeps_the_two_apart(gradwise):
    code, out, _ = gradwise("--help")
    assert code == 0
    assert out.startswith(
        "Usage: gradwise watch [OPTIONS] RUN\n"
        "       gradwise watch [OPTIONS] -- COMMAND [ARGUMENTS]...\n"
    )
    view, script = out.index("Options of the view:"), out.index("Options of watching a script:")
    for option in ("--once", "--json", "--sort", "--filter", "--metric", "--window", "--interval"):
        assert view < out.index(f"  {option}") < script
    assert script < out.index("  --out")


def test_without_textual_it_says_what_to_install(gradwise, folder, monkeypatch):
    monkeypatch.setattr(module, "_is_screen", lambda: True)
    monkeypatch.setitem(sys.modules, "textual", None)
    for name in [n for n in sys.modules if n.startswith(("textual.", "gradwise.live."))]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = gradwise(folder)
    assert code == 2
    assert err.startswith("gradwise: the live view needs 'textual': pip install 'gradwise[lab]'")
    assert gradwise(folder, "--once")[0] == 0


def test_the_view_alone_needs_textual():
    import subprocess

    code = (
        "import sys; import gradwise.cli.app, gradwise.live.plain, gradwise.live.notebook\n"
        "assert not [n for n in sys.modules if n.split('.')[0] == 'textual']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
