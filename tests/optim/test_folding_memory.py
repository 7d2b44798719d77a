"""What folding is for: no pass that writes gradients, and on the compiled way no copy of them."""

import pytest
import torch
from folding_helpers import PAIRS, TRANSFORMS, feed, grads_of, hooked
from optim_db import LISTS, LOOP, each, kernel_or_skip, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attach.counting import Calls
from gradwise.transforms import Autoscale

# Those whose map scales, shifts, does both, differs from row to row, and reads the parameters.
MAPS = pytest.mark.parametrize(
    "key", ["clip", "center", "autoscale", "center-row", "several", "agc"]
)
WIDTH = 300
LARGE = WIDTH * WIDTH // 8  # values; what is measured a row or a layer is far below


class Made(TorchDispatchMode):
    """Counts tensors of many values with memory of their own that operations return."""

    def __init__(self):
        super().__init__()
        self.large = []
        self._known = set()

    def know(self, *tensors):
        """Memory that was there before."""
        self._known |= {t.untyped_storage().data_ptr() for t in tensors}
        return self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.numel() >= LARGE:
                place = leaf.untyped_storage().data_ptr()
                if place not in self._known:
                    self.large.append((func.overloadpacket.__name__, tuple(leaf.shape)))
        return out


def large(entry, options, *transforms, dtype=torch.float32):
    """A model of two matrices and a vector with an optimizer, two steps on."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, WIDTH, dtype=dtype),
        torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype),
    )
    optimizer = entry.cls(model.parameters(), lr=1e-3, transform=transforms, **options)
    for step in range(2):  # makes the state and what is remembered of the tensors
        feed(model, step)
        optimizer.step()
    feed(model, 2)
    return model, optimizer


def known(model, optimizer):
    state = [v for own in optimizer.state.values() for v in own.values()]
    return [*model.parameters(), *grads_of(model), *state]


@each
@MAPS
def test_the_kernel_makes_no_tensor_as_large_as_a_gradient(entry, key):
    """Neither measuring nor the update: of a whole step."""
    options = kernel_or_skip(entry, {"lr": 1e-3})
    model, optimizer = large(entry, options, *TRANSFORMS[key]())
    with Made().know(*known(model, optimizer)) as made:
        optimizer.step()
    assert made.large == []


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@MAPS
def test_nor_does_the_update_of_other_types(entry, key, dtype, monkeypatch):
    """Types that torch's own calls measure, with memory that they give back before the update."""
    if dtype == torch.bfloat16 and not entry.wide:
        pytest.skip("the kernels of SGD and AdamW take no 16-bit state")
    options = kernel_or_skip(entry, {"lr": 1e-3})
    model, optimizer = large(entry, options, *TRANSFORMS[key](), dtype=dtype)
    fold = optimizer._decided()
    assert fold is not None
    monkeypatch.setattr(optimizer, "_decided", lambda: fold)
    with Made().know(*known(model, optimizer)) as made:
        optimizer.step()
    assert made.large == []


@each
def test_lists_do_make_such_tensors(entry):
    """So that the count above can be believed."""
    model, optimizer = large(entry, LISTS, Autoscale())
    with Made().know(*known(model, optimizer)) as made:
        optimizer.step()
    assert ("addcmul", (WIDTH, WIDTH)) in made.large


@each
@MAPS
@pytest.mark.parametrize("route", ["loop", "lists", "kernel"])
def test_gradients_are_only_read(entry, key, route):
    """No operation writes to one, neither to its values nor to its version."""
    forced = {"loop": LOOP, "lists": LISTS}.get(route) or kernel_or_skip(entry, {"lr": 1e-3})
    model, optimizer = large(entry, forced, *TRANSFORMS[key]())
    grads = grads_of(model)
    kept, versions = [g.clone() for g in grads], [g._version for g in grads]
    with Calls(grads) as calls:
        optimizer.step()
    assert calls.writes == [0.0] * len(grads)
    assert max(calls.reads) >= 1 or route == "kernel"  # whose own reads are no operations of torch
    optimizer.step()  # no mode is watching, so that versions count
    assert [g._version for g in grads] == versions
    assert all(map(torch.equal, grads, kept))
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize("kind", PAIRS)
@MAPS
def test_the_hook_writes_once(kind, key, monkeypatch):
    """What folding saves, so that the counts above can be believed."""
    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")  # its calls are seen
    model, optimizer, _ = hooked(kind, *TRANSFORMS[key](), model=small_model(torch.float32))
    for step in range(2):
        feed(model, step)
        optimizer.step()
    feed(model, 3)  # large enough to be clipped
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    with Calls(grads.values()) as calls:
        optimizer.step()
    writes = dict(zip(grads, calls.writes, strict=True))
    assert writes["first.weight"] >= 1
    feed(model, 3)
    optimizer.step()
    assert model.first.weight.grad._version > 0
