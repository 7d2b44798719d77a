"""Training nothing but the parameters of norm layers, (11.5)."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gradwise.errors import UserError

NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class NormsOnly:
    """What `freeze_all_but_norms` has done, and the way to undo it; a context manager.

    Attributes:
        trained: names of the parameters that are still trained, in the order of the model.
        frozen: names of those that were and no longer are.
        frozen_share: entries of all parameters that are not trained, over all entries, in [0, 1).
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    frozen_share: float

    def __init__(self, model: nn.Module, norms: tuple[type[nn.Module], ...]) -> None:
        kept = {
            id(param)
            for module in model.modules()
            if isinstance(module, norms)
            for param in module.parameters(recurse=False)
        }
        named = dict(model.named_parameters())
        trained = {n: p for n, p in named.items() if p.requires_grad and id(p) in kept}
        if not trained:
            raise UserError(
                "expected norm layers with parameters that require a gradient, the model has none: "
                "name the classes of its own norm layers in also=(...)"
            )
        frozen = {n: p for n, p in named.items() if p.requires_grad and id(p) not in kept}
        self.trained, self.frozen = tuple(trained), tuple(frozen)
        moving = sum(p.numel() for p in trained.values())
        self.frozen_share = 1 - moving / sum(p.numel() for p in named.values())
        # A gradient of before would move its parameter at every step to come.
        self._held: list[tuple[nn.Parameter, Tensor | None]] = [
            (param, param.grad) for param in frozen.values()
        ]
        for param, _ in self._held:
            param.requires_grad_(False)
            param.grad = None

    def restore(self) -> None:
        """Let everything be trained that was; a second call does nothing."""
        for param, grad in self._held:
            param.requires_grad_(True)
            param.grad = grad
        self._held = []

    def __enter__(self) -> NormsOnly:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"NormsOnly({len(self.trained)} trained, {self.frozen_share:.2%} frozen)"


def freeze_all_but_norms(model: nn.Module, *, also: tuple[type[nn.Module], ...] = ()) -> NormsOnly:
    """Freeze everything except the scales and shifts of norm layers, until it is undone.

    The second half of (11.5): train as usual up to some epoch, then go on with the norm layers
    alone, which Singh et al. (ICLR 2025, https://arxiv.org/abs/2403.07379) report to match full
    training [V, in words; their epoch and networks are unknown]. Running statistics keep being
    updated, since modes and buffers are not touched. The optimizer at hand may go on: torch's
    leave a parameter without a gradient alone, its weight decay and momentum included. Gradients
    of frozen parameters are put aside until the end.

    Norm layers are torch's batch, instance, layer, group and RMS norms. A norm parameter that was
    frozen before stays so; one that another module shares is trained.

    Args:
        model: changed in place, at once.
        also: further classes whose own parameters are norm parameters.

    Returns:
        A handle: `restore()`, or the end of a `with` block, undoes it.

    Raises:
        UserError: where no norm parameter requires a gradient.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 1))
        >>> with freeze_all_but_norms(model) as handle:
        ...     print([n for n, p in model.named_parameters() if p.requires_grad], handle)
        ['1.weight', '1.bias'] NormsOnly(2 trained, 84.75% frozen)
        >>> all(p.requires_grad for p in model.parameters())
        True
    """
    return NormsOnly(model, (*NORMS, *also))
