"""A comparison: what is run, what is kept, what its folder admits, what the summary says."""

import errno
import json
import os

import pytest
from lab_helpers import make_trial, numbers, run_inline, tiny

from gradwise.errors import UserError
from gradwise.lab import compare as compare_module
from gradwise.lab import folder as folder_module
from gradwise.lab.compare import compare_methods
from gradwise.lab.folder import claim, locked
from gradwise.lab.job import Job
from gradwise.lab.statistics import compare
from gradwise.watch.store import files as store_files

SETTINGS = tiny(epochs=2)
CALM = ["sgd", "clip(max_norm=1e-9)"]


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    monkeypatch.setattr(compare_module, "run_jobs", run_inline)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def identity(folder):
    """What changes when a file is written anew."""
    stats = {path: path.stat() for path in folder.rglob("result.json")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def test_the_summary_has_what_was_promised(out):
    summary = compare_methods(SETTINGS, ["sgd", "autoscale", "znorm"], [0, 1, 2], out)
    read = json.loads((out / "summary.json").read_text())
    assert read == json.loads(json.dumps(summary))
    assert read["baseline"] == "sgd"
    assert list(read["methods"]) == ["sgd", "autoscale", "znorm"]
    for name, method in read["methods"].items():
        accuracy = method["test_accuracy"]
        assert set(accuracy) == {"values", "mean", "ci95"}
        trials = [
            json.loads(path.read_text())["test_accuracy"]
            for path in sorted((out / "trials" / name).glob("seed-*/result.json"))
        ]
        assert accuracy["values"] == trials
        assert accuracy["mean"] == pytest.approx(sum(trials) / 3)
        assert accuracy["ci95"][0] <= accuracy["mean"] <= accuracy["ci95"][1]
        assert method["status"] == ["finished"] * 3
        assert [(out / folder).is_dir() for folder in method["folder"]] == [True] * 3
    assert [c["method"] for c in read["comparisons"]] == ["autoscale", "znorm"]
    for comparison in read["comparisons"]:
        assert {"method", "difference", "ci95", "p", "verdict"} <= set(comparison)
        values = {
            name: dict(enumerate(read["methods"][name]["test_accuracy"]["values"]))
            for name in ("sgd", "autoscale", "znorm")
        }
        (expected,) = [
            one
            for one in compare("sgd", values, resolution=1 / 64)
            if one.method == comparison["method"]
        ]
        assert comparison["difference"] == pytest.approx(expected.difference)
        assert comparison["p"] == pytest.approx(expected.p)
        assert comparison["verdict"] == expected.verdict
    assert read["config"]["settings"]["model"] == "mlp"
    assert read["config"]["settings"]["device"] == "cpu"  # never "auto"
    assert {"gradwise", "torch", "python", "numpy"} <= set(read["versions"])
    assert read["fairness"] == {
        "init_checksum_equal": True,
        "batches_checksum_equal": True,
        "differences": [],
    }
    assert read["finished"] is True


def test_what_auto_stood_for_is_written_down(out):
    settings = compare_methods(tiny(epochs=1, device="auto"), ["sgd"], [0], out)["config"][
        "settings"
    ]
    assert settings["device"] in ("cpu", "cuda")
    assert settings["amp"] in ("off", "bf16", "fp16")
    with pytest.raises(UserError, match="device was"):
        compare_methods(tiny(epochs=1, device="cpu:0"), ["sgd"], [0], out)


def test_numbers_do_not_depend_on_the_order_of_methods(out, tmp_path):
    compare_methods(SETTINGS, ["sgd", "znorm"], [4, 2], out)
    compare_methods(SETTINGS, ["znorm", "sgd"], [2, 4], tmp_path / "other")
    for method in ("sgd", "znorm"):
        for seed in (2, 4):
            one, other = (
                numbers(Job(method, seed, base / "trials" / method / f"seed-{seed}").result())
                for base in (out, tmp_path / "other")
            )
            assert one == other
            alone = make_trial(tmp_path / f"{method}{seed}", SETTINGS, method, seed).run()
            assert one == numbers(alone)


def test_methods_and_seeds_are_added_and_nothing_is_run_twice(out):
    compare_methods(SETTINGS, ["sgd", "clip"], [0, 1], out)
    before = identity(out)
    events = []
    summary = compare_methods(
        SETTINGS,
        ["center", "clip", "sgd"],
        [1, 0, 5],
        out,
        listen=lambda job, event: events.append((job.label, event["event"])),
    )
    after = identity(out)
    assert {path: after[path] for path in before} == before
    started = {label for label, kind in events if kind == "start"}
    assert started == {
        "center seed 0",
        "center seed 1",
        "center seed 5",
        "clip seed 5",
        "sgd seed 5",
    }
    assert {label for label, kind in events if kind == "kept"} == {
        f"{method} seed {seed}" for method in ("sgd", "clip") for seed in (0, 1)
    }
    assert summary["methods"]["sgd"]["seeds"] == [1, 0, 5]
    # Values stand with their seeds, in whatever order these were asked for.
    first = json.loads((out / "trials/sgd/seed-1/result.json").read_text())
    assert summary["methods"]["sgd"]["test_accuracy"]["values"][0] == first["test_accuracy"]


def test_a_summary_says_what_is_missing_at_every_moment(out, monkeypatch):
    seen = []

    def watching(jobs, settings, dataset, at_once, listen):
        def spy(job, event):
            listen(job, event)
            if event["event"] in ("start", "done"):
                summary = json.loads((out / "summary.json").read_text())
                states = [s for m in summary["methods"].values() for s in m["status"]]
                seen.append((states.count("finished"), summary["finished"]))

        return run_inline(jobs, settings, dataset, at_once, spy)

    monkeypatch.setattr(compare_module, "run_jobs", watching)
    compare_methods(SETTINGS, ["sgd", "clip"], [0], out)
    assert seen == [(0, False), (1, False), (1, False), (2, True)]
    seen.clear()
    compare_methods(SETTINGS, ["sgd", "clip"], [0, 1], out)  # a stale summary would say finished
    assert seen[0] == (2, False)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"method": "sgd"}', "null"])
