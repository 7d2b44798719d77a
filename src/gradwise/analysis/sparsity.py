"""What large steps do to a network: sparse features, low ranks, and a loss that hovers.

Andriushchenko, Varre, Pillaud-Vivien, Flammarion, SGD with Large Step Sizes Learns Sparse Features,
ICML 2023, https://arxiv.org/abs/2210.05337. The schedules are in `gradwise.analysis.schedules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.analysis._features import FeatureMoments, FeatureSparsity
from gradwise.analysis._frozen import frozen
from gradwise.analysis._jacobian import JacobianRank, jacobian_rank, numerical_rank
from gradwise.analysis._passes import Progress, Source
from gradwise.analysis._stabilisation import LossStabilisation, Plateau, loss_stabilisation
from gradwise.errors import UserError

__all__ = [
    "FeatureSparsity",
    "JacobianRank",
    "LossStabilisation",
    "Plateau",
    "feature_sparsity",
    "jacobian_rank",
    "loss_stabilisation",
    "numerical_rank",
    "sparsity_of",
]


def sparsity_of(
    features: Tensor,
    *,
    limit: int = 1000,
    threshold: float = 0.95,
    seed: int = 0,
    rtol: float = 1e-4,
) -> FeatureSparsity:
    """Sparsity of features that are at hand, (12.4).

    Args:
        features: [samples, ...] after the ReLU; all but the first dimension are neurons.
        limit: see `feature_sparsity` for this and what follows.
        threshold: of correlation.
        seed: of the choice of neurons.
        rtol: of ranks.

    Raises:
        UserError: see `feature_sparsity`.

    Examples:
        Of four neurons one is dead and two are the same:

        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
        >>> features = torch.cat([x, torch.zeros(3, 1), 5 * x[:, :1]], 1)
        >>> found = sparsity_of(features)
        >>> found.active, found.distinct_active, found.dead, found.duplicates, found.rank
        (0.5, 0.3333333333333333, 1, 1, 2)
    """
    moments = FeatureMoments(limit, threshold, seed, rtol)
    moments.add(*moments.take(features, "features"))
    return moments.result()


def feature_sparsity(
    model: nn.Module,
    data: Iterable[Any],
    modules: str | Sequence[str],
    *,
    limit: int = 1000,
    threshold: float = 0.95,
    seed: int = 0,
    rtol: float = 1e-4,
    chunk_size: int = 256,
    progress: Progress | None = None,
) -> dict[str, FeatureSparsity]:
    """Which share of activations is positive, with and without duplicates, and their rank, (12.4).

    The output of a module counts as post-ReLU features: name a ReLU, or a block that ends with
    one. One pass in evaluation mode without gradients; the model, its buffers and all random
    streams are left as they were. The recipe is that of the authors' code [V], see
    `FeatureSparsity`; that neurons are chosen by a seed and scanned in the order of their index is
    this library's choice [X].

    Cost: one pass, and 8 limit^2 bytes a module.

    Args:
        model: in any mode.
        data: (inputs, targets) tensors, or an iterable of such batches; targets are not used.
        modules: names as in `model.named_modules()`. Of a module that runs several times in one
            forward pass, the last output counts.
        limit: at most so many neurons, chosen at random, are searched for duplicates, >= 1.
        threshold: neurons of a larger absolute correlation are duplicates, in (0, 1).
        seed: of that choice.
        rtol: singular values above rtol times the largest count for the rank, in [1e-7, 1).
        chunk_size: samples in one forward pass where data are two tensors.
        progress: called with the batches done and how many there are, 0 where that is unknown.

    Returns:
        A result for each name.

    Raises:
        UserError: where there is no such module, it does not run, its output is not a tensor of
            finite real numbers or changes its size, there are no data, or an argument is out of
            its bounds.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.ReLU())
        >>> data = torch.randn(200, 3), torch.zeros(200)
        >>> found = feature_sparsity(model, data, "1")["1"]
        >>> found.neurons, found.samples, 0.3 < found.active < 0.7
        (50, 200, True)
        >>> found.distinct_active <= found.active
        True
    """
    names = [modules] if isinstance(modules, str) else list(modules)
    known = dict(model.named_modules())
    if not names:
        raise UserError("expected the name of at least 1 module, got none")
    for name in names:
        if name not in known:
            raise UserError(f"expected modules of the model, it has no {name!r}")
    moments = {name: FeatureMoments(limit, threshold, seed, rtol) for name in names}
    seen: dict[str, tuple[Tensor, int]] = {}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, args: object, output: object) -> None:
            # At once: what comes next may change the output in place.
            seen[name] = moments[name].take(output, name)

        return known[name].register_forward_hook(hook)

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with frozen(model, data), torch.no_grad():
        handles = [listen(name) for name in moments]
        try:
            source = Source(data, device, chunk_size)
            for done, (inputs, _, _) in enumerate(source, 1):
                seen.clear()
                model(inputs)
                for name in moments:
                    if name not in seen:
                        raise UserError(f"expected {name!r} to run in a forward pass, it did not")
                    moments[name].add(*seen[name])
                if progress is not None:
                    progress(done, source.parts)
        finally:
            for handle in handles:
                handle.remove()
    return {name: moment.result() for name, moment in moments.items()}
