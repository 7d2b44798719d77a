"""What the compiler makes of a trial, as JSON: run in a process of its own by test_compiled.py.

The checks that the tests wrap around every function of gradwise are in a compiler's way.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from lab_helpers import make_trial, tiny
from torch._dynamo.utils import counters

from gradwise.lab import learner as learner_module


def counted():
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }


def small(**given):
    # 150 test rows in batches of 64: the last one is incomplete.
    base = {"model": "compile_model:dropping", "limit_test": 150, "compile": True}
    return tiny(**{**base, **given})


def once(folder):
    """A trial that stops at the first pass that would have to be compiled anew."""
    one = make_trial(
        folder / "once", small(epochs=2, validation=0.2, lr=(0.1, 0.2)).at(0.1), "autoscale"
    )
    before = {key: value.clone() for key, value in one.learner.model.state_dict().items()}
    one._compile()
    after = one.learner.model.state_dict()
    facts = {
        "compiled": one.learner.compiled is not None,
        "before": counted(),
        "untouched": all(torch.equal(before[key], after[key]) for key in before)
        and all(p.grad is None for p in one.learner.model.parameters())
        and one.learner.model.training,
    }
    ran = []
    for name in ("loss", "outputs"):
        real = getattr(one.learner.compiled, name)
        spy = lambda *args, real=real, name=name: (ran.append(name), real(*args))[1]  # noqa: E731
        setattr(one.learner.compiled, name, spy)
    one._compile = lambda: None  # done
    with torch._dynamo.config.patch(error_on_recompile=True):
        result = one.run()
    in_the_run = list(ran)
    # What is compiled computes what it should, also on the incomplete batch.
    eager = make_trial(folder / "eager", small(compile=False), "autoscale")
    eager.learner.model.load_state_dict(one.learner.model.state_dict())
    return facts | {
        "after": counted(),
        "ran": in_the_run,
        "status": result["status"],
        "evaluated": one.learner.evaluate(one.test_x, one.test_y),
        "expected": eager.learner.evaluate(one.test_x, one.test_y),
    }


def pair(folder, method, model, epochs):
    """The same trial with and without the compiler."""
    given = {"model": model, "epochs": epochs, "lr": 0.01}
    results = []
    for name, asked in (("compiled", True), ("eager", False)):
        at = folder / f"{method}-{name}"
        results.append(make_trial(at, small(**given, compile=asked), method).run())
    return results


def main(folder):
    """Print all facts."""
    warnings.simplefilter("ignore")
    learner_module.EVAL_BATCH = 64
    sys.path.append(str(folder))
    facts = {"once": once(folder)}
    torch._dynamo.reset()
    facts["sgd"] = pair(folder, "sgd", "mlp", 2)
    torch._dynamo.reset()
    facts["implicitsgd"] = pair(folder, "implicitsgd", "mlp", 1)
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