def test_a_result_that_is_torn_or_foreign_is_run_again(out, content):
    compare_methods(SETTINGS, ["sgd"], [0], out)
    path = out / "trials" / "sgd" / "seed-0" / "result.json"
    good = path.read_text()
    path.write_text(content)
    compare_methods(SETTINGS, ["sgd"], [0], out)
    assert numbers(json.loads(path.read_text())) == numbers(json.loads(good))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"method": "clip"},
        {"status": "running"},
        {"test_accuracy": 1.5},
        {"test_accuracy": None},
        {"skipped": None},
        {"init_checksum": 3},
    ],
)
def test_a_result_of_something_else_is_none(out, change):
    compare_methods(SETTINGS, ["sgd"], [0], out)
    job = Job("sgd", 0, out / "trials" / "sgd" / "seed-0")
    good = job.result()
    assert good is not None
    (job.folder / "result.json").write_text(json.dumps({**good, **change}))
    assert job.result() is None


# The baseline


def test_baselines(out):
    assert compare_methods(SETTINGS, ["clip", "sgd"], [0], out)["baseline"] == "sgd"
    other = compare_methods(SETTINGS, ["clip", "sgd"], [0], out, baseline="clip")
    assert other["baseline"] == "clip"
    assert [c["method"] for c in other["comparisons"]] == ["sgd"]
    with pytest.raises(UserError, match=r"one of clip, sgd, got 'adam'"):
        compare_methods(SETTINGS, ["clip", "sgd"], [0], out, baseline="adam")


# Divergence


def test_a_diverged_trial_counts_as_guessing_and_the_others_go_on(out):
    summary = compare_methods(tiny(epochs=2, lr=1e6, weight_decay=0.0), CALM, [0, 1], out)
    sgd, calm = summary["methods"].values()
    assert sgd["status"] == ["diverged", "diverged"]
    assert sgd["test_accuracy"]["values"] == [0.1, 0.1]
    assert calm["status"] == ["finished", "finished"]
    (comparison,) = summary["comparisons"]
    expected = sum(calm["test_accuracy"]["values"]) / 2 - 0.1
    assert comparison["difference"] == pytest.approx(expected)
    assert summary["finished"]
    assert summary["fairness"]["batches_checksum_equal"]
    assert "NaN" not in (out / "summary.json").read_text()


