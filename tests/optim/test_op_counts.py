"""How many calls a step by lists makes: pinned, and as many for ten tensors as for a thousand."""

from collections import Counter

import pytest
import torch
from optim_db import DB, LISTS, LOOP, VARIANTS, each, each_variant
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import gradwise as gw

# For each set of options in the table: calls of a step, and of one with capturable=True, where
# the bias corrections are computed on the device. Fewer is better; more has to be worth it.
CALLS = {
    "SGD": [(1, 1), (3, 3), (5, 5), (4, 4)],
    "AdamW": [(9, 24), (10, 25), (10, 25)],
    "SGDF": [(14, 28), (14, 25), (15, 29), (15, 29)],
    "HGM": [(32, 50), (35, 53), (33, 51)],
    "AdaMomentum": [(7, 22), (8, 23), (9, 24), (7, 22)],
    "AdaRem": [(12, 15), (13, 16), (13, 16)],
    "AdaGradOTA": [(8, 8), (6, 6), (9, 9)],
    "AdamOTA": [(9, 9), (7, 7), (10, 10)],
}
READS = {"SGD": 0, "AdaRem": 1, "AdaGradOTA": 0, "AdamOTA": 0}  # of the count of steps, else 2


class Calls(TorchDispatchMode):
    """Counts calls that do something: views and profiler marks do not.

    Attributes:
        names: of the calls.
        reads: of host memory by the host.
    """

    def __init__(self):
        super().__init__()
        self.names = []
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.reads += 1
        elif not func.is_view and name != "detach" and not name.startswith("_record_function"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def calls_of(make, count=4, dtype=torch.float32, shape=(3, 4)):
    """The third step's calls with so many tensors."""
    params = [torch.randn(shape, dtype=dtype) for _ in range(count)]
    optimizer = make(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        with Calls() as calls:
            optimizer.step()
    return calls


PINNED = [
    pytest.param(*variant.values, calls, id=variant.id)
    for variant, calls in zip(VARIANTS, [c for e in DB for c in CALLS[e.name]], strict=True)
]


@pytest.mark.parametrize(("entry", "options", "pinned"), PINNED)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_calls_of_a_step(entry, options, pinned, count):
    options = {**options, "lr": 0.1, **LISTS}
    plain = calls_of(lambda p: entry.cls(p, **options), count)
    captured = calls_of(lambda p: entry.cls(p, **options, capturable=True), count)
    assert (len(plain.names), len(captured.names)) == pinned, (plain.names, captured.names)
    assert plain.reads == count * READS.get(entry.name, 2)
    assert captured.reads == 0


@each_variant
def test_a_learning_rate_in_a_tensor_costs_a_call_or_two(entry, options):
    """None on the host, where it is read; on a device it cannot be part of another call."""
    for capturable in (False, True):
        options = {**options, **LISTS, "capturable": capturable}
        plain = calls_of(lambda p, o=options: entry.cls(p, lr=0.1, **o))
        tensor = calls_of(lambda p, o=options: entry.cls(p, lr=torch.tensor(0.1), **o))
        more = len(tensor.names) - len(plain.names)
        if capturable:
            assert 0 <= more <= 3, tensor.names
        else:
            assert more == 0
            assert tensor.reads == plain.reads + 1


@each
@pytest.mark.parametrize("shape", [(3, 4), (1,), ()], ids=str)
def test_whatever_the_shape_and_the_type(entry, shape):
    """Complex tensors only need views of them, float64 ones nothing at all."""
    options = {"lr": 0.1, **entry.options[-1], **LISTS}
    wanted = len(calls_of(lambda p: entry.cls(p, **options)).names)
    for dtype in (torch.float32, torch.float64, torch.complex64):
        found = calls_of(lambda p: entry.cls(p, **options), dtype=dtype, shape=shape)
        no_cast = entry.name == "HGM" and dtype == torch.float64  # the cosine is float64
        assert len(found.names) == wanted - no_cast, found.names


@each_variant
def test_no_more_calls_than_torch_would_make(entry, options):
    """torch's own two by lists, at the same options."""
    theirs = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}.get(entry.name)
    if theirs is None:
        pytest.skip("torch has no such method")
    ours = calls_of(lambda p: entry.cls(p, lr=0.1, **options, **LISTS))
    other = calls_of(lambda p: theirs(p, lr=0.1, **options, foreach=True))
    assert len(ours.names) <= len(other.names), (ours.names, other.names)


def folding(entry, transform):
    """The entry's class, whose decision is not counted: it is not the update's."""

    class Folding(entry.cls):
        def _decided(self):
            with _disable_current_modes():
                return super()._decided()

    return lambda p: Folding(p, lr=0.1, **entry.options[0], **LISTS, transform=transform)


@each
@pytest.mark.parametrize("count", [2, 9])
def test_a_transform_that_only_scales_costs_one_call_on_lists(entry, count):
    """And one that makes the factor a float32."""
    plain = calls_of(lambda p: entry.cls(p, lr=0.1, **entry.options[0], **LISTS), count)
    found = calls_of(folding(entry, gw.transforms.ClipNorm(0.1)), count)
    more = Counter(found.names) - Counter(plain.names)
    assert more == {"_foreach_mul": 1, "_to_copy": 1}


@each
def test_a_transform_that_shifts_costs_calls_for_each_tensor(entry):
    """There is no call on lists that takes off a mean which lies on the device."""
    plain = calls_of(lambda p: entry.cls(p, lr=0.1, **entry.options[0], **LISTS), 6)
    found = calls_of(folding(entry, gw.transforms.Center(per="row")), 6)
    more = Counter(found.names) - Counter(plain.names)
    assert more == {"sub": 6, "_to_copy": 6}


@each
def test_a_loop_makes_calls_for_each_tensor(entry):
    """The count does tell lists from a loop."""
    options = {"lr": 0.1, **entry.options[0], **LOOP}
    one, many = (len(calls_of(lambda p: entry.cls(p, **options), n).names) for n in (1, 5))
    assert many == 5 * one
