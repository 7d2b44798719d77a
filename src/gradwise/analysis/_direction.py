"""What a step with momentum goes along, as a rule and as an optimizer's own state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradwise.analysis._frozen import trainable
from gradwise.errors import UserError
from gradwise.optim import SGD


@dataclass(frozen=True, eq=False)
class Direction:
    """The rule d_t = weight g_t + beta d_{t-1}, equation (10.1) of methods.md.

    Attributes:
        weight: w > 0, of the fresh gradient; 1 - dampening.
        beta: momentum, 0 <= beta < 1.
        buffer: d_{t-1}, one tensor a trainable parameter of the model in its order; None for the
            state that many steps at one point end in.
        weight_decay: coupled decay, one number, or one a trainable parameter.

    Raises:
        UserError: where a number is out of its bounds.

    Examples:
        >>> Direction.heavy_ball(0.9).weight, Direction.normalized(0.75).weight
        (1.0, 0.25)
    """

    weight: float = 1.0
    beta: float = 0.0
    buffer: tuple[Tensor, ...] | None = None
    weight_decay: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise UserError(f"expected 0 <= beta < 1, got beta={self.beta}")
        if not 0 < self.weight < float("inf"):
            raise UserError(f"expected 0 < weight < inf, got weight={self.weight}")

    @classmethod
    def sgd(cls) -> Direction:
        """SGD: the batch gradient itself."""
        return cls()

    @classmethod
    def heavy_ball(cls, beta: float = 0.9) -> Direction:
        """SHB, which is the momentum of torch.optim.SGD."""
        return cls(1.0, beta)

    @classmethod
    def normalized(cls, beta: float = 0.9) -> Direction:
        """NSHB, which is torch.optim.SGD with dampening as large as momentum."""
        return cls(1.0 - beta, beta)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, model: nn.Module) -> Direction:
        """The coming step of an optimizer, with the buffer that it holds now.

        The tensors of the buffer are the optimizer's own: measure before the next step. Transforms
        of the gradient that hooks apply are not seen; the buffer holds what they made.

        Args:
            optimizer: torch's or gradwise's SGD, which has made a step where it has momentum.
            model: whose trainable parameters it moves.

        Raises:
            UserError: where the optimizer is another, looks ahead (nesterov) or goes up, its groups
                have different momentum, or it lacks a parameter of the model.

        Examples:
            >>> import torch
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            >>> model(torch.ones(1, 2)).sum().backward()
            >>> optimizer.step()
            >>> found = Direction.of(optimizer, model)
            >>> found.beta, found.buffer
            (0.9, (tensor([[1., 1.]]), tensor([1.])))
        """
        if not isinstance(optimizer, torch.optim.SGD | SGD):
            raise UserError(f"expected an SGD optimizer, got {type(optimizer).__name__}")
        groups = optimizer.param_groups
        for name in ("nesterov", "maximize"):
            if any(group[name] for group in groups):
                raise UserError(f"expected an optimizer with {name}=False, got {name}=True")
        kinds = {(group["momentum"], group["dampening"]) for group in groups}
        if len(kinds) > 1:
            raise UserError("expected one momentum and dampening in all groups, got several")
        beta, dampening = kinds.pop()
        decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
        params = trainable(model)
        for name, param in params.items():
            if param not in decays:
                raise UserError(f"expected an optimizer of all parameters, {name!r} is not there")
        decay = tuple(float(decays[param]) for param in params.values())
        if beta == 0:
            return cls(weight_decay=decay)
        held = [optimizer.state[p].get("momentum_buffer") for p in params.values()]
        if all(buffer is None for buffer in held):
            raise UserError("expected an optimizer that has made a step, its momentum is empty")
        zeros = (torch.zeros_like(param) for param in params.values())
        buffers = tuple(zero if b is None else b for b, zero in zip(held, zeros, strict=True))
        return cls(1.0 - dampening, beta, buffers, decay)

    def check(self, params: Sequence[Tensor]) -> None:
        """Whether buffer and decays are those of these parameters.

        Raises:
            UserError: where they are not.
        """
        if isinstance(self.weight_decay, tuple) and len(self.weight_decay) != len(params):
            raise UserError(
                f"expected {len(params)} numbers for weight_decay, got {len(self.weight_decay)}"
            )
        if self.buffer is None:
            return
        shapes, expected = [tuple(b.shape) for b in self.buffer], [tuple(p.shape) for p in params]
        if shapes != expected:
            raise UserError(f"expected a buffer of the shapes {expected}, got {shapes}")

    def with_decay(self, mean: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of f(x) + weight_decay |x|^2 / 2, from that of f."""
        decays = self.weight_decay
        each = decays if isinstance(decays, tuple) else (decays,) * len(params)
        return [
            g + decay * p.detach().to(g) for g, p, decay in zip(mean, params, each, strict=True)
        ]
