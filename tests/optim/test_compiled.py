"""torch.compile of the step: one graph, compiled once, with what the eager step would have done."""

import logging
import shutil
from functools import cache

import pytest
import torch
from optim_db import (
    DB,
    LISTS,
    LOOP,
    VARIANTS,
    assert_same,
    backward,
    numbers,
    small_model,
)
from plain_gradwise import plain, unchecked
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler

GCC = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
RTOL, ATOL = 1e-12, 1e-14  # of float64; what is left is the order of roundings
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's imports


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    logging.getLogger("torch._logging._internal").setLevel(logging.ERROR)
    with plain():
        yield
    torch._dynamo.reset()


@pytest.fixture
def entry(request):
    """Of the table, with a class that can be traced."""
    return unchecked(request.param)


each = pytest.mark.parametrize("entry", DB, ids=lambda e: e.name, indirect=True)
each_variant = pytest.mark.parametrize(("entry", "options"), VARIANTS, indirect=["entry"])


class Compiled:
    """A step that is compiled, with the number of graphs so far.

    Args:
        optimizer: of gradwise, or of torch, whose `step` breaks the graph on purpose once.
        backend: what dynamo hands its graphs to.
        fullgraph: refuse to break the graph; None: where the optimizer is gradwise's.
    """

    def __init__(self, optimizer, backend="eager", fullgraph=None):
        self.graphs = []
        make = lookup_backend(backend)
        ours = type(optimizer).__module__.startswith("gradwise")

        def counting(graph, inputs, **options):
            compiled = make(graph, inputs, **options)  # may ask dynamo to begin anew
            self.graphs.append(graph)
            return compiled

        self.step = torch.compile(
            optimizer.step,
            fullgraph=ours if fullgraph is None else fullgraph,
            backend=counting,
        )


def run(optimizer, model, seeds, step=None, scheduler=None):
    for seed in seeds:
        backward(model, seed)
        (step or optimizer.step)()
        if scheduler is not None:
            scheduler.step()


def follow(model, optimizer, leader, followed):
    """Parameters and state as another run has them."""
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), leader.parameters(), strict=True):
            mine.copy_(theirs)
            for key, value in followed.state.get(theirs, {}).items():
                optimizer.state[mine][key].copy_(value)


def same_steps(entry, options, backend, *, before=0, steps=3, eager=None):
    """Compiled and eager side by side, compared and aligned after every step; the graphs made.

    Args:
        before: eager steps of both, which make the states.
        eager: options of the eager run; None for the same.
    """
    models = small_model(), small_model()
    options = {"lr": entry.lr, **options}
    plain = entry.cls(models[0].parameters(), **{**options, **(eager or {})})
    optimizer = entry.cls(models[1].parameters(), **options)
    compiled = Compiled(optimizer, backend)
    run(plain, models[0], range(before))
    run(optimizer, models[1], range(before))
    for seed in range(before, before + steps):
        run(plain, models[0], [seed])
        run(optimizer, models[1], [seed], compiled.step)
        wanted, got = numbers(models[0], plain), numbers(models[1], optimizer)
        assert_same(got, wanted, RTOL, ATOL)
        follow(models[1], optimizer, models[0], plain)
    assert not counters["graph_break"]
    return len(compiled.graphs)


def graphs_of(options):
    """One; and one more for a momentum that begins with the gradient whatever its dampening."""
    return 2 if options.get("dampening") else 1


@each_variant
def test_one_graph_that_does_what_eager_does(entry, options):
    graphs = same_steps(entry, {**options, **LISTS}, "eager")
    assert graphs == graphs_of(options)


@each
@pytest.mark.parametrize("way", [LISTS, LOOP], ids=["lists", "loop"])
def test_so_it_is_behind_autograds_own_tracing(entry, way):
    """The eager run is a loop over tensors; the model has a 0-d float64 one."""
    options = {**entry.options[1], **way}
    assert same_steps(entry, options, "aot_eager", steps=2, eager=LOOP) == 1


@each
def test_the_compiled_step_takes_the_place_of_the_kernel(entry):
    """What the CPU kernel did so far is gone on with."""
    assert same_steps(entry, entry.options[1], "eager", before=2) == 1


@each
def test_states_made_before(entry):
    assert same_steps(entry, {**entry.options[-1], **LISTS}, "eager", before=2) == 1