# Fairness and notes


def test_unfair_trials_are_told(out):
    compare_methods(SETTINGS, ["sgd", "clip"], [0, 1], out)
    path = out / "trials" / "clip" / "seed-1" / "result.json"
    for key in ("init_checksum", "batches_checksum"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, key: "f" * 16}))
        fairness = compare_methods(SETTINGS, ["sgd", "clip"], [0, 1], out)["fairness"]
        assert fairness[f"{key}_equal"] is False
        assert fairness["differences"] == [f"seed 1: {key} differs between sgd, clip"]
        path.write_text(json.dumps(result))


def test_trials_of_different_versions_and_devices_are_told(out):
    assert not any(
        "different" in n for n in compare_methods(SETTINGS, ["sgd"], [0, 1], out)["notes"]
    )
    path = out / "trials" / "sgd" / "seed-1" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "device": "A100", "versions": {"torch": "1.0"}}))
    summary = compare_methods(SETTINGS, ["sgd"], [0, 1], out)
    assert "The trials ran with different devices: A100; cpu." in summary["notes"]
    assert any("different versions" in n and "torch 1.0" in n for n in summary["notes"])
    assert summary["versions"]["device"] == "A100, cpu"


def test_notes_on_few_seeds_and_learning_rates(out, tmp_path):
    one = compare_methods(SETTINGS, ["sgd", "clip"], [0], out)["notes"]
    assert any(n.startswith("One seed shows no spread") for n in one)
    assert any("its optimizer's usual learning rate" in n for n in one)
    five = compare_methods(tiny(epochs=1, lr=0.5), ["sgd", "adamw"], range(5), tmp_path / "b")
    assert five["notes"] == []


