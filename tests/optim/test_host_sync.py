"""No step makes the host wait for a device: neither values nor copies of them come back to it."""

import copy

import pytest
import torch
from optim_db import (
    LISTS,
    LOOP,
    TRANSFORMS,
    assert_same,
    backward,
    each,
    each_variant,
    numbers,
    small_model,
    train,
)
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ways = pytest.mark.parametrize("way", [LOOP, LISTS], ids=["loop", "lists"])
READS = ("_local_scalar_dense", "item", "is_nonzero", "equal")
SIZED = (
    "nonzero",
    "masked_select",
    "_unique2",
    "bincount",
)  # whose result's shape is in the values


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Held(TorchDispatchMode):
    """Refuses to read what depends on the values of given tensors.

    The dependence is followed through all calls by what lies behind a tensor: a call that takes a
    tensor that depends hands it on to its results and to what it writes.
    """

    def __init__(self, held):
        super().__init__()
        self.kept = []  # so that no other tensor gets the same place in memory
        self.places = set()
        self.reads = 0
        self.hold(held)

    def hold(self, values):
        for value in tensors(values):
            self.kept.append(value)
            self.places.add(value.untyped_storage()._cdata)

    def depends(self, values):
        return any(v.untyped_storage()._cdata in self.places for v in tensors(values))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        depends = self.depends((args, kwargs))
        name = func.overloadpacket.__name__
        if name in READS + SIZED:
            self.reads += 1
            if depends:
                raise AssertionError(f"{name} reads on the host what depends on values")
        result = func(*args, **kwargs)
        if depends:
            self.hold(result)
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.hold(args[i] if i < len(args) else kwargs.get(argument.name))
        return result


def held_of(model, optimizer):
    """Parameters, gradients and state but the count of steps."""
    state = [
        v for own in optimizer.state.values() for key, v in own.items() if key != "step"
    ]  # fmt: skip
    return [list(model.parameters()), [p.grad for p in model.parameters()], state]


def watched_step(model, optimizer, seed):
    """One step under watch; how often the host read anything else."""
    backward(model, seed)
    with Held(held_of(model, optimizer)) as watch:
        optimizer.step()
    return watch.reads


@each_variant
@ways
def test_no_value_is_read(entry, options, way):
    model = small_model()
    optimizer = entry.cls(model.parameters(), **{"lr": entry.lr, **options, **way})
    for seed in range(3):
        watched_step(model, optimizer, seed)


@each
@ways
def test_not_even_the_count_of_steps_where_it_is_on_the_device(entry, way):
    """Nor a learning rate in a tensor, which may be there as well."""
    model = small_model()
    lr = torch.tensor(entry.lr, dtype=torch.float64)
    options = {**entry.options[-1], **way, "capturable": True, "lr": lr}
    optimizer = entry.cls(model.parameters(), **options)
    for seed in range(3):
        assert watched_step(model, optimizer, seed) == 0


