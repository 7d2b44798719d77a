"""`methods`, `doctor`, `report`, and the command itself."""

import json
import subprocess
import sys

import pytest
from cli_helpers import TINY

from gradwise import registry
from gradwise.cli import app


def test_methods_lists_all_with_their_papers(gradwise):
    code, out, _ = gradwise("methods")
    assert code == 0
    flat = " ".join(out.split())
    for name, method in registry.methods().items():
        assert f"{name} {method.summary}" in flat
        assert method.url in flat


def test_methods_as_json(gradwise):
    code, out, _ = gradwise("methods", "--json")
    assert code == 0
    listed = {method["name"]: method for method in json.loads(out)}
    assert set(listed) == set(registry.methods())
    for method in listed.values():
        assert {"kind", "summary", "paper", "url", "equation", "tag", "signature"} <= set(method)
    assert listed["clip"]["signature"].startswith("clip(max_norm=")


def test_one_method_in_full_or_the_nearest_name(gradwise):
    code, out, _ = gradwise("methods", "autoscale")
    assert code == 0
    assert "Args:" in out
    code, out, err = gradwise("methods", "autoscal")
    assert code == 2
    assert err == "gradwise: unknown method 'autoscal'; did you mean 'autoscale'?\n"


def test_doctor(gradwise):
    code, out, _ = gradwise("doctor")
    assert code == 0
    for word in ("torch", "cpu", "float32", "bfloat16", "foreach", "digits", "needs --data-dir"):
        assert word in out


def test_doctor_as_json(gradwise, tmp_path):
    code, out, _ = gradwise("doctor", "--json", "--data-dir", tmp_path)
    facts = json.loads(out)
    assert code == 0
    assert facts["problems"] == []
    assert facts["versions"]["torch"].startswith("2")
    about = {row["name"]: row["about"] for row in facts["data"]}
    assert about["cifar10"] == "no files found"
    assert "1437 train" in about["digits"]
    assert facts["devices"][0]["types"] == ["float32", "float64", "bfloat16", "float16"]


def test_doctor_tells_half_a_data_set_from_none(gradwise, tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no more")
    code, out, _ = gradwise("doctor", "--json", "--data-dir", tmp_path)
    assert code == 1
    assert any(problem.startswith("cifar10: ") for problem in json.loads(out)["problems"])


def test_doctor_with_a_folder_that_is_not_there(gradwise, tmp_path):
    code, _out, err = gradwise("doctor", "--data-dir", tmp_path / "none")
    assert code == 2
    assert "expected a folder as --data-dir" in err


def test_report_of_a_comparison(gradwise, inline, here):
    gradwise("compare", *TINY, "--methods", "sgd", "--seeds", "1", "--out", "o")
    (here / "o/report.html").unlink()
    code, out, _ = gradwise("report", "o")
    assert (code, out.splitlines()) == (0, ["o/report.html", "o/report.md"])
    assert (here / "o/report.html").exists()
    code, out, _ = gradwise("report", "o", "--json")
    assert json.loads(out) == {"pages": ["o/report.html", "o/report.md"]}


@pytest.mark.parametrize("what", ["none", "."])
def test_report_of_something_else(gradwise, here, what):
    code, out, err = gradwise("report", what)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1


def test_version_and_help(gradwise):
    from gradwise import __version__

    assert gradwise("--version")[1] == f"gradwise, version {__version__}\n"
    for arguments in (["--help"], ["-h"], *([name, "-h"] for name in app.cli.commands)):
        code, out, _err = gradwise(*arguments)
        assert code == 0
        assert out.startswith("Usage: gradwise")
    assert all(name in gradwise("-h")[1] for name in ("compare", "report", "methods", "doctor"))


def test_no_command_and_a_wrong_one(gradwise):
    code, out, err = gradwise()
    assert code == 2
    assert "Usage: gradwise" in out + err
    code, out, err = gradwise("compair")
    assert code == 2
    assert "No such command 'compair'" in err


def test_the_help_of_compare_names_every_setting(gradwise):
    from dataclasses import fields

    from gradwise.lab.settings import Settings

    out = gradwise("compare", "--help")[1]
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-')} " in out


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_reader_that_goes_away_is_no_error(more):
    command = f"{sys.executable} -m gradwise methods {more} | true"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_terminal_that_knows_no_unicode(tmp_path):
    import os

    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "gradwise", "methods", "autoscale"],
        capture_output=True,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr


def test_without_the_lab_the_command_says_what_to_install(monkeypatch, capsys):
    from gradwise import cli

    monkeypatch.setitem(sys.modules, "click", None)
    for name in [name for name in sys.modules if name.startswith("gradwise.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "gradwise: the command line needs 'click': pip install 'gradwise[lab]'\n"
    )


@pytest.mark.slow
def test_the_real_cifar10(gradwise, here, real_data):
    code, out, err = gradwise(
        "compare",
        "--data",
        "cifar10",
        "--data-dir",
        real_data,
        "--model",
        "resnet20",
        "--limit-train",
        "512",
        "--limit-test",
        "256",
        "--epochs",
        "1",
        "--methods",
        "sgd,autoscale",
        "--seeds",
        "2",
        "--out",
        "o",
        "--json",
    )
    assert code == 0, err
    summary = json.loads(out)
    assert summary["finished"]
    assert summary["config"]["settings"]["data"] == "cifar10"
    for method in summary["methods"].values():
        assert method["status"] == ["finished", "finished"]
        assert all(0 <= value <= 1 for value in method["test_accuracy"]["values"])
        assert method["samples_per_s"]["mean"] > 0
    assert (here / "o/report.html").exists()
    steps = json.loads((here / "o/trials/sgd/seed-0/result.json").read_text())["steps"]
    assert steps == 4
