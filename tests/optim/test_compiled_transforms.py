"""torch.compile of a step with transforms inside: still one graph, compiled once."""

import logging
import sys

import pytest
import torch
from optim_db import backward, small_model
from plain_gradwise import plain
from torch._dynamo.utils import counters

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's imports
TRANSFORMS = {
    "center": "Center()",
    "rows": "Center(per='row')",
    "clip": "ClipNorm(0.05)",
    "autoscale": "Autoscale()",
    "znorm": "ZNorm()",
    "agc": "AGC(0.001)",
    "zclip": "ZClip(warmup=2)",
    "chain": "chain(Autoscale(), ClipNorm(0.05))",
}


@pytest.fixture
def gw():
    """The package without the type checks of the tests, which cannot be traced."""
    torch._dynamo.reset()
    counters.clear()
    logging.getLogger("torch._logging._internal").setLevel(logging.ERROR)
    with plain() as package:
        yield package
    torch._dynamo.reset()


def transform(gw, name):
    return eval(TRANSFORMS[name], vars(gw.transforms))


def pair(gw, name, cls="AdamW", attach=False, **options):
    """A model and optimizer with a transform, given or attached."""
    model = small_model()
    optimizer = getattr(gw.optim, cls)(
        model.named_parameters(),
        lr=torch.tensor(0.01, dtype=torch.float64),
        transform=None if attach else transform(gw, name),
        **options,
    )
    if attach:
        gw.attach(optimizer, transform(gw, name))
    return model, optimizer


def attachment(optimizer):
    return sys.modules["gradwise.attach"].attachment_of(optimizer)


def compare(compiled, eager, step, seeds):
    """Step both; their parameters, moments and transform state have to agree."""
    for seed in seeds:
        for (model, optimizer), act in ((compiled, step), (eager, eager[1].step)):
            backward(model, seed)
            act()
            optimizer.param_groups[0]["lr"].mul_(0.9)
        for mine, theirs in zip(*(m.parameters() for m, _ in (compiled, eager)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        mine, theirs = attachment(compiled[1]), attachment(eager[1])
        assert mine.skipped == theirs.skipped
        torch.testing.assert_close(mine.moments.norm, theirs.moments.norm, rtol=1e-9, atol=0.0)
        assert mine.state.keys() == theirs.state.keys()
        for key, value in theirs.state.items():
            torch.testing.assert_close(
                mine.state[key], value, rtol=1e-9, atol=1e-12, equal_nan=True
            )


def compiled_step(optimizer):
    """The step as one graph, and the list of the graphs that were made."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    return torch.compile(optimizer.step, fullgraph=True, backend=keep), graphs


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("attach", [False, True], ids=["given", "attached"])
def test_one_graph_for_all_steps(gw, name, attach):
    compiled, eager = pair(gw, name, attach=attach), pair(gw, name)
    step, graphs = compiled_step(compiled[1])
    compare(compiled, eager, step, range(5))
    assert len(graphs) == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("cls", ["SGD", "SGDF", "HGM", "AdaMomentum", "AdaRem", "AdamOTA"])
def test_every_method(gw, cls):
    compiled, eager = pair(gw, "chain", cls), pair(gw, "chain", cls)
    step, graphs = compiled_step(compiled[1])
    compare(compiled, eager, step, range(4))
    assert len(graphs) == 1


def test_two_groups(gw):
    found = []
    for _ in range(2):
        model = small_model()
        optimizer = gw.optim.SGD(
            [{"params": model.first.parameters()}, {"params": model.last.parameters(), "lr": 0.02}],
            lr=torch.tensor(0.01, dtype=torch.float64),
            momentum=0.9,
            transform=transform(gw, "chain"),
        )
        found.append((model, optimizer))
    step, graphs = compiled_step(found[0][1])
    compare(*found, step, range(4))
    assert len(graphs) == 1


def test_it_goes_on_from_eager_steps_and_back(gw):
    compiled, eager = pair(gw, "autoscale"), pair(gw, "autoscale")
    compare(compiled, eager, compiled[1].step, range(2))
    step, _ = compiled_step(compiled[1])
    compare(compiled, eager, step, range(2, 5))
    compare(compiled, eager, compiled[1].step, range(5, 7))


def test_a_step_that_is_not_finite_is_counted(gw):
    """The graph holds the choice: nothing is compiled anew, and the state is that of before."""
    model, optimizer = pair(gw, "autoscale", "SGD")
    step, graphs = compiled_step(optimizer)
    for seed in range(4):
        backward(model, seed)
        if seed == 2:
            before = {k: v.clone() for k, v in attachment(optimizer).state.items()}
            with torch.no_grad():
                kept = [p.clone() for p in model.parameters()]
            model.first.weight.grad[0, 0] = float("nan")
        step()
        if seed == 2:
            after = attachment(optimizer).state
            assert all(torch.equal(after[k], v) for k, v in before.items())
            with torch.no_grad():
                for p, value in zip(model.parameters(), kept, strict=True):
                    p.copy_(value)
    assert attachment(optimizer).skipped == 1
    assert len(graphs) == 1
    assert all(p.isfinite().all() for p in model.parameters())


def test_another_set_of_gradients_is_another_graph(gw):
    """What is static about a step (which parameters have a gradient) is guarded."""
    compiled, eager = pair(gw, "center", "SGD"), pair(gw, "center", "SGD")
    step = torch.compile(compiled[1].step, backend="eager", fullgraph=True)
    compare(compiled, eager, step, range(2))
    for model, optimizer in (compiled, eager):
        model.last.requires_grad_(False)
        optimizer.zero_grad()
    for seed in range(2, 4):
        for (model, _), act in ((compiled, step), (eager, eager[1].step)):
            backward(model, seed)
            assert model.last.weight.grad is None
            act()
    for mine, theirs in zip(compiled[0].parameters(), eager[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
