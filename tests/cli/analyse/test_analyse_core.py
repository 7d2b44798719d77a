"""What all of `gradwise analyse` shares: data, model, weights, loss, the folder, interruptions."""

import json

import pytest
import torch

from gradwise.cli.analyse._loss import cross_entropy, mean_squared_error
from gradwise.errors import UserError
from gradwise.lab.models import build

R, M = "regression_of_user", "mistakes_of_user"
QUICK = ["--points", "2", "--eigenvalues", "0"]


def loss_of(found):
    return found["found"]["margin"]["loss"]


@pytest.mark.parametrize("form", ["arrays", "loader", "Rows", "four"])
def test_every_form_of_data_gives_the_same_numbers(analyse, own, form):
    def measured(name, *more):
        return analyse("landscape", "--model", f"{R}:net", "--data", f"{R}:{name}", *QUICK, *more)

    limit = ("--limit", "64") if form == "four" else ()
    expected = measured("tensors", *limit)
    found = measured(form, *(() if form == "four" else limit))
    assert loss_of(found) == pytest.approx(loss_of(expected), rel=1e-5)
    assert found["settings"]["loss"] == "mse"


def test_splits(analyse, gradwise, own):
    given = ["landscape", "--model", f"{R}:net", *QUICK, "--data"]
    train, test = (analyse(*given, f"{R}:four", "--split", s) for s in ("train", "test"))
    assert (train["settings"]["samples"], test["settings"]["samples"]) == (64, 32)
    assert loss_of(train) != loss_of(test)
    code, out, err = gradwise("analyse", *given, f"{R}:tensors", "--split", "test")
    assert (code, out) == (2, "")
    assert "for --split test, it returned one set" in err


def test_four_arrays_of_classes_are_standardised_as_trials_have_them(analyse, own):
    found = analyse("landscape", "--model", "mlp", "--data", f"{R}:classes", *QUICK)
    assert found["settings"]["loss"] == "cross-entropy"
    assert loss_of(found) == pytest.approx(0.7, abs=0.2)  # about log 2


def test_limit_of_a_loader_that_shuffles_keeps_the_same_samples(analyse, own):
    given = ["--model", f"{R}:net", "--data", f"{R}:loader", "--limit", "20", "--points", "5"]
    found = analyse("landscape", *given, "--eigenvalues", "0")
    line = found["found"]["line"]
    assert found["settings"]["samples"] == 20
    assert line["losses"][line["steps"].index(0.0)] == pytest.approx(loss_of(found))


def test_losses(analyse, own):
    given = ["landscape", "--model", f"{R}:net", "--data", f"{R}:tensors", *QUICK]
    mse, huber = (analyse(*given, "--loss", name) for name in ("mse", f"{R}:huber"))
    assert huber["settings"]["loss"] == f"{R}:huber"
    assert loss_of(huber) < loss_of(mse)
    given[2] = f"{R}:Shaped"  # whose outputs have the targets' shape, as torch wants it
    of_torch, own_one = (
        analyse(*given, "--loss", name) for name in ("torch.nn:HuberLoss", f"{R}:huber")
    )
    assert loss_of(of_torch) == loss_of(own_one)


def test_batch_norm_that_has_seen_nothing_is_told(analyse, gradwise, here):
    given = ["noise", "--limit", "40", "--batches", "2", "--batch-size", "10"]
    assert "Batch norm has seen no data yet" in analyse(*given)["caution"]
    assert "Batch norm" in gradwise("analyse", *given)[1]
    model = build("digits-resnet", num_classes=10, in_shape=(1, 8, 8))
    model(torch.randn(4, 1, 8, 8))
    torch.save(model.state_dict(), here / "w.pt")
    assert analyse(*given, "--weights", "w.pt")["caution"] == ""
    assert analyse(*given, "--model", "mlp")["caution"] == ""


def test_cross_entropy_of_sequences_images_and_named_logits():
    logits, targets = torch.randn(4, 6, 5), torch.randint(5, (4, 6))
    plain = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets)
    assert cross_entropy(logits, targets) == pytest.approx(plain.item())
    assert cross_entropy(logits, targets.int()) == pytest.approx(plain.item())
    maps, labels = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    expected = torch.nn.functional.cross_entropy(maps, labels)
    assert cross_entropy(maps, labels) == expected

    class Output:
        logits = torch.zeros(3, 4)

    assert cross_entropy(Output(), torch.zeros(3)[:, None].expand(3, 4)) == 0
    with pytest.raises(UserError, match="give a tensor, got list"):
        cross_entropy([1], targets)


