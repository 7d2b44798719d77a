"""What one sample does to training: paired runs on neighbouring data sets.

Section 14 of methods.md: Lei, Jin and Ying, "Stability and Generalization Analysis of Gradient
Methods for Shallow Neural Networks", NeurIPS 2022, arXiv 2209.09298. A data set S of n samples and
its neighbours S^(i), where sample i is replaced by an independent one; the same initialisation,
random numbers and index sequence for all; and how far apart the parameters A come to lie (14.3)

    eps^2 = E[ (1/n) sum_i |A(S) - A(S^(i))|^2 ]        l2 on-average argument stability [R], [V2]

which bounds the generalisation gap of smooth losses, see `Stability.bound` (14.4).

- `paired_runs` trains your model and compares it with itself
- `on_average_stability` does so with a training function of your own
- `shallow_stability` is the paper's setting, all neighbours at once; `ShallowNetwork` its model
- `index_sequence` and `neighbour` are the parts, to pair runs by hand

What breaks the pairing: a loader that shuffles by a stream of its own, and removing a sample
instead of replacing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwise.analysis._frozen import device_of, frozen
from gradwise.analysis._neighbours import Dataset, as_pair, index_sequence, neighbour, rising
from gradwise.analysis._pairs import Point, Stability, measure
from gradwise.analysis._passes import LossFn, Progress, Source, attached_loss, mean_loss
from gradwise.analysis._shallow import (
    ShallowNetwork,
    half_squared_error,
    shallow_smoothness,
    shallow_stability,
)
from gradwise.errors import UserError

__all__ = [
    "ShallowNetwork",
    "Stability",
    "half_squared_error",
    "index_sequence",
    "neighbour",
    "on_average_stability",
    "paired_runs",
    "shallow_smoothness",
    "shallow_stability",
]

CHUNK = 512  # samples in one forward pass where a loss is measured


def on_average_stability(
    train_fn: Callable[[Dataset, int], Any],
    data: Iterable[Any],
    replacements: Iterable[Any],
    *,
    indices: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    evaluate: Callable[[Any, Dataset], float] | None = None,
    test: Iterable[Any] | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Stability:
    """Train on S and on its neighbours with a function of your own, and compare (14.3).

    Before each call the random streams of torch, Python and numpy start from the seed, and are as
    before afterwards. What else is random has to come from the seed that the function gets.

    Args:
        train_fn: maps a data set (inputs (n, ...), targets (n, ...)) and a seed to parameters: a
            module, a tensor, several of them, or a dict of them by name; or to a dict of such
            by step (integers), to compare at several steps.
        data: S, a pair of tensors or batches, which are joined.
        replacements: K independent samples of the same kind.
        indices: which K samples of S they replace, one at a time; the first K where None.
        seeds: repetitions; the expectation over the algorithm's randomness is a mean over them.
        evaluate: maps what train_fn gave (at one step) and a data set to the mean loss there.
        test: samples for the generalisation gap; needs `evaluate`.
        check: train twice on S with the first seed, and refuse where that differs.
        progress: is told the runs done and all.

    Raises:
        UserError: where an argument is out of its bounds, shapes do not fit, runs are not finite,
            or two runs on the same data differ.

    Examples:
        The mean, learned exactly: one of four samples moved by 1 moves it by 1/4.

        >>> import torch
        >>> data = (torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.zeros(4))
        >>> result = on_average_stability(
        ...     lambda dataset, seed: dataset[0].mean(), data, (torch.ones(1), torch.zeros(1)))
        >>> result.eps_squared
        tensor([0.0625], dtype=torch.float64)
    """
    if test is not None and evaluate is None:
        raise UserError("expected evaluate wherever test is given, got test alone")
    held = None if test is None else as_pair(test, "test")

    def run(dataset: Dataset, seed: int, judged: bool) -> dict[int | None, Point]:
        given = train_fn(dataset, seed)
        points: dict[int | None, Any] = {None: given}
        if isinstance(given, Mapping) and given and all(isinstance(k, int) for k in given):
            points = dict(given)
        for step, value in points.items():  # what can be gone through only once, is so here
            points[step] = list(value) if isinstance(value, Iterator) else value
        return {step: point(value, dataset, judged) for step, value in points.items()}

    def point(value: Any, dataset: Dataset, judged: bool) -> Point:
        parameters = _parameters(value)
        if evaluate is None or not judged:
            return Point(parameters)
        train_loss = float(evaluate(value, dataset))
        return (
            Point(parameters, train_loss)
            if held is None
            else Point(parameters, train_loss, float(evaluate(value, held)))
        )

    losses = (evaluate is not None, held is not None)
    return measure(run, data, replacements, indices, seeds, check, losses, progress)


def paired_runs(
    make_model: Callable[[], nn.Module],
    loss_fn: LossFn,
    data: Iterable[Any],
    replacements: Iterable[Any],
    *,
    make_optimizer: Callable[[nn.Module], Optimizer],
    steps: int | Sequence[int],
    batch_size: int | None = 1,
    indices: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    test: Iterable[Any] | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Stability:
    """Train a model on S and on its neighbours, and compare its parameters (14.3).

    A step takes the samples of `index_sequence` (14.2), so that runs are the same up to the first
    step that takes the replaced sample. Initialisation, dropout and whatever draws from torch's,
    Python's or numpy's stream are the same in all runs of a seed. Losses are measured in evaluation
    mode. Buffers, as of norm layers, are no parameters and do not count.

    Cost: a training for each seed and replaced sample, one more a seed, and one for `check`.

    Args:
        make_model: makes a new model; is called after the streams were seeded.
        loss_fn: maps outputs and targets to the mean loss of the batch.
        data: S, a pair of tensors (n, ...) or batches, which are joined; moved to the model.
        replacements: K independent samples of the same kind.
        make_optimizer: makes the optimizer for a model.
        steps: where to compare, >= 0 each, rising; or the last step alone.
        batch_size: samples a step, drawn with replacement; None for all, in order.
        indices: which K samples of S are replaced, one at a time; the first K where None.
        seeds: repetitions.
        test: samples for the generalisation gap.
        check: train twice on S with the first seed, and refuse where that differs.
        progress: is told the runs done and all.

    Raises:
        UserError: where an argument is out of its bounds, shapes do not fit, runs are not finite,
            make_model gives the same model again, or two runs on the same data differ.

    Examples:
        >>> import torch
        >>> from gradwise.analysis.stability import ShallowNetwork, half_squared_error, paired_runs
        >>> x = torch.nn.functional.normalize(torch.randn(30, 5), dim=1)
        >>> y = torch.tanh(x.sum(1))
        >>> result = paired_runs(
        ...     lambda: ShallowNetwork(5, 20), half_squared_error, (x[:25], y[:25]),
        ...     (x[25:], y[25:]), steps=[0, 10, 100], batch_size=None,
        ...     make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
        >>> bool(0 == result.eps_squared[0] < result.eps_squared[1] < result.eps_squared[2])
        True
    """
    at = rising(steps)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"expected batch_size >= 1 or None, got batch_size={batch_size}")
    held = None if test is None else as_pair(test, "test")
    last_model: list[nn.Module] = []

    def run(dataset: Dataset, seed: int, judged: bool) -> dict[int | None, Point]:
        model = make_model()
        if any(model is other for other in last_model):
            raise UserError("expected make_model to make a new model each time, got the same again")
        last_model[:] = [model]
        optimizer = make_optimizer(model)
        device = device_of(model)
        inputs, targets = (tensor.to(device) for tensor in dataset)
        sequence = None
        if batch_size is not None:
            sequence = index_sequence(len(inputs), at[-1], batch_size, seed).to(device)
        points: dict[int | None, Point] = {}
        for step in range(at[-1] + 1):
            if step in at:
                points[step] = point(model, (inputs, targets), judged)
            if step < at[-1]:
                chosen = slice(None) if sequence is None else sequence[step]
                _step(model, loss_fn, optimizer, inputs[chosen], targets[chosen])
        return points

    def point(model: nn.Module, dataset: Dataset, judged: bool) -> Point:
        parameters = _parameters(model)
        if not judged:
            return Point(parameters)
        with frozen(model):  # so that measuring takes nothing from the run's random streams
            losses = [
                mean_loss(model, loss_fn, Source(part, device_of(model), CHUNK))
                for part in (dataset, held)
                if part is not None
            ]
        return Point(parameters, *losses)

    losses = (True, held is not None)
    return measure(run, data, replacements, indices, seeds, check, losses, progress)


def _step(
    model: nn.Module, loss_fn: LossFn, optimizer: Optimizer, inputs: Tensor, targets: Tensor
) -> None:
    def closure() -> float:
        optimizer.zero_grad()
        loss = attached_loss(loss_fn(model(inputs), targets))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)


def _parameters(value: Any) -> list[Tensor]:
    """Copies of a module's parameters, or of the tensors of a nest."""
    if isinstance(value, nn.Module):
        found: list[Tensor] = list(value.parameters())
    elif isinstance(value, Tensor):
        found = [value]
    else:
        many = value.values() if isinstance(value, Mapping) else value
        found = list(many) if isinstance(many, Iterable) else []
    if not found or not all(isinstance(tensor, Tensor) for tensor in found):
        raise UserError("expected parameters as a module, a tensor, or several tensors, got others")
    return [tensor.detach().clone() for tensor in found]
