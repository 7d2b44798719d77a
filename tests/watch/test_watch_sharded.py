"""`gradwise.watch` with several processes: one writes, and what it writes is of the whole."""

import warnings

import numpy as np
import pytest
import spread_models as spread
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import gradwise as gw
from gradwise.watch.store import load

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
)

STEPS = 5


def steps(net, optimizer, data=None):
    for _ in range(STEPS):
        optimizer.zero_grad()
        net(spread.inputs() if data is None else data).square().mean().backward()
        optimizer.step()


def watched_shards(rank, world, folder):
    whole = spread.model()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05)
    watch = gw.watch(optimizer, whole, folder / f"whole{rank}", rules=())
    steps(whole, optimizer)
    watch.close()
    dist.barrier()
    net = spread.spread("fsdp", world, spread.model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch = gw.watch(optimizer, net, folder / "shards", rules=(), histograms=2, directions=2)
        steps(net, optimizer)
        watch.close()
    assert (watch.path is not None) == (rank == 0)


def test_what_is_written_is_of_the_whole(tmp_path):
    spread.run(2, watched_shards, tmp_path, folder=tmp_path)
    whole, shards = load(tmp_path / "whole0"), load(tmp_path / "shards")
    assert shards.layer_names == whole.layer_names
    assert not list(tmp_path.glob("shards-*"))
    for metric in ("mean", "std", "norm", "max_abs", "zeros", "nonfinite"):
        mine, theirs = (
            run.latest(STEPS, metrics=[metric]).layers[metric] for run in (shards, whole)
        )
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7, err_msg=metric)


def accumulated_shards(rank, world, folder):
    """Several backward passes a step: norms of parts would need all processes, and one watches."""
    net = spread.spread("fsdp", world, spread.model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    watch = gw.watch(optimizer, net, folder / "run", rules=(), noise_every=1, histograms=1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for part in spread.inputs().chunk(2):
            (net(part).square().mean() / 2).backward()
        optimizer.step()
    if rank == 0:
        with pytest.raises(gw.errors.UserError, match="parameters are sharded"):
            _ = watch.noise_scale
    watch.close()


def test_accumulation_with_shards(tmp_path):
    spread.run(2, accumulated_shards, tmp_path, folder=tmp_path)
    assert load(tmp_path / "run").last_step == STEPS - 1


def watched_by_one(rank, world):
    net = spread.spread("fsdp", world, spread.model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    attachment = gw.attach(optimizer, model=net)
    if rank == 0:
        attachment.extremes = True
        with pytest.warns(UserWarning, match=r"call gradwise\.watch on every process"):
            steps(net, optimizer)
    else:
        steps(net, optimizer)
    assert attachment.moments.min is None
    attachment.extremes = True
    steps(net, optimizer)
    assert attachment.moments.min is not None
    attachment.extremes = rank == 1  # what has been agreed on stays, or one would wait for ever
    steps(net, optimizer)
    assert (attachment.moments.min is not None) == (rank == 1)


def test_who_watches_alone_is_told_and_nobody_waits(tmp_path):
    spread.run(2, watched_by_one, folder=tmp_path)


def equal_under_ddp(rank, world):
    """Accumulation under no_sync, and a communication hook."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    expected = spread.model()
    reference = torch.optim.SGD(expected.parameters(), lr=0.05)
    gw.autoscale(reference, model=expected)
    net = DistributedDataParallel(spread.model())
    net.register_comm_hook(None, allreduce_hook)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    attachment = gw.autoscale(optimizer, model=net.module)
    data = spread.inputs().chunk(2 * world)
    for _ in range(STEPS):
        reference.zero_grad()
        expected(spread.inputs()).square().mean().backward()
        reference.step()
        optimizer.zero_grad()
        with net.no_sync():
            (net(data[2 * rank]).square().mean() / 2).backward()
        (net(data[2 * rank + 1]).square().mean() / 2).backward()
        optimizer.step()
    for mine, theirs in zip(net.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    alphas = [torch.zeros((), dtype=torch.float64) for _ in range(world)]
    dist.all_gather(alphas, attachment.state["0.Autoscale[trend].alpha"])
    assert len(set(map(float, alphas))) == 1


def test_ddp_with_accumulation_and_a_communication_hook(tmp_path):
    spread.run(2, equal_under_ddp, folder=tmp_path)
