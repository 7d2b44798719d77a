"""Records for rules: made up, or measured in a real training with nothing but torch."""

import numpy as np
import torch

from gradwise.watch.block import Block
from gradwise.watch.rules import Rules
from gradwise.watch.store import RunWriter, load

LAYER_METRICS = ("mean", "std", "norm", "zeros", "nonfinite", "weight_norm", "update_ratio")


def block(layers=None, scalars=None, *, names=None, first=0, steps=None):
    """A block from lists; scalars too."""
    layers = {name: np.asarray(values, float) for name, values in (layers or {}).items()}
    scalars = {name: np.asarray(values, float) for name, values in (scalars or {}).items()}
    arrays = [*layers.values(), *scalars.values()]
    if names is None:
        width = next(iter(layers.values())).shape[1] if layers else 1
        names = tuple(f"layer{i}.weight" for i in range(width))
    if steps is None:
        steps = first + np.arange(len(arrays[0]))
    return Block(tuple(names), np.asarray(steps, np.int64), layers, scalars)


def cut(whole, sizes):
    """The same records in blocks of these sizes, the last for all that is left."""
    at, sizes = 0, list(sizes) or [len(whole)]
    while at < len(whole):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        here = slice(at, at + size)
        yield Block(
            whole.names,
            whole.steps[here],
            {name: values[here] for name, values in whole.layers.items()},
            {name: values[here] for name, values in whole.scalars.items()},
        )
        at += size


def healthy(steps=400, layers=6, seed=0, sigma=0.3):
    """Norms that scatter around falling levels, as in a training that goes well."""
    random = np.random.default_rng(seed)
    level = np.linspace(1.0, 0.3, steps)[:, None] * random.uniform(0.5, 2.0, layers)
    norm = level * np.exp(sigma * random.standard_normal((steps, layers)))
    ratio = np.full((steps, layers), np.nan)
    ratio[::10] = 1e-3 * np.exp(0.3 * random.standard_normal((len(ratio[::10]), layers)))
    weight = np.where(np.isnan(ratio), np.nan, 3.0)
    return {
        "norm": norm,
        "mean": 1e-3 * norm * random.standard_normal((steps, layers)),
        "zeros": np.zeros((steps, layers)),
        "nonfinite": np.zeros((steps, layers)),
        "weight_norm": weight,
        "update_ratio": ratio,
    }


def whole(norm):
    """The norm over all layers."""
    with np.errstate(over="ignore"):
        return np.sqrt(np.nansum(np.square(norm), 1))


def batches(inputs, targets, size=64, seed=0):
    """Shuffled batches without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for at in torch.randperm(len(inputs), generator=generator).split(size):
            if len(at) == size:
                yield inputs[at], targets[at]


class Recording:
    """Records what an optimizer does, in the plainest way; `block` is all of it.

    Args:
        optimizer: it is watched through torch's own hooks around `step`.
        named: names and parameters.
        weights_every: steps between two looks at the weights.
    """

    def __init__(self, optimizer, named, weights_every=10):
        self.optimizer, self.every = optimizer, weights_every
        self.names, self.params = zip(*named, strict=True)
        self.rows, self.scalars = [], []
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, *_):
        row = np.full((len(LAYER_METRICS), len(self.params)), np.nan)
        for at, param in enumerate(self.params):
            if param.grad is not None:
                grad = param.grad.double()
                shape = grad.mean(), grad.std(correction=0), grad.norm()
                counts = (grad == 0).double().mean(), (~grad.isfinite()).sum()
                row[:5, at] = [float(value) for value in (*shape, *counts)]
        self.rows.append(row)
        rate = self.optimizer.param_groups[0]["lr"]
        self.scalars.append({"grad_norm": whole(row[None, 2])[0], "lr": rate, "backwards": 1.0})
        turn = len(self.rows) % self.every == 1 or self.every == 1
        self.old = [p.detach().double() for p in self.params] if turn else []

    def _after(self, *_):
        for at, old in enumerate(self.old):
            new = self.params[at].detach().double()
            weight, update = float(new.norm()), float((new - old).norm())
            ratio = update / weight if weight else (np.inf if update else np.nan)
            self.rows[-1][5:, at] = weight, ratio

    def log(self, **scalars):
        self.scalars[-1].update(scalars)

    @property
    def block(self):
        rows = np.array(self.rows)
        layers = {name: rows[:, at] for at, name in enumerate(LAYER_METRICS)}
        columns = dict.fromkeys(name for row in self.scalars for name in row)
        scalars = {n: np.array([row.get(n, np.nan) for row in self.scalars]) for n in columns}
        return Block(self.names, np.arange(len(rows)), layers, scalars)


def train(model, optimizer, data, steps, *, loss_fn=None, before_step=None):
    """Train and record."""
    loss_fn = loss_fn or torch.nn.functional.cross_entropy
    recording = Recording(optimizer, model.named_parameters())
    for step in range(steps):
        inputs, targets = next(data)
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        if before_step is not None:
            before_step(step)
        optimizer.step()
        recording.log(loss=loss.item())
    return recording.block


def found(stream, rules=None, sizes=(64,)):
    """The alerts of rules over a stream, as they stand at its end."""
    engine = Rules(rules)
    for part in cut(stream, sizes):
        engine.take(part)
    engine.close()
    assert engine.errors == 0
    return engine.alerts


def names(alerts):
    """The rules that spoke up, in order."""
    return [alert.rule for alert in alerts]


def stored(folder, stream, *, close=True, every=1):
    """A stream as a run folder."""
    writer = RunWriter(
        folder, stream.names, layer_metrics=list(stream.layers), step_metrics=list(stream.scalars)
    )
    for part in cut(stream, [97]):
        writer.append(part.steps * every, part.layers, part.scalars)
        writer.flush()
    if close:
        writer.close()
    return load(folder)


def troubled(steps=1000):
    layers = healthy(steps)
    layers["norm"][300:320] *= 100
    layers["norm"][600:, 2], layers["zeros"][600:, 2] = 0.0, 1.0
    layers["nonfinite"][800, 1], layers["norm"][800, 1] = 3, np.nan
    return block(layers, {"grad_norm": whole(layers["norm"]), "lr": np.full(steps, 0.1)})


BIAS = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "attn.in_proj_bias", "head.weight")
ALL = slice(None)


def stream(layers, scalars=None, **options):
    """A block with the norm of the whole and a learning rate, unless told otherwise."""
    told = {"lr": np.full(len(layers["norm"]), 0.1), "backwards": np.ones(len(layers["norm"]))}
    return block(layers, {"grad_norm": whole(layers["norm"]), **told, **(scalars or {})}, **options)


def scaled(spans, steps=400, **options):
    """A healthy stream with some gradients multiplied: (from, to, layers, factor)."""
    layers = healthy(steps, **options)
    for first, last, which, factor in spans:
        for metric in ("norm", "mean"):
            layers[metric][first:last, which] *= factor
    return layers
