"""torch's distributed checkpoints: saved on three processes, loaded on two."""

import copy

import pytest
import spread_models as spread
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import gradwise as gw

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
    ),
]

BEFORE, AFTER = 3, 2
CASES = [
    ("autoscale", torch.optim.AdamW, {}),
    ("autoclip", torch.optim.AdamW, {}),
    ("zclip", gw.optim.AdamW, {}),
    ("autoscale", gw.optim.SGD, {"momentum": 0.9}),
]


def begun(world, name, make, options):
    net = spread.spread("fsdp", world, spread.model())
    optimizer = make(net.parameters(), lr=0.05, **options)
    attachment = gw.attach(optimizer, *copy.deepcopy(spread.TRANSFORMS[name]), model=net)
    return net, optimizer, attachment


def step(net, optimizer, times):
    for _ in range(times):
        optimizer.zero_grad()
        net(spread.inputs()).square().mean().backward()
        optimizer.step()


def go_on(rank, file, net, optimizer, attachment):
    """Train on without a stop, and keep what that comes to."""
    step(net, optimizer, AFTER)
    parameters = [spread.full(p) for p in net.parameters()]
    if rank == 0:
        torch.save((parameters, attachment.state_dict()), file)


def saved(rank, world, folder, flat):
    for i, case in enumerate(CASES):
        net, optimizer, attachment = begun(world, *case)
        step(net, optimizer, BEFORE)
        model, state = get_state_dict(
            net, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat)
        )
        whole = {"model": model, "optimizer": state}
        if flat:  # flattened states drop what others than torch add
            whole["gradwise"] = attachment.state_dict()
        dcp.save(whole, checkpoint_id=folder / str(i))
        go_on(rank, folder / f"{i}.pt", net, optimizer, attachment)


def loaded(rank, world, folder, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    for i, case in enumerate(CASES):
        net, optimizer, attachment = begun(world, *case)
        model, state = get_state_dict(net, optimizer, options=options)
        found = {"model": model, "optimizer": state}
        if flat:
            found["gradwise"] = attachment.state_dict()
        dcp.load(found, checkpoint_id=folder / str(i))
        set_state_dict(
            net,
            optimizer,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
            options=options,
        )
        if flat:
            attachment.load_state_dict(found["gradwise"])
        step(net, optimizer, AFTER)
        check(folder / f"{i}.pt", net, attachment)


def check(file, net, attachment):
    """The same as of those who never stopped."""
    parameters, expected = torch.load(file, weights_only=True)
    for param, wanted in zip(net.parameters(), parameters, strict=True):
        torch.testing.assert_close(spread.full(param), wanted, rtol=1e-5, atol=1e-6)
    now = attachment.state_dict()
    assert now["transform"] == expected["transform"]
    assert now["state"].keys() == expected["state"].keys()
    assert now["state"]
    for key, value in now["state"].items():
        torch.testing.assert_close(value, expected["state"][key], msg=key, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("flat", [False, True])
def test_onto_another_number_of_processes(flat, tmp_path):
    for name, world, task in (("three", 3, saved), ("two", 2, loaded)):
        (tmp_path / name).mkdir()
        spread.run(world, task, tmp_path, flat, folder=tmp_path / name)


def kept_whole(rank, world, folder):
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for i, case in enumerate(CASES):
        net, optimizer, attachment = begun(world, *case)
        step(net, optimizer, BEFORE)
        model, state = get_state_dict(net, optimizer, options=options)
        if rank == 0:
            torch.save({"model": model, "optimizer": state}, folder / f"{i}.ckpt")
        go_on(rank, folder / f"{i}.pt", net, optimizer, attachment)


def read_by_one(rank, world, folder):
    # As the Trainer does: rank 0 has the file, torch tells the others, and nobody is attached yet.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    for i, (name, make, others) in enumerate(CASES):
        net = spread.spread("fsdp", world, spread.model())
        optimizer = make(net.parameters(), lr=0.05, **others)
        found = torch.load(folder / f"{i}.ckpt") if rank == 0 else {"model": {}, "optimizer": {}}
        set_model_state_dict(net, found["model"], options=options)
        set_optimizer_state_dict(net, optimizer, found["optimizer"], options=options)
        attachment = gw.attach(optimizer, *copy.deepcopy(spread.TRANSFORMS[name]), model=net)
        step(net, optimizer, AFTER)
        check(folder / f"{i}.pt", net, attachment)


def test_a_checkpoint_that_one_process_reads(tmp_path):
    for name, task in (("before", kept_whole), ("after", read_by_one)):
        (tmp_path / name).mkdir()
        spread.run(2, task, tmp_path, folder=tmp_path / name)


@pytest.mark.parametrize("make", [torch.optim.SGD, gw.optim.SGD, gw.optim.AdamW])
@pytest.mark.parametrize("name", ["autoscale", "autoclip", "zclip"])
def test_a_rehearsal_is_no_step(name, make, tmp_path):
    # torch steps with zeros to make an optimizer's state, also that of one which never has any.
    net = spread.model()
    optimizer = make(net.parameters(), lr=0.05)
    attachment = gw.attach(optimizer, *copy.deepcopy(spread.TRANSFORMS[name]), model=net)
    watch = gw.watch(optimizer, net, tmp_path / "run")
    before = get_optimizer_state_dict(net, optimizer)
    assert watch.step == -1
    assert watch.path is None
    assert attachment.moments is None
    step(net, optimizer, BEFORE)
    optimizer.zero_grad()
    state, moments = attachment.state_dict()["state"], attachment.moments
    after = get_optimizer_state_dict(net, optimizer)
    assert attachment.moments is moments
    torch.testing.assert_close(attachment.state_dict()["state"], state, rtol=0, atol=0)
    watch.close()
    assert gw.watch.load(watch.path).steps["step"].to_pylist() == list(range(BEFORE))
    assert entries(before) == entries(after) != set()


def entries(state):
    """Where a checkpoint has something of the transforms."""
    return {key for group in state["param_groups"] for key in group if key.startswith("gradwise:")}
