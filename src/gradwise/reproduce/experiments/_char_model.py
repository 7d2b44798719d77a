"""A small GPT over characters, its batches, and those that go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradwise.errors import UserError
from gradwise.lab.seeding import derived_seed

__all__ = ["BAD_KINDS", "Bad", "CharGPT", "evaluate", "training_batch"]

BAD_KINDS = ("random", "scrambled")
"""Characters drawn at random; targets in random order and a loss that is too large."""


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        drop = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
        x = x + self._drop(self.proj(seen.transpose(1, 2).reshape(batch, length, width)))
        return x + self._drop(self.down(F.gelu(self.up(self.norm2(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class CharGPT(nn.Module):
    """A causal transformer with norms before its layers; the embedding also reads the answer out.

    Weights begin as in GPT-2: normal with std 0.02, those that end in the residual stream smaller
    by the root of their number.

    Args:
        vocabulary: kinds of characters.
        width: of the residual stream, a multiple of `heads`.
        depth: blocks.
        heads: of attention.
        context: most characters at a time.
        dropout: share, in [0, 1).

    Examples:
        >>> CharGPT(5, 8, 1, 2, 4)(torch.zeros(3, 4, dtype=torch.int64)).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        context: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout
        for name, weight in self.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * depth))
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[B, T, vocabulary]` of what follows each of the tokens, int64 `[B, T]`."""
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)


def training_batch(
    part: Tensor, seed: int, step: int, batch_size: int, context: int
) -> tuple[Tensor, Tensor]:
    """The batch of a step: the same for every method and whatever happened before.

    Args:
        part: the text to learn, int64 `[N]`, longer than `context`.
        seed: of the run.
        step: from 0.
        batch_size: windows.
        context: characters a window.

    Returns:
        Inputs and targets, int64 `[batch_size, context]` each.
    """
    random = torch.Generator().manual_seed(derived_seed("batch", seed, step))
    starts = torch.randint(len(part) - context, (batch_size, 1), generator=random)
    window = part[starts + torch.arange(context + 1)]
    return window[:, :-1], window[:, 1:]


@dataclass(frozen=True)
class Bad:
    """How some batches go wrong.

    Which steps are bad follows from the seed alone: both kinds hit the same ones, for every method
    and learning rate.

    Attributes:
        kind: one of `BAD_KINDS`. "random": inputs and targets are characters drawn uniformly, as
            from a damaged file. "scrambled": the targets are those of the batch in random order
            and the loss is too large, as from wrong labels with a wrong weight.
        share: probability of a bad step.
        scale: > 0, what the loss of a "scrambled" batch is multiplied with.

    Raises:
        UserError: where there is no such kind.
    """

    kind: str
    share: float
    scale: float

    def __post_init__(self) -> None:
        if self.kind not in BAD_KINDS:
            raise UserError(
                f"expected a bad batch to be one of {', '.join(BAD_KINDS)}, got {self.kind!r}"
            )

    def hits(self, seed: int, step: int) -> bool:
        """Whether a step, from 0, is a bad one."""
        random = torch.Generator().manual_seed(derived_seed("bad step", seed, step))
        return torch.rand((), generator=random).item() < self.share

    def batch(
        self, seed: int, step: int, inputs: Tensor, targets: Tensor, vocabulary: int
    ) -> tuple[Tensor, Tensor, float]:
        """What a bad step sees: inputs, targets, and what its loss is multiplied with.

        Args:
            seed: of the run.
            step: from 0.
            inputs: of the good batch, int64 `[B, T]`.
            targets: likewise.
            vocabulary: kinds of characters; the last stands for unknown ones and is not drawn.
        """
        random = torch.Generator().manual_seed(derived_seed("bad batch", self.kind, seed, step))
        if self.kind == "random":
            drawn = torch.randint(vocabulary - 1, (2, *inputs.shape), generator=random)
            return drawn[0], drawn[1], 1.0
        order = torch.randperm(targets.numel(), generator=random)
        return inputs, targets.flatten()[order].view_as(targets), self.scale


def evaluate(
    model: nn.Module, part: Tensor, context: int, windows: int, device: torch.device
) -> float:
    """Loss in bits a character over windows that do not overlap and lie evenly in the text.

    Args:
        model: as `CharGPT`; is in training mode afterwards.
        part: int64 `[N]`, longer than `context`.
        context: characters a window.
        windows: how many at most; fewer where the text is too short.
        device: the model's.

    Returns:
        The loss; NaN or infinity where the weights are broken.
    """
    count = min(windows, (len(part) - 1) // context)
    starts = torch.linspace(0, len(part) - 1 - context, count, dtype=torch.float64).long()
    total, seen = 0.0, 0
    model.eval()
    with torch.no_grad():
        for some in torch.split(starts, 64):
            window = part[some[:, None] + torch.arange(context + 1)].to(device)
            logits = model(window[:, :-1]).flatten(0, 1).float()
            loss = F.cross_entropy(logits, window[:, 1:].flatten(), reduction="sum")
            total += loss.item()
            seen += window[:, 1:].numel()
    model.train()
    return total / seen / math.log(2.0)
