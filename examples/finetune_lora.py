"""Fine-tuning in the style of torchtune: a recipe that a config drives, with gradwise in it.

    python examples/finetune_lora.py text=input.txt
    python examples/finetune_lora.py steps=120 resume=true
    python examples/finetune_lora.py optimizer_in_bwd=true accumulate=1 out=runs/in-backward

A small language model learns a text by its characters; then its weights are frozen, and low-rank
adapters (LoRA) of its layers are trained on the same text with the case of all letters swapped. In
bfloat16, with activation checkpoints, and with either accumulated gradients or an optimizer a
parameter that steps within backward. Lines marked "gradwise" are what it needs.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradwise as gw

LENGTH, WIDTH, BLOCKS = 32, 64, 2
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "on")


@dataclass
class Config:
    """What `name=value` on the command line may set."""

    text: str = ""  # a text file; without one, sentences of a few words are made up
    out: str = "runs/lora"
    steps: int = 60
    pretrain_steps: int = 60
    batch: int = 16
    accumulate: int = 2
    lr: float = 5e-3
    rank: int = 4
    alpha: float = 8.0
    bf16: bool = True
    recompute: bool = True
    optimizer_in_bwd: bool = False
    resume: bool = False

    @classmethod
    def of(cls, arguments: list[str]) -> Config:
        """The defaults with some set, such as `["steps=10", "resume=true"]`."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        given = {}
        for argument in arguments:
            name, sign, value = argument.partition("=")
            if name not in kinds or not sign:
                raise SystemExit(f"expected name=value, names {', '.join(kinds)}; got {argument!r}")
            kind = kinds[name]
            try:
                given[name] = value.lower() in ("true", "1") if kind is bool else kind(value)
            except ValueError as error:
                raise SystemExit(f"expected {name} of type {kind.__name__}, {error}") from error
        config = cls(**given)
        if config.optimizer_in_bwd and config.accumulate != 1:
            raise SystemExit(
                "expected accumulate=1 with optimizer_in_bwd=true: each backward steps"
            )
        return config


class LoRA(nn.Module):
    """A frozen linear layer beside a trained product of two thin matrices."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / rank
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.layer(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


class Block(nn.Module):
    """Causal attention with one head, and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, WIDTH] to the same."""
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    """A decoder over characters."""

    def __init__(self, characters: int, recompute: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)
        self.recompute = recompute

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length] to logits."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return self.head(self.norm(x))

    def adapt(self, rank: int, alpha: float) -> None:
        """Freeze everything, and put adapters around the blocks' linear layers."""
        self.requires_grad_(False)
        for block in self.blocks:
            for name in ("qkv", "out", "up", "down"):
                setattr(block, name, LoRA(getattr(block, name), rank, alpha))


