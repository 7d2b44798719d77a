"""Pre-training in the style of torchtitan: FSDP2 and tensor parallel, resumable, with gradwise on.

    torchrun --nproc-per-node 2 examples/pretrain_fsdp2.py --steps 40
    torchrun --nproc-per-node 4 examples/pretrain_fsdp2.py --steps 40 --tensor-parallel 2
    torchrun --nproc-per-node 2 examples/pretrain_fsdp2.py --steps 80 --resume   # from 4 onto 2

A small transformer learns to repeat sequences, on CPUs with gloo or on GPUs with NCCL. What
gradwise needs are the two lines marked below; the rest is what such a loop has anyway.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional as F

import gradwise as gw

VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH, BATCH = 32, 64, 4, 2, 32, 16


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, WIDTH] to the same."""
        h = self.norm1(x)
        heads = (f(h).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for f in self.attention)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    @property
    def attention(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """The layers before the heads."""
        return self.query, self.key, self.value


class Model(nn.Module):
    """A decoder over a small vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length] to logits."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def spread(model: Model, mesh: Any) -> Model:
    """Tensor parallel inside a block, then shards over the data-parallel processes."""
    if mesh["tensor"].size() > 1:
        plan = {name: ColwiseParallel() for name in ("query", "key", "value", "up")}
        plan |= {name: RowwiseParallel() for name in ("out", "down")}
        for block in model.blocks:
            parallelize_module(block, mesh["tensor"], plan)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


def batch(step: int, data_rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences whose second half repeats the first; the same ones whenever a step is made."""
    made = torch.Generator().manual_seed(1000 * step + data_rank)
    half = torch.randint(VOCABULARY, (BATCH, LENGTH // 2 + 1), generator=made)
    tokens = torch.cat([half, half], 1)[:, : LENGTH + 1].to(device)
    return tokens[:, :-1], tokens[:, 1:]


def main() -> None:
    """Train, write a checkpoint at the end, and go on from it with --resume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args()

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = (
        torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    )
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    shape = (dist.get_world_size() // options.tensor_parallel, options.tensor_parallel)
    mesh = init_device_mesh(kind, shape, mesh_dim_names=("data", "tensor"))

    torch.manual_seed(0)
    model = spread(Model().to(device), mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    gw.autoscale(optimizer, model=model)  # gradwise, 1: on every process, after fully_shard

    first, folder = 0, options.out / "checkpoint"
    if options.resume:
        weights, state = get_state_dict(model, optimizer)
        found = {"model": weights, "optimizer": state, "step": 0}
        dcp.load(found, checkpoint_id=folder)
        set_state_dict(
            model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
        )
        first = found["step"]
    # gradwise, 2: on every process; rank 0 writes
    watch = gw.watch(
        optimizer, model, options.out / "watch", resume_from=first if options.resume else None
    )

    for step in range(first, options.steps):
        inputs, targets = batch(step, mesh["data"].get_local_rank(), device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean, group=mesh["data"].get_group())
        mean /= mesh["data"].size()
        watch.log(loss=mean)
        if dist.get_rank() == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {mean.item():.4f}", flush=True)

    watch.close()
    weights, state = get_state_dict(model, optimizer)
    whole = {"model": weights, "optimizer": state, "step": options.steps}
    dcp.save(whole, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
