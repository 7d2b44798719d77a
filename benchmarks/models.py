"""The models that the benchmarks take their gradients from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradwise.lab.models import build


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Causal self-attention and an MLP, [B, T, width]."""
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A language model; by default of characters, with about 10 million parameters."""

    def __init__(self, vocabulary: int = 96, width: int = 320, depth: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(128, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, vocabulary] of tokens [B, T]."""
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def with_gradients(name: str) -> nn.Module:
    """A model after one backward pass on random data."""
    torch.manual_seed(0)
    if name.startswith("transformer"):
        size = {"transformer-10m": {}, "transformer-100m": {"width": 768, "depth": 14}}[name]
        model: nn.Module = Transformer(**size)
        tokens = torch.randint(96, (4, 129))
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    else:
        model = build(name, num_classes=10, in_shape=(3, 32, 32))
        loss = F.cross_entropy(model(torch.randn(32, 3, 32, 32)), torch.randint(10, (32,)))
    loss.backward()
    return model
