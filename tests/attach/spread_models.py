"""Models on several processes, and what each process does; processes import this by itself."""

import copy
import os
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import gradwise as gw

T = gw.transforms
TRANSFORMS = {
    "measure only": (),
    "autoscale": (T.Autoscale(),),
    "center rows": (T.Center(per="row"),),
    "agc": (T.AGC(),),
    "center, clip": (T.Center(), T.ClipNorm(0.1)),
    "znorm": (T.ZNorm(),),
    "znorm global": (T.ZNorm(per="global"),),
    "autoclip": (T.AutoClip(),),
    "zclip": (T.ZClip(),),
}
STEPS = 4


def model():
    """The same everywhere; 7 and 3 rows are shared unevenly."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.ReLU(),
        nn.Linear(8, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 7),
        nn.Linear(7, 3),
    )


def inputs():
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(1))


def tensor_parallel(net, mesh):
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(net, mesh, plan)


def spread(kind, world, net):
    """The model spread over all processes in one of several ways."""
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(net[0], mesh=mesh)
        return fully_shard(net, mesh=mesh)
    if kind == "mixed precision":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return fully_shard(net, mesh=init_device_mesh("cpu", (world,)), mp_policy=policy)
    if kind == "offload":
        mesh = init_device_mesh("cpu", (world,))
        return fully_shard(net, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    if kind == "tensor parallel":
        return tensor_parallel(net, init_device_mesh("cpu", (world,)))
    if kind == "hybrid":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
        return fully_shard(net, mesh=mesh)
    assert kind == "both"
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    return fully_shard(tensor_parallel(net, mesh["tensor"]), mesh=mesh["data"])


def train(net, transforms, optimizer=torch.optim.SGD, steps=STEPS, extremes=True, **options):
    made = optimizer(net.parameters(), **{"lr": 0.05, **options})
    attachment = gw.attach(made, *copy.deepcopy(transforms), model=net)
    attachment.extremes = extremes
    for _ in range(steps):
        made.zero_grad()
        net(inputs().to(next(net.parameters()).dtype)).square().mean().backward()
        made.step()
    return attachment, made


def full(tensor):
    """The whole tensor, detached."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach()


def compare(attachment, net, reference, expected, tolerance):
    """Parameters, moments and state against those of one process."""
    close = {"rtol": tolerance, "atol": tolerance}
    for (name, mine), theirs in zip(net.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(mine), theirs.detach(), msg=name, **close)
    mine, theirs = attachment.moments, reference.moments
    assert mine.names == theirs.names
    for key in ("count", "mean", "std", "norm", "nonfinite", "min", "max", "zeros"):
        torch.testing.assert_close(getattr(mine, key), getattr(theirs, key), **close)
    assert attachment.state.keys() == reference.state.keys()
    for key, value in attachment.state.items():
        torch.testing.assert_close(value, reference.state[key], msg=key, **close)


def run(world, task, *arguments, folder):
    """Run `task(rank, world, *arguments)` on so many processes; the first error is the test's."""
    mp.spawn(_begin, (world, str(folder), task, arguments), nprocs=world)


def _begin(rank, world, folder, task, arguments):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    code = 0
    try:
        task(rank, world, *arguments)
        if dist.is_initialized():
            dist.barrier()
    except BaseException:
        traceback.print_exc()
        code = 1
    # Threads of torch's own functional collectives may still be there, which makes a normal exit
    # abort now and then.
    os._exit(code)