def test_squared_error_never_broadcasts():
    assert mean_squared_error(torch.ones(3, 1), torch.zeros(3)) == 1
    with pytest.raises(UserError, match=r"targets' shape \[3\] for loss mse, got \[3, 2\]"):
        mean_squared_error(torch.ones(3, 2), torch.zeros(3))
    with pytest.raises(UserError, match="loss mse"):
        mean_squared_error(torch.ones(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("place", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights(analyse, here, place, prefix):
    torch.manual_seed(5)
    state = build("mlp", num_classes=10, in_shape=(1, 8, 8)).state_dict()
    state = {prefix + key: value for key, value in state.items()}
    torch.save(state if place is None else {place: state, "epoch": 3}, here / "w.pt")
    given = ["landscape", "--model", "mlp", "--limit", "50", *QUICK]
    found = analyse(*given, "--weights", "w.pt", "--seed", "0")
    assert loss_of(found) == pytest.approx(loss_of(analyse(*given, "--seed", "5")))
    assert loss_of(found) != loss_of(analyse(*given, "--seed", "0"))
    assert found["settings"]["weights"] == "w.pt"


def test_weights_that_do_not_fit(gradwise, here):
    def told(content):
        torch.save(content, here / "w.pt")
        code, out, err = gradwise(
            "analyse", "noise", "--model", "mlp", "--limit", "50", "--weights", "w.pt"
        )
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        return line

    state = build("mlp", num_classes=10, in_shape=(1, 8, 8)).state_dict()
    first, *_, last = state
    assert f"they lack '{first}'" in told({k: v for k, v in state.items() if k != first})
    assert "it has no 'extra.bias'" in told({**state, "extra.bias": torch.ones(2)})
    assert f"'{last}' is [3] there and [10] in the model" in told({**state, last: torch.ones(3)})
    many = told({"other.weight": torch.ones(1)})
    assert "and" in many
    assert "more" in many
    assert "to hold a state dict" in told({"epoch": 3})
    assert "to hold a state dict" in told([1, 2])
    (here / "w.pt").write_bytes(b"no weights at all")
    code, _, err = gradwise("analyse", "noise", "--model", "mlp", "--weights", "w.pt")
    assert code == 2
    assert "readable with weights_only=True" in err
    code, _, err = gradwise("analyse", "noise", "--model", "mlp", "--weights", "gone.pt")
    assert code == 2
    assert "cannot read weights gone.pt: No such file" in err


class Hostile:
    def __reduce__(self):
        return eval, ("open('hacked', 'w').close()",)


def test_weights_run_no_code(gradwise, here):
    torch.save({"model": Hostile()}, here / "w.pt")
    code, _, err = gradwise("analyse", "noise", "--model", "mlp", "--weights", "w.pt")
    assert code == 2
    assert "readable with weights_only=True" in err
    assert not (here / "hacked").exists()


MISTAKES = [
    (["--data", "digts"], "did you mean digits?"),
    (["--data", "cifar10"], "expected a folder (data_dir)"),
    (["--data-dir", "nowhere"], "found no folder nowhere (--data-dir)"),
    (["--model", "mpl"], "did you mean 'mlp'?"),
    (["--model", "vgg16bn"], "at least 32"),
    (["--data", "nothing_of_user:load", "--model", "mlp"], "found no module nothing_of_user"),
    (["--model", "nothing_of_user:net"], "found no module nothing_of_user for model"),
    (["--model", "a-b:net"], "expected model as module:function, got 'a-b:net'"),
    (["--loss", "hinge"], "expected loss to be one of cross-entropy, mse or module:function"),
    (["--loss", "torch.nn:Hinge"], "found no function Hinge in module torch.nn for loss"),
    (["--loss", "mse"], "targets' shape [2] for loss mse, got [2, 10]"),
    (["--limit", "0"], "expected limit >= 1, got limit=0"),
    (["--limit", "99999"], "expected 1 <= limit <= 1437 for digits, got limit=99999"),
    (["--seed", "-1"], "got seed=-1"),
    (["--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
    (["--data", f"{M}:fine"], "is your own, so name a model as well"),
    (["--data", f"{M}:fine", "--model", "mlp"], "expected data whose classes are known"),
    (["--data", f"{M}:broken", "--model", f"{M}:net"], "RuntimeError: the disk is elsewhere (line"),
    (["--data", f"{M}:nothing", "--model", f"{M}:net"], "got a value of type NoneType"),
    (["--data", f"{M}:once", "--model", f"{M}:net"], "what can be iterated again"),
    (["--data", f"{M}:three", "--model", f"{M}:net"], "(inputs, targets), got 3 values"),
    (["--data", f"{R}:rows", "--model", f"{R}:net"], "got single ones"),
    (["--data", f"{M}:empty", "--model", f"{M}:net"], "at least one batch"),
    (["--data", f"{M}:ragged", "--model", f"{M}:net"], "got 4 inputs and 3 targets"),
    (["--data", f"{M}:nan", "--model", f"{M}:net"], "got NaN or infinity"),
    (["--data", f"{M}:words", "--model", f"{M}:net"], "expected arrays of numbers"),
    (["--data", f"{M}:late", "--model", f"{M}:net"], "failed with OSError: a file has gone (line"),
    (["--data", f"{M}:fine", "--model", f"{M}:needs"], "num_classes and in_shape, got width"),
    (["--data", f"{M}:fine", "--model", f"{M}:fine"], "torch.nn.Module, got tuple"),
    (["--data", f"{M}:fine", "--model", f"{M}:frozen"], "to have a parameter to train"),
    (["--data", f"{M}:fine", "--model", f"{M}:narrow"], "failed with RuntimeError: mat1 and mat2"),
    (["--data", f"{M}:fine", "--model", f"{M}:wide"], "targets' shape [2] for loss mse"),
    (["--data", f"{M}:fine", "--model", f"{M}:Moody"], "the model failed with ValueError: enough"),
    (
        ["--data", f"{M}:fine", "--model", f"{M}:net", "--loss", f"{M}:vector"],
        "return one number, the mean of a batch, got shape [2]",
    ),
    (
        ["--data", f"{M}:fine", "--model", f"{M}:net", "--loss", f"{M}:number"],
        "to return a tensor, got float",
    ),
]


@pytest.mark.parametrize(("given", "told"), MISTAKES, ids=[" ".join(g) for g, _ in MISTAKES])
def test_a_mistake_gets_one_sentence_and_leaves_nothing(gradwise, own, given, told):
    before = sorted(own.glob("*.py"))
    code, out, err = gradwise("analyse", "noise", *given, "--out", "o")
    assert (code, out) == (2, "")
    assert told in err
    (line,) = err.splitlines()
    assert line.startswith("gradwise: ")
    assert sorted(path for path in own.iterdir() if path.is_file()) == before
    assert not (own / "o").exists()


@pytest.mark.parametrize("name", ["noise", "landscape", "sparsity"])
def test_a_wrong_command_line_is_exit_code_2(gradwise, here, name):
    for given in (["--colour"], ["extra"], ["--limit", "many"], ["--split", "all"]):
        code, out, err = gradwise("analyse", name, *given)
        assert (code, out) == (2, "")
        assert "Error: " in err
    code, out, _ = gradwise("analyse", name, "--help")
    assert code == 0
    for option in ("--model", "--data-dir", "--weights", "--batch-size", "--json", "--out"):
        assert option in out


def test_the_folder_is_replaced_as_a_whole(gradwise, own):
    given = ["--model", f"{R}:net", "--data", f"{R}:tensors", "--out", "o"]
    assert gradwise("analyse", "sparsity", *given)[0] == 0
    assert (own / "o/sparsity-spectra.svg").exists()
    assert gradwise("analyse", "noise", *given)[0] == 0
    names = {path.name for path in (own / "o").iterdir()} - {".lock"}
    assert names == {"analysis.json", "noise.svg", "report.html", "report.md"}
    found = json.loads((own / "o/analysis.json").read_text())
    assert found["analysis"] == "noise"
    assert set(found["files"]) == names - {"analysis.json"}


def test_a_folder_that_broke_off_is_set_right(gradwise, own, monkeypatch):
    from gradwise.report import article

    given = ["--model", f"{R}:net", "--data", f"{R}:tensors", "--out", "o"]
    assert gradwise("analyse", "sparsity", *given)[0] == 0
    written = article.replace_file

    def full(path, data):
        if path.suffix == ".md":
            raise OSError(28, "No space left on device")
        written(path, data)

    monkeypatch.setattr(article, "replace_file", full)
    code, _, err = gradwise("analyse", "noise", *given)
    assert code == 1
    assert "the disk is full" in err
    monkeypatch.setattr(article, "replace_file", written)
    assert gradwise("analyse", "noise", *given)[0] == 0
    names = {path.name for path in (own / "o").iterdir()} - {".lock"}
    assert names == {"analysis.json", "noise.svg", "report.html", "report.md"}


def test_a_foreign_folder_stays_and_is_refused_before_any_work(gradwise, own, monkeypatch):
    from gradwise.cli.analyse import _samples

    given = ["analyse", "noise", "--model", f"{R}:net", "--data", f"{R}:tensors", "--out", "o"]
    assert gradwise(*given)[0] == 0
    monkeypatch.setattr(_samples, "load_samples", None)  # nothing is loaded
    (own / "o/thesis.txt").write_text("mine")
    code, out, err = gradwise(*given)
    assert (code, out) == (2, "")
    assert "it holds 'thesis.txt'" in err
    (own / "o/thesis.txt").unlink()
    (own / "o/analysis.json").write_text('{"mine": true}')
    code, _, err = gradwise(*given)
    assert code == 2
    assert "is no folder of this gradwise analyse" in err
    assert (own / "o/analysis.json").read_text() == '{"mine": true}'
    (own / "o/analysis.json").write_text("{")
    assert "is damaged" in gradwise(*given)[2]
    (own / "file").write_text("x")
    code, _, err = gradwise(*given[:-1], "file")
    assert code == 2
    assert "expected --out to be a folder" in err


def test_pages_escape_what_the_user_named(gradwise, own):
    (own / "w.pt").write_bytes(b"")
    (own / "<b>.pt").write_bytes(b"")
    state = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    ).state_dict()
    torch.save(state, own / "<b>.pt")
    code, _, _ = gradwise(
        "analyse", "noise", "--model", f"{R}:net", "--data", f"{R}:tensors",
        "--weights", "<b>.pt", "--out", "o",
    )  # fmt: skip
    assert code == 0
    assert "<b>" not in (own / "o/report.html").read_text()


def test_ctrl_c_ends_with_130(gradwise, own, monkeypatch):
    from gradwise.analysis import noise

    def struck(*rest, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(noise, "gradient_noise", struck)
    code, out, err = gradwise("analyse", "noise", "--limit", "50", "--model", "mlp", "--out", "o")
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert not (own / "o").exists()


def test_an_error_of_ours_is_not_hidden(here, monkeypatch):
    from gradwise.analysis import noise
    from gradwise.cli.app import run

    def broken(*rest, **named):
        raise AssertionError("a bug")

    monkeypatch.setattr(noise, "gradient_noise", broken)
    with pytest.raises(AssertionError, match="a bug"):
        run(["analyse", "noise", "--limit", "50", "--model", "mlp"])


def test_a_process_of_its_own_finds_the_users_neighbours(start, own):
    (own / "helper_of_user.py").write_text("WIDTH = 8\n")
    (own / "late_of_user.py").write_text(
        "import torch\n"
        "def net():\n"
        "    from helper_of_user import WIDTH\n"
        "    return torch.nn.Sequential(torch.nn.Linear(5, WIDTH), torch.nn.ReLU(), "
        "torch.nn.Linear(WIDTH, 1))\n"
    )
    process = start(
        "analyse", "noise", "--model", "late_of_user:net", "--data", f"{R}:loader", "--json"
    )
    code, out, err = process.end()
    assert code == 0, err
    assert json.loads(out)["found"]["gradient"]["samples"] == 96
    assert err == "loading"