@each
@ways
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_nor_with_a_transform(entry, way, transform, monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")  # as on an accelerator
    model = small_model()
    optimizer = entry.cls(model.parameters(), lr=entry.lr, transform=transform(), **way)
    for seed in range(3):
        watched_step(model, optimizer, seed)


def test_the_watch_would_see_it():
    value = torch.ones(3)
    for read in (
        lambda: value.sum().item(),
        lambda: bool((value * 2 > 1).any()),
        lambda: torch.ones(3).add_(value).nonzero(),
        lambda: torch._foreach_norm([value])[0].item(),
    ):
        with Held([value]), pytest.raises(AssertionError, match="reads on the host"):
            read()
    with Held([value]) as watch:
        assert torch.ones(3).sum().item() == 3
    assert watch.reads == 1


class OnDevice(TorchDispatchMode):
    """Watches steps on the meta device, whose tensors have no values that could be waited for.

    torch itself refuses to read or copy them.

    Attributes:
        reads: of host memory.
        uploads: copies of host memory to the device, which wait too unless it is pinned.
    """

    def __init__(self):
        super().__init__()
        self.reads = self.uploads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        given = {t.device.type for t in tensors((args, kwargs))}
        if name in READS + SIZED:
            if "meta" in given:
                raise AssertionError(f"{name} waits for the device")
            self.reads += 1
        result = func(*args, **(kwargs or {}))
        made = {t.device.type for t in tensors(result)}
        if "meta" in given and "cpu" in made and not func._schema.is_mutable:
            raise AssertionError(f"{name} copies from the device")
        if "meta" in made and ("meta" not in given or name == "copy_") and "cpu" in given:
            self.uploads += 1
        return result


def device_steps(make, dtype=torch.float32, home=None, steps=4):
    """Steps on a device that is not there; reads and uploads of each step, and the optimizer."""
    params = [torch.empty(s, dtype=dtype, device="meta") for s in ((), (3,), (5, 4), (0,))]
    optimizer = make(params, 0.1 if home is None else torch.ones((), device=home))
    found = []
    for _ in range(steps):
        for p in params:
            p.grad = torch.empty_like(p)
        with OnDevice() as watch:
            optimizer.step()
        found.append((watch.reads, watch.uploads))
    return found, optimizer


@each_variant
@ways
@pytest.mark.parametrize("capturable", [False, True])
def test_on_a_device(entry, options, way, capturable):
    options = {**options, **way, "capturable": capturable}
    found, optimizer = device_steps(lambda params, lr: entry.cls(params, lr=lr, **options))
    for reads, uploads in found:
        assert reads == 0 or not capturable
        assert uploads == 0
    for own in optimizer.state.values():
        for key, value in own.items():
            on_host = key == "step" and not capturable
            assert value.device.type == ("cpu" if on_host else "meta")


@each
@ways
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("home", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_with_a_learning_rate_in_a_tensor(entry, way, capturable, home, dtype):
    options = {**entry.options[-1], **way, "capturable": capturable}
    found, _ = device_steps(lambda p, lr: entry.cls(p, lr=lr, **options), dtype, home)
    for reads, uploads in found:
        assert reads == 0 or not capturable
        assert uploads == 0


@each
@ways
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_with_a_transform(entry, way, transform):
    """What it has to know of the gradients goes to the device with the first step."""
    options = {**entry.options[-1], **way, "capturable": True, "transform": transform()}
    found, _ = device_steps(lambda params, lr: entry.cls(params, lr=lr, **options))
    assert found[2:] == [(0, 0), (0, 0)]


@each
def test_the_chosen_way_on_a_device_is_by_lists(entry, monkeypatch):
    def refuse(*args):
        raise AssertionError("one tensor after the other")

    monkeypatch.setattr(entry.cls, "_single", refuse)
    device_steps(lambda params, lr: entry.cls(params, lr=lr))


@each
def test_a_group_on_two_devices(entry):
    """What lies in host memory goes by the kernel, where there is one, and as if alone."""
    torch.manual_seed(0)
    start, grads = torch.randn(5), torch.randn(3, 5)
    found = []
    for others in ([], [torch.empty(4, 3, device="meta")]):
        param = start.clone()
        optimizer = entry.cls([*others, param], lr=entry.lr, **entry.options[0])
        for grad in grads:
            for other in others:
                other.grad = torch.empty_like(other)
            param.grad = grad
            optimizer.step()
        found.append([param, *optimizer.state[param].values()])
    for alone, together in zip(*found, strict=True):
        assert torch.equal(alone, together)


def test_that_watch_would_see_it_too():
    value = torch.empty(3, device="meta")
    with OnDevice() as watch:
        for wait in (lambda: value.sum().item(), value.cpu, value.nonzero, lambda: value.tolist()):
            with pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
                wait()
        assert (watch.reads, watch.uploads) == (0, 0)
        torch.ones(3).to("meta")
        value.copy_(torch.ones(3))
        torch.ones(()).item()
    assert (watch.reads, watch.uploads) == (1, 2)


@each
@ways
@pytest.mark.parametrize("before", [False, True])
def test_capturable_changes_nothing_and_may_be_changed(entry, way, before):
    """A file made with it goes on without it, and the other way round."""
    options = {**entry.options[-1], "lr": entry.lr, **way}
    models = small_model(), small_model(), small_model()
    first = entry.cls(models[0].parameters(), **options, capturable=before)
    train(models[0], first, 3)
    saved = copy.deepcopy(first.state_dict())
    for group in saved["param_groups"]:
        group["capturable"] = not before
    other = entry.cls(models[1].parameters(), **options, capturable=not before)
    models[1].load_state_dict(models[0].state_dict())
    other.load_state_dict(saved)
    train(models[0], first, 3, first=50)
    train(models[1], other, 3, first=50)
    assert_same(numbers(models[1], other), numbers(models[0], first), 1e-11, 1e-13)


@each
@pytest.mark.parametrize("capturable", [False, True])
def test_steps_of_a_file_go_where_they_are_counted(entry, capturable):
    """To the parameter's device with capturable=True, to the host without."""
    if not entry.scalars:
        pytest.skip(f"{entry.name} counts no steps")
    with FakeTensorMode():  # of a device that is not there, but can be copied from
        param = torch.nn.Parameter(torch.empty(3, device="cuda"))
        first = entry.cls([param], lr=0.1, capturable=not capturable)
        param.grad = torch.empty_like(param)
        first._shares()  # makes the states
        before = first.state[param]["step"].device.type
        saved = first.state_dict()
        saved["param_groups"][0]["capturable"] = capturable
        second = entry.cls([param], lr=0.1)
        second.load_state_dict(saved)
        second._shares()
        assert before != second.state[param]["step"].device.type
        assert second.state[param]["step"].device.type == ("cuda" if capturable else "cpu")
        assert all(v.device.type == "cuda" for k, v in second.state[param].items() if k != "step")
