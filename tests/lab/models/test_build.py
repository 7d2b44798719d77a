"""Models by name, models of the user's own, and what is said when neither works."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gradwise.errors import UserError
from gradwise.lab.models import available, build

_serial = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into a fresh current directory and return its name."""
    monkeypatch.chdir(tmp_path)
    names = []

    def write(source: str) -> str:
        # A new name each time: Python keeps imported modules.
        names.append(f"user_model_{next(_serial)}")
        Path(f"{names[-1]}.py").write_text("import torch\nfrom torch import nn\n" + source)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def user_build(spec, num_classes=3, in_shape=(4,)):
    return build(spec, num_classes=num_classes, in_shape=in_shape)


def test_available_names_all_build():
    assert available() == ("digits-resnet", "mlp", "resnet20", "resnet32", "resnet56", "vgg16bn")
    for name in available():
        model = build(name, num_classes=4, in_shape=(2, 32, 40)).eval()
        assert model(torch.zeros(2, 2, 32, 40)).shape == (2, 4)
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet21", "resnet20"),
        ("ResNet-56", "resnet56"),
        ("vgg16-bn", "vgg16bn"),
        ("digits", "digits-resnet"),
        ("MLP2", "mlp"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f"unknown model {name!r}: did you mean {nearest!r}"):
        build(name, num_classes=10, in_shape=(3, 32, 32))


def test_unknown_name_lists_all_of_them():
    with pytest.raises(UserError, match=", ".join(available())):
        build("?", num_classes=10, in_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("name", "in_shape", "least"),
    [
        ("resnet20", (3, 7, 32), 8),
        ("resnet20", (3, 32), 8),
        ("resnet56", (64,), 8),
        ("digits-resnet", (1, 8, 7), 8),
        ("vgg16bn", (3, 32, 31), 32),
    ],
)
def test_shapes_that_do_not_fit(name, in_shape, least):
    with pytest.raises(UserError, match=rf"at least {least} for model '{name}', got \["):
        build(name, num_classes=10, in_shape=in_shape)


@pytest.mark.parametrize("in_shape", [(), (0, 8, 8), (3, 8, -8)])
def test_shapes_that_make_no_sense(in_shape):
    with pytest.raises(UserError, match="in_shape of positive sizes"):
        build("mlp", num_classes=10, in_shape=in_shape)


def test_number_of_classes_is_checked():
    with pytest.raises(UserError, match=r"num_classes >= 2, got num_classes=1"):
        build("mlp", num_classes=1, in_shape=(4,))


@pytest.mark.parametrize(
    "definition",
    [
        "def make(num_classes, in_shape): return nn.Linear(in_shape[0], num_classes)",
        "def make(*, in_shape, num_classes): return nn.Linear(in_shape[0], num_classes)",
        "def make(**settings):\n"
        "    return nn.Linear(settings['in_shape'][0], settings['num_classes'])",
        "def make(num_classes, width=4): return nn.Linear(width, num_classes)",
        "def make(): return nn.Linear(4, 3)",
        "class make(nn.Linear):\n    def __init__(self): super().__init__(4, 3)",
        "def make(num_classes): return nn.LazyLinear(num_classes)",
    ],
)
def test_users_function(module, definition):
    model = user_build(f"{module(definition)}:make")
    assert model(torch.zeros(5, 4)).shape == (5, 3)
    assert model.training


def test_users_function_may_be_an_attribute_and_import_its_neighbours(module):
    neighbour = module("class Nets:\n    @staticmethod\n    def small(): return nn.Linear(4, 3)")
    # The second import happens only when the function is called.
    main = module(f"def make():\n    from {neighbour} import Nets\n    return Nets.small()")
    assert isinstance(user_build(f"{neighbour}:Nets.small"), nn.Linear)
    assert isinstance(user_build(f"{main}:make"), nn.Linear)


def test_path_is_left_as_it_was(module, tmp_path):
    before = list(sys.path)
    user_build(module("def make(): return nn.Linear(4, 3)") + ":make")
    with pytest.raises(UserError):
        user_build(module("raise OSError('no')") + ":make")
    assert sys.path == before


def test_check_leaves_no_trace_in_the_model(module):
    """Not in modes, of which one was set on purpose; nor statistics; nor in random state."""
    source = (
        "class Noise(nn.Module):\n"
        "    def forward(self, x): return x + torch.rand_like(x)\n"
        "def make():\n"
        "    frozen, free = nn.BatchNorm1d(8).eval(), nn.BatchNorm1d(8)\n"
        "    return nn.Sequential(nn.Linear(4, 8), frozen, free, Noise(), nn.Linear(8, 3))\n"
    )
    name = module(source)
    torch.manual_seed(5)
    model = user_build(f"{name}:make")
    after = torch.rand(4)
    torch.manual_seed(5)
    fresh = sys.modules[name].make()
    assert torch.equal(after, torch.rand(4))
    assert all(map(torch.equal, model.state_dict().values(), fresh.state_dict().values()))
    assert [m.training for m in model.modules()] == [m.training for m in fresh.modules()]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("make = 3", "expected a function or a class, got int"),
        ("def other(): pass", "has no 'make'"),
        ("raise OSError('disk on fire\\nand more')", "failed with OSError: disk on fire$"),
        ("raise SystemExit(3)", "failed with SystemExit: 3"),
        ("def make(:", "failed with SyntaxError"),
        ("def make(classes): pass", r"got the signature \(classes\)"),
        ("def make(num_classes, /): pass", r"got the signature \(num_classes, /\)"),
        ("def make(): return 'net'", "torch.nn.Module, got str"),
        ("def make(): return nn.Linear", "torch.nn.Module, got type"),
        ("def make(): return 1 / 0", "calling it failed with ZeroDivisionError: division by zero"),
        ("def make(): return nn.Flatten()", "no parameter to train"),
        ("def make(): return nn.Linear(4, 3).requires_grad_(False)", "no parameter to train"),
        ("def make(): return nn.Linear(5, 3)", r"failed on an input of shape \[2, 4\]"),
        ("def make(): return nn.Linear(4, 2)", r"of shape \[2, 3\] .* got \[2, 2\]$"),
        (
            "class make(nn.Linear):\n"
            "    def __init__(self): super().__init__(4, 3)\n"
            "    def forward(self, x): return {'logits': super().forward(x)}",
            "got dict",
        ),
    ],
)
def test_users_function_that_does_not_work(module, source, message):
    name = module(source)
    with pytest.raises(UserError, match=message) as caught:
        user_build(f"{name}:make")
    assert f"'{name}:make'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [":make", "module:", "a:b:c", ".relative:make", ":"])
def test_malformed_specifications(spec):
    with pytest.raises(UserError, match="expected model as module:function"):
        user_build(spec)


def test_module_that_is_not_there(module):
    with pytest.raises(UserError, match="importing 'surely_not_there' failed with ModuleNotFound"):
        user_build("surely_not_there:make")
