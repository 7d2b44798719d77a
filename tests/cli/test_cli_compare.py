"""`gradwise compare`: its answers, and a sentence for every mistake."""

import json
import math
import sys

import pytest
from cli_helpers import TINY


def strict(text):
    """JSON as the standard has it: NaN and infinities are none."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_comparison_from_the_command_line(gradwise, inline, here, read_json):
    code, out, err = gradwise(
        "compare", *TINY, "--methods", "sgd, clip(max_norm=0.5)", "--seeds", "2", "--out", "o"
    )
    assert code == 0
    assert "clip(max_norm=0.5)" in out
    assert "report: o/report.html" in out
    assert (here / "o/report.html").stat().st_size > 1000
    assert (here / "o/report.md").exists()
    lines = err.splitlines()
    assert len(lines) == 5
    assert lines[0] == "4 trials to run"
    assert lines[1].startswith("sgd seed 0: ")
    assert "left]" in lines[1]
    assert lines[4].endswith("[4/4, done]")
    command = read_json("o/config.json")["command"]
    assert command.startswith("gradwise compare --model mlp")
    assert "'sgd, clip(max_norm=0.5)'" in command


def test_json_is_all_there_is_on_standard_output(gradwise, inline, here):
    arguments = ["compare", *TINY, "--methods", "sgd,clip", "--seeds", "2", "--out", "o", "--json"]
    code, out, err = gradwise(*arguments)
    assert code == 0
    assert strict(out) == strict((here / "o/summary.json").read_text())
    code, again, err = gradwise(*arguments)
    assert strict(again)["methods"] == strict(out)["methods"]
    assert err == ""  # nothing had to be run


def test_json_of_a_comparison_that_diverged(gradwise, inline, here):
    code, out, _ = gradwise(
        "compare",
        *TINY,
        "--lr",
        "1e6",
        "--methods",
        "sgd,adamw",
        "--seeds",
        "2",
        "--out",
        "o",
        "--json",
    )
    assert code == 0
    summary = strict(out)
    assert summary["methods"]["sgd"]["status"] == ["diverged"] * 2
    assert summary["methods"]["sgd"]["test_accuracy"]["values"] == [0.1, 0.1]
    code, out, _ = gradwise(
        "compare", *TINY, "--lr", "1e6", "--methods", "sgd,adamw", "--seeds", "2", "--out", "o"
    )
    assert out.count("sgd seed 0 diverged and counts as guessing.") == 1


def test_json_with_one_seed_has_null_where_there_is_no_answer(gradwise, inline, here):
    _code, out, _ = gradwise(
        "compare", *TINY, "--methods", "sgd,clip", "--seeds", "1", "--out", "o", "--json"
    )
    (comparison,) = strict(out)["comparisons"]
    assert comparison["ci95"] is None
    assert comparison["p"] is None
    assert math.isfinite(comparison["difference"])


def test_what_code_of_the_user_prints_stays_out_of_the_answer(gradwise, inline, here):
    (here / "chatty_of_user.py").write_text(
        "import torch\n"
        "def load():\n"
        "    print('loading', '{', end='')\n"
        "    x = torch.linspace(0, 1, 640).reshape(64, 10)\n"
        "    return x, torch.arange(64) % 3, x, torch.arange(64) % 3\n"
    )
    code, out, err = gradwise(
        "compare",
        "--data",
        "chatty_of_user:load",
        "--model",
        "mlp",
        "--epochs",
        "1",
        "--methods",
        "sgd",
        "--seeds",
        "1",
        "--out",
        "o",
        "--json",
    )
    sys.modules.pop("chatty_of_user")
    assert code == 0
    assert strict(out)["finished"]
    assert "loading {" in err


def test_a_failed_trial_makes_exit_code_1_and_an_answer(gradwise, here, monkeypatch):
    from lab_helpers import run_inline

    from gradwise.lab import compare as compare_module

    def half(jobs, settings, dataset, at_once, listen):
        run_inline(jobs[1:], settings, dataset, at_once, listen)
        listen(jobs[0], {"event": "start"})
        listen(jobs[0], {"event": "failed", "reason": "its process ended with exit code 9"})
        return {jobs[0]: "its process ended with exit code 9"}

    monkeypatch.setattr(compare_module, "run_jobs", half)
    arguments = ["compare", *TINY, "--methods", "sgd,clip", "--seeds", "2", "--out", "o"]
    code, out, err = gradwise(*arguments)
    assert code == 1
    assert "sgd seed 0 failed: its process ended with exit code 9" in out
    assert "sgd seed 0: failed, its process ended with exit code 9" in err
    monkeypatch.setattr(compare_module, "run_jobs", lambda *rest: {})
    code, out, _ = gradwise(*arguments, "--json")
    assert code == 1
    summary = strict(out)
    assert summary["finished"] is False
    assert summary["methods"]["sgd"]["test_accuracy"]["values"][0] is None


MISTAKES = [
    (["--methods", "autoscal"], "unknown method 'autoscal'; did you mean 'autoscale'?"),
    (["--methods", "clip(max_norm=-1)"], "got max_norm=-1"),
    (["--methods", "clip(foo=1)"], "got 'foo'"),
    (["--methods", "clip("], "expected methods such as"),
    (["--methods", "clip(__import__('os'))"], "expected a method such as"),
    (["--methods", "clip(max_norm=__import__('os').system('touch hacked'))"], "expected a method"),
    (["--methods", ""], "expected methods such as"),
    (["--methods", "sgd,sgd"], "'sgd' twice"),
    (["--baseline", "adam"], "got 'adam'"),
    (["--optimizer", "adamm"], "did you mean 'adam'?"),
    (["--optimizer", "lbfgs"], "needs a closure"),
    (["--model", "resnet21"], "did you mean 'resnet20'?"),
    (["--model", "resnet20:net"], "importing 'resnet20' failed"),
    (["--model", "vgg16bn"], "at least 32"),
    (["--data", "cifar11"], "did you mean cifar10?"),
    (["--data", "cifar10"], "expected a folder (data_dir)"),
    (["--data", "cifar10", "--data-dir", "nowhere"], "found no folder nowhere"),
    (["--data", "cifar10", "--data-dir", "."], "found no files of cifar10"),
    (["--data", "nothing_of_user:load"], "found no module nothing_of_user"),
    (["--seeds", "0"], "got '0'"),
    (["--seeds", "-3"], "got '-3'"),
    (["--seeds", "1,1"], "got 1 twice"),
    (["--seeds", "x"], "got 'x'"),
    (["--epochs", "0"], "expected epochs >= 1, got epochs=0"),
    (["--lr", "-1"], "got lr=-1.0"),
    (["--lr", "nan"], "got lr=nan"),
    (["--lr", "inf"], "got lr=inf"),
    (["--momentum", "1"], "got momentum=1.0"),
    (["--weight-decay", "-1"], "got weight_decay=-1.0"),
    (["--warmup-epochs", "9"], "got warmup_epochs=9.0"),
    (["--batch-size", "1"], "got batch_size=1"),
    (["--threads", "0"], "got threads=0"),
    (["--jobs", "0"], "got jobs=0"),
    (["--limit-train", "0"], "got limit_train=0"),
    (["--limit-train", "1"], "at least 2 training rows"),
    (["--limit-test", "9999"], "got limit_test=9999"),
    (["--record-every", "-1"], "got record_every=-1"),
    (["--augment", "hard"], "got augment='hard'"),
    (["--schedule", "linear"], "got schedule='linear'"),
    (["--amp", "fp8"], "got amp='fp8'"),
    (["--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
]


@pytest.mark.parametrize(("given", "told"), MISTAKES, ids=[" ".join(g) for g, _ in MISTAKES])
def test_a_mistake_gets_one_sentence_and_leaves_nothing(gradwise, here, given, told):
    code, out, err = gradwise("compare", *TINY, *given, "--out", "o")
    assert code == 2
    assert out == ""
    assert told in err
    (line,) = err.splitlines()
    assert line.startswith("gradwise: ")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "given", [["--epochs", "many"], ["--colour"], ["extra"], ["--lr"]], ids=lambda g: g[0]
)
def test_a_wrong_command_line_is_exit_code_2(gradwise, here, given):
    code, _out, err = gradwise("compare", *given)
    assert code == 2
    assert "Error: " in err
    assert list(here.iterdir()) == []


def test_data_of_the_user_with_labels_out_of_range(gradwise, here):
    (here / "labels_of_user.py").write_text(
        "import torch\n"
        "x, y = torch.ones(8, 3), torch.arange(8) - 1\n"
        "def negative(): return x, y, x, y\n"
        "def short(): return x, y[:4].abs(), x, y.abs()\n"
        "def text(): return x, ['a'] * 8, x, y\n"
        "def one_class(): return x, y * 0, x, y * 0\n"
        "def nan(): return x * float('nan'), y.abs(), x, y.abs()\n"
        "def fails(): raise KeyError('images')\n"
    )
    for name, told in (
        ("negative", "got -1 in row 0"),
        ("short", "one label a row"),
        ("text", "expected a tensor or a numpy array"),
        ("one_class", "at least 2 classes"),
        ("nan", "got NaN or infinity in row 0"),
        ("fails", "failed with KeyError: 'images' (line 8"),
        ("negatives", "did you mean negative"),
    ):
        code, _out, err = gradwise(
            "compare", "--data", f"labels_of_user:{name}", "--model", "mlp", "--out", "o"
        )
        assert code == 2
        assert told in err
        assert len(err.splitlines()) == 1
        assert not (here / "o").exists()
    sys.modules.pop("labels_of_user")


def test_a_model_of_the_user_that_does_not_fit(gradwise, here):
    (here / "model_of_user.py").write_text(
        "import torch\n"
        "def wide(num_classes, in_shape): return torch.nn.Linear(99, num_classes)\n"
        "def flat(num_classes, in_shape): return torch.nn.Flatten()\n"
        "def huge(num_classes, in_shape):\n"
        "    return torch.nn.Linear(64, 10 ** 12)\n"
    )
    for name, told in (
        ("wide", "it failed on an input of shape [2, 1, 8, 8]"),
        ("flat", "no parameter to train"),
        ("huge", "calling it failed with RuntimeError"),
        ("none", "has no 'none'"),
    ):
        code, _out, err = gradwise("compare", "--model", f"model_of_user:{name}", "--out", "o")
        assert code == 2
        assert told in err
        assert len(err.splitlines()) == 1
        assert not (here / "o").exists()
    sys.modules.pop("model_of_user")


def test_the_default_folder_is_named_after_data_and_model(gradwise, inline, here):
    assert gradwise("compare", *TINY, "--methods", "sgd", "--seeds", "1")[0] == 0
    assert (here / "runs" / "digits-mlp" / "summary.json").exists()


def test_a_correct_call_works_after_a_wrong_one(gradwise, inline, here):
    assert gradwise("compare", *TINY, "--methods", "sgd,clp", "--seeds", "1", "--out", "o")[0] == 2
    assert gradwise("compare", *TINY, "--methods", "sgd,clip", "--seeds", "1", "--out", "o")[0] == 0


def test_other_settings_are_told(gradwise, inline, here):
    assert gradwise("compare", *TINY, "--methods", "sgd", "--seeds", "1", "--out", "o")[0] == 0
    code, _out, err = gradwise(
        "compare", *TINY, "--lr", "0.5", "--methods", "sgd", "--seeds", "1", "--out", "o"
    )
    assert code == 2
    assert "lr was None and is now 0.5" in err


def test_a_full_disk_is_one_sentence_and_exit_code_1(gradwise, inline, here, monkeypatch):
    import errno

    from gradwise.watch.store import files

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    arguments = ["compare", *TINY, "--methods", "sgd", "--seeds", "1", "--out", "o"]
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        code, _out, err = gradwise(*arguments)
    assert code == 1
    assert err == (
        "gradwise: the disk is full; what was written before is whole, the same command goes on "
        "once there is space\n"
    )
    assert gradwise(*arguments)[0] == 0


def test_interruptions_of_all_kinds(gradwise, here, monkeypatch):
    import os
    import signal

    from gradwise.lab import compare as compare_module

    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        before = signal.getsignal(number)

        def struck(*rest, number=number):
            os.kill(os.getpid(), number)
            raise AssertionError("the signal was ignored")

        monkeypatch.setattr(compare_module, "run_jobs", struck)
        code, _out, err = gradwise("compare", *TINY, "--seeds", "1", "--out", f"o{number}")
        assert code == expected
        assert "gradwise: interrupted; the same command goes on from here" in err
        assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so(gradwise, here, monkeypatch):
    import os
    import signal

    from lab_helpers import run_inline

    from gradwise.lab import compare as compare_module

    def struck(*rest):
        os.kill(os.getpid(), signal.SIGHUP)
        return run_inline(*rest)

    monkeypatch.setattr(compare_module, "run_jobs", struck)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert gradwise("compare", *TINY, "--methods", "sgd", "--seeds", "1", "--out", "o")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_of_ours_is_not_hidden(here, monkeypatch):
    from gradwise.cli.app import run
    from gradwise.lab import compare as compare_module

    def broken(*rest):
        raise AssertionError("a bug")

    monkeypatch.setattr(compare_module, "run_jobs", broken)
    with pytest.raises(AssertionError, match="a bug"):
        run(["compare", *TINY, "--out", "o"])
