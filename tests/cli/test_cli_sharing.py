"""`gradwise compare --per-device` and `--compile`: what reaches the lab, and what is refused."""

from cli_helpers import TINY

from gradwise.lab import compare as compare_module


def test_trials_that_would_share_a_cpu_are_told_of_jobs(gradwise, here):
    arguments = ["compare", *TINY, "--methods", "sgd", "--seeds", "1", "--out", "o"]
    code, out, err = gradwise(*arguments, "--device", "cpu", "--per-device", "2")
    assert code == 2
    assert out == ""
    assert "expected a CUDA device with per_device=2, got device=cpu" in err
    assert "--jobs" in err
    assert len(err.strip().splitlines()) == 1
    assert not (here / "o").exists()


def test_compile_is_a_setting_like_any_other(gradwise, here, read_json, monkeypatch):
    seen = []

    def run(jobs, settings, *others):
        seen.append(settings.compile)
        return {}

    monkeypatch.setattr(compare_module, "run_jobs", run)
    arguments = ["compare", *TINY, "--methods", "sgd", "--seeds", "1", "--out"]
    gradwise(*arguments, "plain")
    gradwise(*arguments, "compiled", "--compile")
    assert seen == [False, True]
    assert "compile" not in read_json("plain/config.json")["settings"]
    assert read_json("compiled/config.json")["settings"]["compile"] is True
    assert "compile" in (here / "compiled/report.md").read_text()
    code, _, err = gradwise(*arguments, "plain", "--compile")
    assert code == 2
    assert "compile was None and is now True" in err
