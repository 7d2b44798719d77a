"""Statistics of a layer's features, batch by batch, and the sparsity that they amount to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis._jacobian import checked_rtol, rank_of, spectrum
from gradwise.errors import UserError


@dataclass(frozen=True)
class FeatureSparsity:
    """Sparsity of post-ReLU features, (12.4), and their rank.

    Neurons for the de-duplicated count are `examined` ones: all, or a random choice of a limit.
    Those that are 0 everywhere are dropped; then they are gone through by index and one is dropped
    where its absolute correlation with any other that is still there, before it or after, exceeds
    the threshold, so that of a set of copies the last stays. The order matters. A neuron that is
    the same positive number everywhere correlates with none.

    Attributes:
        samples: how many.
        neurons: entries of the features of one sample: channels times positions after a
            convolution.
        examined: neurons in the choice.
        active: strictly positive activations over samples x neurons, in [0, 1].
        distinct_active: those of the neurons that are left over samples x examined, the dropped
            ones included, in [0, 1].
        dead: examined neurons that are never positive.
        duplicates: examined ones that were dropped for their correlation.
        rank: singular values above rtol times the largest, of the [samples, examined] features
            [X: the paper's threshold is that of its Jacobians].
        singular_values: [examined] float64, the largest first, not centred.
    """

    samples: int
    neurons: int
    examined: int
    active: float
    distinct_active: float
    dead: int
    duplicates: int
    rank: int
    singular_values: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and a list."""
        return {**asdict(self), "singular_values": self.singular_values.tolist()}


class FeatureMoments:
    """Counts, means and co-moments of chosen neurons, in float64, without keeping features.

    Args:
        limit: see `gradwise.analysis.sparsity.feature_sparsity` for all of them.
        threshold: of correlation.
        seed: of the choice.
        rtol: of the rank.

    Raises:
        UserError: where an argument is out of its bounds.
    """

    def __init__(self, limit: int, threshold: float, seed: int, rtol: float) -> None:
        if limit < 1:
            raise UserError(f"expected limit >= 1, got limit={limit}")
        if not 0 < threshold < 1:
            raise UserError(f"expected 0 < threshold < 1, got threshold={threshold}")
        self._limit, self._threshold, self._seed = limit, threshold, seed
        self._rtol = checked_rtol(rtol)
        self._width = 0  # until the first batch
        self._index: Tensor
        self._mean: Tensor
        self._moment: Tensor  # sums of products of deviations from the mean
        self._positives: Tensor
        self._lowest: Tensor
        self._highest: Tensor
        self._samples = self._positive = 0

    def take(self, output: object, name: str) -> tuple[Tensor, int]:
        """A float64 copy [n, examined] of the chosen features, and how many of all are positive.

        Raises:
            UserError: where the output is not of the expected kind.
        """
        if not isinstance(output, Tensor) or output.ndim < 1 or output.numel() == 0:
            raise UserError(f"expected the output of {name!r} to be a tensor with samples")
        if output.is_complex():
            raise UserError(f"expected the output of {name!r} to be real, got {output.dtype}")
        features = output.detach().reshape(len(output), -1)
        if not bool(features.isfinite().all()):
            raise UserError(f"expected the output of {name!r} to be finite, it is not")
        if self._width == 0:
            self._begin(features)
        if features.shape[1] != self._width:
            raise UserError(
                f"expected {self._width} neurons in every batch at {name!r}, got "
                f"{features.shape[1]}"
            )
        chosen = features[:, self._index].to(torch.float64)
        return chosen, int((features > 0).sum())

    def add(self, chosen: Tensor, positive: int) -> None:
        """Take in what `take` gave."""
        n, before = len(chosen), self._samples
        mean = chosen.mean(0)
        centred = chosen - mean
        shift = mean - self._mean
        # Merged as means and deviations: plain sums of squares would cancel.
        self._moment += centred.T @ centred
        self._moment += torch.outer(shift, shift) * (before * n / (before + n))
        self._mean = self._mean + shift * (n / (before + n))
        self._positives += (chosen > 0).sum(0)
        self._lowest = torch.minimum(self._lowest, chosen.amin(0))
        self._highest = torch.maximum(self._highest, chosen.amax(0))
        self._samples += n
        self._positive += positive

    def result(self) -> FeatureSparsity:
        """What has been seen, at least one batch."""
        alive = self._positives > 0
        kept = self._distinct(alive)
        gram = self._moment + self._samples * torch.outer(self._mean, self._mean)
        singular = spectrum(gram)
        examined, samples = len(self._mean), self._samples
        return FeatureSparsity(
            samples=samples,
            neurons=self._width,
            examined=examined,
            active=self._positive / (samples * self._width),
            distinct_active=int(self._positives[kept].sum()) / (samples * examined),
            dead=examined - int(alive.sum()),
            duplicates=int(alive.sum()) - int(kept.sum()),
            rank=rank_of(singular, self._rtol),
            singular_values=singular.cpu(),
        )

    def _begin(self, features: Tensor) -> None:
        self._width = features.shape[1]
        generator = torch.Generator().manual_seed(self._seed)
        index = torch.arange(self._width)
        if self._width > self._limit:
            index = torch.randperm(self._width, generator=generator)[: self._limit].sort().values
        count, device = len(index), features.device
        self._index = index.to(device)
        self._mean = torch.zeros(count, dtype=torch.float64, device=device)
        self._moment = torch.zeros(count, count, dtype=torch.float64, device=device)
        self._positives = torch.zeros(count, dtype=torch.int64, device=device)
        self._lowest = torch.full_like(self._mean, torch.inf)
        self._highest = torch.full_like(self._mean, -torch.inf)

    def _distinct(self, alive: Tensor) -> Tensor:
        """[examined] which neurons are left after the greedy scan."""
        varies = self._highest > self._lowest  # exactly; the variance has rounding
        scale = self._moment.diagonal().clamp(min=0).sqrt()
        correlation = (self._moment / scale[:, None] / scale[None, :]).abs()
        similar = (correlation > self._threshold) & varies[:, None] & varies[None, :]
        similar = similar.fill_diagonal_(False).cpu()
        left = alive.cpu().clone()
        for neuron in left.nonzero().flatten().tolist():
            if bool((similar[neuron] & left).any()):
                left[neuron] = False
        return left.to(alive.device)