# The folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lr": 0.2}, "lr was None and is now 0.2"),
        ({"epochs": 3}, "epochs was 2 and is now 3"),
        ({"limit_train": 96}, "limit_train was 128 and is now 96"),
        ({"optimizer": "adamw"}, "optimizer was 'sgd' and is now 'adamw'"),
    ],
)
def test_other_settings_are_refused_and_named(out, change, told):
    compare_methods(SETTINGS, ["sgd"], [0], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        compare_methods(tiny(**{"epochs": 2, **change}), ["sgd"], [0], out)
    assert str(caught.value) == (
        f"--out {out} was made with other settings: {told}; choose another --out"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_other_data_is_refused(out, tmp_path, monkeypatch):
    config = {"settings": {"data": "mine:load", "data_dir": "/a"}, "methods": ["sgd"], "seeds": [0]}
    out.mkdir()
    claim(out, {**config, "dataset": "1"})
    moved = {**config, "settings": {"data": "mine:load", "data_dir": "/b"}}
    claim(out, {**moved, "dataset": "1"})  # the same data in another place is the same data
    with pytest.raises(UserError, match="data set's content is another"):
        claim(out, {**config, "dataset": "2"})


@pytest.mark.parametrize(
    ("methods", "seeds", "told"),
    [
        (["sgd"], [0, 1], "methods clip; name these too"),
        (["sgd", "clip"], [0], "seeds 1; name these too"),
        (["adamw"], [7], "methods sgd, clip; seeds 0, 1; name these too"),
    ],
)
def test_to_leave_something_out_is_refused(out, methods, seeds, told):
    compare_methods(SETTINGS, ["sgd", "clip"], [0, 1], out)
    with pytest.raises(UserError, match="holds more than that") as caught:
        compare_methods(SETTINGS, methods, seeds, out)
    assert told in str(caught.value)


def test_a_foreign_folder_is_refused_and_nothing_is_left_in_it(out):
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    told = r"not empty and no folder of gradwise compare .*'thesis.tex'"
    with pytest.raises(UserError, match=told):
        compare_methods(SETTINGS, ["sgd"], [0], out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_what_a_killed_beginning_left_does_not_block(out):
    out.mkdir()
    (out / ".lock").touch()
    (out / ".config.json.tmp").write_text("{")
    assert compare_methods(SETTINGS, ["sgd"], [0], out)["finished"]


def test_a_file_in_the_place_of_the_folder(out):
    out.write_text("")
    with pytest.raises(UserError, match=r"--out .* cannot be written: File exists"):
        compare_methods(SETTINGS, ["sgd"], [0], out)


def test_an_unwritable_folder(out, monkeypatch):
    def denied(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(folder_module.Path, "mkdir", denied)  # the tests may run as root
    with pytest.raises(UserError, match=r"--out .* cannot be written: Permission denied"):
        compare_methods(SETTINGS, ["sgd"], [0], out)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is not valid JSON"),
        ('{"format": 1, "methods', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\xff", "is not valid JSON"),
        ("[1]", "holds no JSON object"),
        ('{"format": 1}', "lacks settings, methods or seeds"),
        ('{"format": 1, "settings": 3, "methods": [], "seeds": []}', "lacks settings"),
        ('{"format": 2}', "has format 2, this gradwise reads 1"),
        ("{}", "has format None"),
    ],
)
def test_a_config_that_is_torn_foreign_or_newer(out, content, told):
    compare_methods(SETTINGS, ["sgd"], [0], out)
    (out / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=told) as caught:
        compare_methods(SETTINGS, ["sgd"], [0], out)
    assert str(out) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (out / "config.json").read_text(encoding="latin-1") == content


def test_two_at_once_on_one_folder(out):
    with locked(out), pytest.raises(UserError, match="being written by another gradwise compare"):
        compare_methods(SETTINGS, ["sgd"], [0], out)
    assert compare_methods(SETTINGS, ["sgd"], [0], out)["finished"]


def test_a_file_system_without_locks_has_none_to_wait_for(out, monkeypatch):
    import fcntl

    def unsupported(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert compare_methods(SETTINGS, ["sgd"], [0], out)["finished"]


@pytest.mark.parametrize("name", ["config.json", "summary.json", "result.json"])
def test_a_full_disk_loses_nothing(out, monkeypatch, name):
    compare_methods(SETTINGS, ["sgd"], [0], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    real = store_files.Draft.__init__

    def full(self, final):
        if final.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(final))
        real(self, final)

    monkeypatch.setattr(store_files.Draft, "__init__", full)
    with pytest.raises(OSError, match="No space left") as caught:
        compare_methods(SETTINGS, ["sgd"], [0, 1], out)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setattr(compare_module, "run_jobs", run_inline)
    kept = {path: path.read_bytes() for path in before if "trials" in path.parts}
    assert kept == {path: content for path, content in before.items() if "trials" in path.parts}
    assert compare_methods(SETTINGS, ["sgd"], [0, 1], out)["finished"]


def test_a_full_disk_where_the_folder_is_made(out, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(folder_module.Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        compare_methods(SETTINGS, ["sgd"], [0], out)


# What is told before anything runs


@pytest.mark.parametrize(
    ("settings", "more", "told"),
    [
        (tiny(limit_train=1, batch_size=2), {}, "at least 2 training rows"),
        (tiny(limit_train=0), {}, "got limit_train=0"),
        (tiny(limit_test=10**6), {}, "got limit_test=1000000"),
        (tiny(model="vgg16bn"), {}, "at least 32"),
        (tiny(model="mpl"), {}, "did you mean 'mlp'"),
        (tiny(data="digit"), {}, "did you mean digits"),
        (tiny(), {"seeds": [-1]}, "got seed -1"),
        (tiny(), {"seeds": [2**32]}, "got seed 4294967296"),
        (tiny(), {"jobs": 0}, "got jobs=0"),
        (tiny(), {"methods": ["clip(max_norm=-1)"]}, "max_norm=-1"),
    ],
)
def test_mistakes_leave_nothing_behind(out, settings, more, told):
    arguments = {"methods": ["sgd"], "seeds": [0], **more}
    with pytest.raises(UserError) as caught:
        compare_methods(settings, out=out, **arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_model_that_is_too_large_is_told(out, monkeypatch):
    def huge(name, *, num_classes, in_shape):
        raise RuntimeError("[enforce fail] can't allocate memory\nmore lines")

    monkeypatch.setattr(compare_module, "build", huge)
    with pytest.raises(
        UserError, match=r"model 'mlp' cannot be trained with 10 classes .*allocate"
    ) as c:
        compare_methods(SETTINGS, ["sgd"], [0], out)
    assert "more lines" not in str(c.value)