@each
def test_several_groups(entry):
    """Options of their own, in one graph."""
    models = small_model(), small_model()
    first, second = entry.options[:2]
    optimizers = []
    for model in models:
        groups = [
            {"params": [*model.first.parameters(), model.unused], "lr": entry.lr},
            {"params": model.last.parameters(), "lr": torch.tensor(entry.lr / 2).double()},
            {"params": [model.scale], "maximize": True, "foreach": False},
        ]
        groups[1] |= {k: v for k, v in second.items() if k != "scope"}
        optimizers.append(entry.cls(groups, **{"lr": 0.01, **first, "fused": False}))
    compiled = Compiled(optimizers[1])
    for seed in range(3):
        run(optimizers[0], models[0], [seed])
        run(optimizers[1], models[1], [seed], compiled.step)
        wanted, got = (numbers(m, o) for m, o in zip(models, optimizers, strict=True))
        assert_same(got, wanted, RTOL, ATOL)
        follow(models[1], optimizers[1], models[0], optimizers[0])
    assert not counters["graph_break"]
    assert len(compiled.graphs) == 1


def annealed(optimizer, model, step, steps=4):
    """Train with a learning rate that changes before each step, as schedulers change it."""
    for seed in range(steps):
        group = optimizer.param_groups[0]
        rate = 0.01 / (1 + seed)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        run(optimizer, model, [seed], step)
    return numbers(model, optimizer)


@each
def test_a_learning_rate_in_a_tensor_costs_no_graph(entry):
    """It is filled in place, and the one graph reads what is there."""
    found = []
    for compiling in (False, True):
        model = small_model()
        lr = torch.tensor(1.0, dtype=torch.float64)
        optimizer = entry.cls(model.parameters(), lr=lr, **LISTS)
        compiled = Compiled(optimizer)
        found.append(annealed(optimizer, model, compiled.step if compiling else optimizer.step))
    assert len(compiled.graphs) == 1
    assert_same(found[1], found[0], 1e-9, 1e-11)


@cache
def graphs_of_torch():
    """What floats that change cost torch's AdamW."""
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, foreach=True)
    compiled = Compiled(optimizer)
    annealed(optimizer, model, compiled.step)
    torch._dynamo.reset()
    return len(compiled.graphs)


@each
def test_a_float_costs_what_it_costs_torch(entry):
    """One more graph, in which it is a symbol; none for any further value."""
    theirs = graphs_of_torch()
    models = small_model(), small_model()
    optimizers = [entry.cls(m.parameters(), lr=1.0, **LISTS) for m in models]
    ours = Compiled(optimizers[1])
    wanted = annealed(optimizers[0], models[0], optimizers[0].step)
    got = annealed(optimizers[1], models[1], ours.step)
    assert len(ours.graphs) <= theirs == 2
    assert_same(got, wanted, 1e-9, 1e-11)


@each
def test_a_scheduler(entry):
    """It wraps `step` in what dynamo does not trace; the step inside is one graph all the same."""
    found = []
    for compiling in (False, True):
        model = small_model()
        lr = torch.tensor(entry.lr, dtype=torch.float64)
        optimizer = entry.cls(model.parameters(), lr=lr, **LISTS)
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        compiled = Compiled(optimizer, fullgraph=False)
        run(optimizer, model, range(3), compiled.step if compiling else None, scheduler)
        found.append(numbers(model, optimizer))
    assert len(compiled.graphs) == 1
    assert_same(found[1], found[0], 1e-9, 1e-11)


@each
def test_a_gradient_that_goes_costs_a_graph_and_no_state(entry):
    """As in torch: which parameters are updated is part of the graph."""
    models = small_model(), small_model()
    optimizers = [entry.cls(m.parameters(), lr=entry.lr, **LISTS) for m in models]
    compiled = Compiled(optimizers[1])
    for seed, step in [(0, None), (1, None), (2, "last"), (3, None)]:
        for model, optimizer in zip(models, optimizers, strict=True):
            backward(model, seed)
            if step == "last":
                model.last.weight.grad = None
            (compiled.step if optimizer is optimizers[1] else optimizer.step)()
    assert len(compiled.graphs) == 2
    wanted, got = (numbers(m, o) for m, o in zip(models, optimizers, strict=True))
    assert_same(got, wanted, 1e-9, 1e-11)


@pytest.mark.slow
@pytest.mark.skipif(GCC is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "entry", [e for e in DB if e.name in ("SGDF", "HGM")], ids=lambda e: e.name, indirect=True
)
def test_inductor(entry):
    options = {**entry.options[1], "lr": torch.tensor(entry.lr, dtype=torch.float64), **LISTS}
    assert same_steps(entry, options, "inductor", steps=3) == 1
