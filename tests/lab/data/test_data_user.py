"""Data from the user's own function."""

import itertools
import os
import sys
import textwrap

import numpy as np
import pytest
import torch

from gradwise.errors import UserError
from gradwise.lab.data import Dataset, from_arrays, load

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current directory and give its name."""
    monkeypatch.chdir(tmp_path)
    written = []

    def write(source: str) -> str:
        # A name that no test before has imported.
        name = f"users_data_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


HEAD = """
import numpy as np, torch
x = np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2)
y = np.array([0, 1, 2, 1])
"""


def test_numpy_arrays_become_a_dataset(module):
    name = module(HEAD + "def make(): return x, y, x[:2], y[:2]")
    dataset = load(f"{name}:make")
    assert dataset.name == f"{name}:make"
    assert dataset.train_x.dtype == torch.uint8
    assert dataset.train_y.tolist() == [0, 1, 2, 1]
    assert dataset.num_classes == 3
    assert (dataset.crop_padding, dataset.flip, dataset.class_names) == (0, False, ())


@pytest.mark.parametrize(
    ("expression", "dtype"),
    [
        ("x", torch.uint8),
        ("x.astype(np.float16)", torch.float32),
        ("x.astype('>f8')", torch.float32),
        ("x.astype(np.longdouble)", torch.float32),
        ("np.broadcast_to(x[:1], x.shape)", torch.uint8),
        ("x[:, ::-1, :, ::-1]", torch.uint8),
        ("torch.from_numpy(x).to(torch.bfloat16)", torch.float32),
        ("torch.from_numpy(x).double().requires_grad_()", torch.float32),
        ("torch.from_numpy(x).permute(0, 1, 3, 2)", torch.uint8),
    ],
)
def test_kinds_of_rows(module, expression, dtype):
    name = module(HEAD + f"rows = {expression}\ndef make(): return rows, y, rows, y")
    dataset = load(f"{name}:make")
    rows = sys.modules[name].rows
    wanted = rows.detach().float().numpy() if isinstance(rows, torch.Tensor) else rows
    assert dataset.train_x.dtype == dtype
    assert dataset.train_x.is_contiguous()
    assert not dataset.train_x.requires_grad
    np.testing.assert_array_equal(dataset.train_x.numpy(), np.asarray(wanted, np.float64))


@pytest.mark.parametrize("expression", ["y.astype(np.int8)", "y.astype('>u2')", "torch.tensor(y)"])
def test_kinds_of_labels(module, expression):
    name = module(HEAD + f"labels = {expression}\ndef make(): return [x, labels, x, labels]")
    dataset = load(f"{name}:make")
    assert dataset.test_y.dtype == torch.int64
    assert dataset.test_y.tolist() == [0, 1, 2, 1]


def test_a_dataset_is_taken_as_it_is_but_for_name_and_fingerprint(module):
    name = module(
        HEAD + """
        """
        "\nfrom dataclasses import replace"
        "\nfrom gradwise.lab.data import from_arrays"
        "\na, b = torch.from_numpy(x), torch.from_numpy(y)"
        "\nmade = from_arrays('mine', a, b, a, b, num_classes=5, crop_padding=1, flip=True)"
        "\ndef make(): return replace(made, fingerprint='forged', mean=torch.zeros(3))"
    )
    dataset = load(f"{name}:make")
    made: Dataset = sys.modules[name].made
    assert dataset.fingerprint == made.fingerprint
    assert (dataset.num_classes, dataset.crop_padding, dataset.flip) == (5, 1, True)
    assert dataset.mean.tolist() == [0, 0, 0]
    assert dataset.name == f"{name}:make"


def test_a_dataset_with_nan_is_refused(module):
    name = module(
        HEAD + "from gradwise.lab.data import from_arrays\n"
        "a, b = torch.ones(4, 3), torch.from_numpy(y)\n"
        "made = from_arrays('mine', a, b, a.clone(), b)\n"
        "made.test_x[1, 1] = float('nan')\n"
        "def make(): return made"
    )
    with pytest.raises(UserError, match=r"test_x of .*:make, got NaN or infinity in row 1"):
        load(f"{name}:make")


@pytest.mark.parametrize(
    ("signature", "given", "seen"),
    [
        ("", "d", "none"),
        ("folder", "d", "d"),
        ("folder", None, "None"),
        ("folder='own'", "d", "d"),
        ("folder='own'", None, "own"),
        ("*folders", "d", "('d',)"),
        ("folder, size=3", "d", "d"),
        ("*, size=3", "d", "none"),
        ("**options", "d", "none"),
    ],
)
def test_the_folder_is_given_to_functions_that_take_one(module, signature, given, seen):
    argument = signature.lstrip("*").split(",")[0].split("=")[0].strip()
    argument = argument if argument.startswith("folder") else "'none'"
    shown = f"tuple(str(f) for f in {argument})" if "*folders" in signature else argument
    name = module(
        HEAD + f"def make({signature}):\n    global got\n    got = str({shown})\n"
        "    return x, y, x, y"
    )
    load(f"{name}:make", given)
    assert sys.modules[name].got == seen


@pytest.mark.parametrize("signature", ["a, b", "a, *, b", "*, b"])
def test_functions_that_need_more_are_refused(module, signature):
    name = module(HEAD + f"def make({signature}): return x, y, x, y")
    with pytest.raises(UserError, match="to need at most one argument, the data folder, got "):
        load(f"{name}:make", "d")


def test_the_current_directory_comes_first_and_is_taken_off_again(module, tmp_path):
    name = module(HEAD + "import sys\npath = list(sys.path)\ndef make(): return x, y, x, y")
    before = list(sys.path)
    load(f"{name}:make")
    assert sys.path == before
    assert sys.modules[name].path[0] == str(tmp_path)


def test_a_module_written_a_moment_ago_is_found(module, tmp_path):
    load(f"{module(HEAD + 'def make(): return x, y, x, y')}:make")
    before = tmp_path.stat()
    name = module(HEAD + "def make(): return x, y, x, y")
    # Python remembers a folder's contents until its time changes, which on coarse clocks it may
    # not do in time.
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(f"{name}:make").num_classes == 3


def test_modules_in_packages_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = f"users_package_{next(_numbers)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "sets.py").write_text(HEAD + "def make(): return x, y, x, y")
    assert load(f"{package}.sets:make").num_classes == 3
    sys.modules.pop(f"{package}.sets")
    sys.modules.pop(package)


@pytest.mark.parametrize("name", ["m:", ":f", "m:f:g", "a b:f", "m:f()", "a..b:f", "../m:f"])
def test_names_that_are_no_names_are_refused(name):
    with pytest.raises(UserError, match="expected data as module:function, got"):
        load(name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def maek(): pass", "found no function make in module .*, did you mean maek?"),
        ("make = 3", "to be a function, got a value of type int"),
        ("import not_there_at_all", "failed with ModuleNotFoundError: No module named 'not_th"),
        ("1 / 0", r"failed with ZeroDivisionError: division by zero \(line \d+ of .*users_data"),
        ("def make(:", "failed with SyntaxError"),
        ("def make(): raise KeyError('a\\nb')", r"failed with KeyError: 'a\\nb' \(line 5 of"),
        ("def make(): raise RuntimeError('a\\nb')", r"RuntimeError: a b \(line"),
        ("def make(): assert False", r"failed with AssertionError \(line"),
        ("def make(): return x", "or a Dataset, got a value of type ndarray"),
        ("def make(): return x, y", "or a Dataset, got 2 values"),
        ("def make(): return None", "or a Dataset, got a value of type NoneType"),
        ("def make(): return x, y, x, [0] * 4", "numpy array as test_y of .*, got a value of type"),
        ("def make(): return x.astype(int), y, x, y", "uint8.* or floats as train_x .*int64"),
        ("def make(): return x.astype(complex), y, x, y", "numbers as train_x of .* complex128"),
        ("def make(): return x.astype(object), y, x, y", "numbers as train_x of .*got object"),
        ("def make(): return x, y * 1.0, x, y", "whole numbers as train_y of .*float64"),
        ("def make(): return x, y > 0, x, y", "whole numbers as train_y of .*bool"),
        ("def make(): return x, y - 1, x, y", "labels 0 to 2 in train_y of .*got -1 in row 0"),
        ("def make(): return x, y[:3], x, y", "expected one label a row"),
        ("def make(): return x[:, 0], y, x, y", r"uint8 images \[N, C, H, W\]"),
        ("def make(): return x[:0], y[:0], x, y", "at least one row"),
        ("def make(): return x * np.nan, y, x * 1., y", "NaN or infinity in row 0"),
        ("def make(): return torch.eye(4).to_sparse(), y, x, y", "dense tensor as train_x"),
        ("def make(): return x, y * 0, x, y * 0", "at least 2 classes"),
    ],
    ids=lambda value: "" if "expected" in value else value[:30],
)
def test_what_goes_wrong_is_one_sentence(module, body, message):
    name = module(HEAD + body)
    with pytest.raises(UserError, match=message) as caught:
        load(f"{name}:make")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_module_here:make", "no_such_module_here.deeper:make"])
def test_a_module_that_is_not_there_is_looked_for_here(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"found no module no_such_module_here .* in {tmp_path}"):
        load(name)


def test_a_sentence_of_the_users_own_passes_through(module):
    name = module(
        "from gradwise.errors import UserError\ndef make(): raise UserError('no photos in d')"
    )
    with pytest.raises(UserError, match=r"^no photos in d$"):
        load(f"{name}:make")


def test_what_functions_return_is_not_cached(module, cache_home):
    name = module(HEAD + "calls = []\ndef make():\n    calls.append(1)\n    return x, y, x, y")
    load(f"{name}:make")
    load(f"{name}:make")
    assert len(sys.modules[name].calls) == 2
    assert not cache_home.exists()


def test_tables_of_floats_are_data_too():
    x, y = torch.randn(10, 7), torch.arange(10) % 3
    dataset = from_arrays("table", x, y, x, y)
    assert dataset.in_shape == (7,)
    assert dataset.mean.shape == (7,)