class OptimizerInBackward:
    """One optimizer a parameter, behind the few methods that the recipe needs."""

    def __init__(self, model: nn.Module, make: Any) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optim_map = {name: make([p]) for name, p in trained.items()}
        by_param = {trained[name]: optimizer for name, optimizer in self.optim_map.items()}

        def step(param: Tensor) -> None:
            by_param[param].step()
            by_param[param].zero_grad()  # before the next layer's gradient is made

        for param in by_param:
            param.register_post_accumulate_grad_hook(step)

    def state_dict(self) -> dict[str, Any]:
        """By the parameters' names."""
        return {name: optimizer.state_dict() for name, optimizer in self.optim_map.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for name, one in state.items():
            self.optim_map[name].load_state_dict(one)


class Recipe:
    """setup, train, save_checkpoint: what torchtune's recipes have."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(config.out)
        self.first = 0

    def setup(self) -> None:
        """Text, model, optimizer; and the state of an earlier run, where there is one to resume."""
        config = self.config
        torch.manual_seed(0)
        self.text = self._read()
        letters = sorted(set(self.text) | set(self.text.swapcase()))
        self.places = {letter: at for at, letter in enumerate(letters)}
        self.model = Model(len(letters), config.recompute)
        saved = self.folder / "checkpoint.pt"
        found = torch.load(saved, weights_only=True) if config.resume else None
        if found is None:
            self._pretrain()
        self.model.adapt(config.rank, config.alpha)

        def make(params: Any) -> torch.optim.Optimizer:
            return torch.optim.AdamW(params, lr=config.lr, weight_decay=0.0)

        self.watch = None
        if config.optimizer_in_bwd:
            self.optimizer: Any = OptimizerInBackward(self.model, make)
            # gradwise: no step sees all gradients, so alpha is the one of the step before
            self.attachment: Any = gw.attach_in_backward(
                self.optimizer.optim_map, gw.transforms.Autoscale(), model=self.model, lagged=True
            )
        else:
            self.optimizer = make([p for p in self.model.parameters() if p.requires_grad])
            self.attachment = gw.autoscale(self.optimizer, self.model)  # gradwise
        if found is not None:
            self.model.load_state_dict(found["model"])
            self.optimizer.load_state_dict(found["optimizer"])
            self.first = found["step"]
        if not config.optimizer_in_bwd:
            self.watch = gw.watch(  # gradwise: what every adapter's gradient does
                self.optimizer,
                self.model,
                self.folder / "watch",
                resume_from=self.first if config.resume else None,
            )

    def train(self) -> None:
        """The steps that are left."""
        config, losses = self.config, []
        for step in range(self.first, config.steps):
            total = torch.zeros(())
            for micro in range(config.accumulate):
                loss = self._loss(self.text.swapcase(), config.accumulate * step + micro)
                (loss / config.accumulate).backward()
                total += loss.detach() / config.accumulate
            if not config.optimizer_in_bwd:
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.watch is not None:
                self.watch.log(loss=total)
            losses.append(float(total))
            if (step + 1) % 10 == 0:
                alpha = float(self.attachment.numbers["0.Autoscale[trend].alpha"])
                mean = sum(losses[-10:]) / len(losses[-10:])
                print(f"step {step + 1}, alpha {alpha:.3f}: loss {mean:.4f}", flush=True)

    def save_checkpoint(self) -> None:
        """The transforms' state rides in the optimizer's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": max(self.config.steps, self.first),
        }
        torch.save(state, self.folder / "checkpoint.pt")

    def cleanup(self) -> None:
        """Write what is still to be written."""
        if self.watch is not None:
            self.watch.close()

    def _pretrain(self) -> None:
        """All weights, on the text as it is."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        gw.autoscale(optimizer, self.model)
        for step in range(self.config.pretrain_steps):
            optimizer.zero_grad()
            loss = self._loss(self.text, -1 - step)
            loss.backward()
            optimizer.step()
        if self.config.pretrain_steps:
            print(f"pretrained: loss {loss.item():.4f}", flush=True)

    def _loss(self, text: str, number: int) -> Tensor:
        """Of a batch of the text; the same one whenever its number comes."""
        made = torch.Generator().manual_seed(number % 2**32)
        starts = torch.randint(len(text) - LENGTH - 1, (self.config.batch,), generator=made)
        rows = [text[at : at + LENGTH + 1] for at in starts.tolist()]
        tokens = torch.tensor([[self.places[letter] for letter in row] for row in rows])
        narrow = torch.autocast("cpu", torch.bfloat16) if self.config.bf16 else nullcontext()
        with narrow:
            logits = self.model(tokens[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def _read(self) -> str:
        if self.config.text:
            return Path(self.config.text).read_text(encoding="utf-8")
        made = torch.Generator().manual_seed(1)
        picked = torch.randint(len(WORDS), (4000,), generator=made).tolist()
        return " ".join(WORDS[at] for at in picked)


def main() -> None:
    """Set up, train, save."""
    recipe = Recipe(Config.of(sys.argv[1:]))
    recipe.setup()
    recipe.train()
    recipe.save_checkpoint()
    recipe.cleanup()


if __name__ == "__main__":
    main()
