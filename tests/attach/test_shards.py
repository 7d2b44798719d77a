"""Sharded parameters on several processes: what one process would have done."""

import contextlib
import copy
import sys

import pytest
import spread_models as spread
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard, distribute_tensor

import gradwise as gw
from gradwise.errors import UserError

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]


# --- every kind of placement, every transform ---


def equal_to_one(rank, world, kind):
    tolerance = 1e-2 if kind == "mixed precision" else 2e-6
    for name, transforms in spread.TRANSFORMS.items():
        if kind == "mixed precision" and name != "autoscale":
            continue
        expected = spread.model()
        reference, _ = spread.train(expected, transforms)
        net = spread.spread(kind, world, spread.model())
        attachment, _ = spread.train(net, transforms)
        spread.compare(attachment, net, reference, expected, tolerance)


@pytest.mark.parametrize(
    ("kind", "world"),
    [
        ("fsdp", 2),
        ("fsdp", 3),
        ("tensor parallel", 2),
        ("both", 4),
        ("hybrid", 4),
        ("mixed precision", 2),
        ("offload", 2),
    ],
)
def test_as_one_process(kind, world, tmp_path):
    spread.run(world, equal_to_one, kind, folder=tmp_path)


# --- what goes over the wire ---


def counted_calls(rank, world):
    calls = []
    plain = dist.all_reduce

    def counting(tensor, *rest, **named):
        calls.append(tuple(tensor.shape))
        return plain(tensor, *rest, **named)

    for kind, meshes in (("fsdp", 1), ("both", 2), ("hybrid", 1)):
        net = spread.spread(kind, world, spread.model())
        _, optimizer = spread.train(net, spread.TRANSFORMS["autoscale"], extremes=False)
        watched, other = spread.train(
            spread.spread(kind, world, spread.model()), spread.TRANSFORMS["agc"], extremes=True
        )
        dist.all_reduce = counting
        for one, expected in ((optimizer, meshes), (other, 2 * meshes)):
            calls.clear()
            one.step()
            assert len(calls) == expected, (kind, calls)
        dist.all_reduce = plain
        rows = watched.moments.layout.segments
        assert all(shape[0] <= rows + 1 and shape[1] <= 10 for shape in calls)


def test_one_small_all_reduce_a_mesh_and_step(tmp_path):
    spread.run(4, counted_calls, folder=tmp_path)


# --- steps that are not the same everywhere ---


def a_gradient_is_missing_on_one(rank, world):
    net = spread.spread("fsdp", world, spread.model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = gw.autoscale(optimizer, model=net)
    net(spread.inputs()).square().mean().backward()
    grads = {name: spread.full(p.grad) for name, p in net.named_parameters()}
    own = dict(net.named_parameters())["4.weight"].grad.to_local().clone()
    if rank == 0:
        dict(net.named_parameters())["4.weight"].grad = None
    optimizer.step()
    moments = attachment.moments
    at = moments.names.index("4.weight")
    missing = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(missing, torch.tensor([own.numel()]))
    assert moments.count[at] == grads["4.weight"].numel() - int(missing[0])
    sigmas = [torch.zeros((), dtype=torch.float64) for _ in range(world)]
    dist.all_gather(sigmas, attachment.state["0.Autoscale[trend].sigma"])
    assert len(set(map(float, sigmas))) == 1
    optimizer.zero_grad()
    if rank == 0:  # and on one of them nothing at all
        net(spread.inputs()).square().mean().backward()
        for param in net.parameters():
            param.grad = None
    else:
        net(spread.inputs()).square().mean().backward()
    optimizer.step()
    assert int(attachment.moments.count.sum()) > 0
    assert attachment.skipped == 0


def a_value_is_not_finite_on_one(rank, world):
    net = spread.spread("fsdp", world, spread.model())
    attachment, optimizer = spread.train(net, spread.TRANSFORMS["autoscale"], steps=1)
    state = copy.deepcopy(attachment.state)
    grads = [p.grad.to_local().clone() for p in net.parameters()]
    if rank == 1:
        net[0].weight.grad.to_local()[0, 0] = float("nan")
    optimizer.step()
    assert attachment.skipped == 1
    for key, value in attachment.state.items():
        assert value.equal(state[key]), key
    same = [p.grad.to_local().equal(g) for p, g in zip(net.parameters(), grads, strict=True)]
    assert same.count(False) == (rank == 1)  # the NaN itself


@pytest.mark.parametrize("task", [a_gradient_is_missing_on_one, a_value_is_not_finite_on_one])
def test_steps_that_are_not_the_same_everywhere(task, tmp_path):
    spread.run(2, task, folder=tmp_path)


# --- parameters that are on some processes only ---


class Stages:
    """A model whose layers are on different processes, without the passing on of activations."""

    def __init__(self, rank):
        whole = spread.model()
        self.whole = whole
        parts = [whole[0], whole[2]], [whole[3], whole[4], whole[5]]
        self.mine = nn.ModuleList(copy.deepcopy(nn.ModuleList(parts[rank])))
        self.theirs = [p for part in parts for layer in part for p in layer.parameters()]
        self.places = [p for layer in parts[rank] for p in layer.parameters()]

    def step(self, whole_optimizer, optimizer):
        whole_optimizer.zero_grad()
        self.whole(spread.inputs()).square().mean().backward()
        for mine, known in zip(self.mine.parameters(), self.places, strict=True):
            mine.grad = known.grad.clone()
        optimizer.step()
        whole_optimizer.step()


def stages(rank, world):
    for name, transforms in spread.TRANSFORMS.items():
        here = Stages(rank)
        whole = torch.optim.SGD(here.whole.parameters(), lr=0.05)
        reference = gw.attach(whole, *copy.deepcopy(transforms), model=here.whole)
        optimizer = torch.optim.SGD(here.mine.parameters(), lr=0.05)
        attachment = gw.attach(
            optimizer,
            *copy.deepcopy(transforms),
            model=here.mine,
            process_group=dist.group.WORLD,
        )
        for one in (reference, attachment):
            one.extremes = True
        for _ in range(3):
            here.step(whole, optimizer)
        for mine, known in zip(here.mine.parameters(), here.places, strict=True):
            torch.testing.assert_close(mine, known, msg=name)
        torch.testing.assert_close(attachment.moments.norm, reference.moments.norm)
        torch.testing.assert_close(attachment.moments.max, reference.moments.max)
        assert attachment.moments.names[0] == "rank0.0.weight"  # both stages have such a name
        assert "2.weight" in attachment.moments.names  # and one of them this


def experts(rank, world):
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    torch.manual_seed(1 + rank)
    net = nn.ModuleDict({"shared": shared, "expert": nn.Linear(4, 3)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = gw.attach(
        optimizer,
        gw.transforms.ClipNorm(1.0),
        model=net,
        process_group=dist.group.WORLD,
        replicated=lambda name: name.startswith("shared"),
    )
    for param in net["shared"].parameters():
        param.grad = torch.ones_like(param)
    for param in net["expert"].parameters():
        param.grad = torch.full_like(param, rank + 1.0)
    optimizer.step()
    # 20 ones, once; 15 ones here and 15 twos there.
    total = (20 + 15 * sum((r + 1) ** 2 for r in range(world))) ** 0.5
    assert float(attachment.moments.total_norm) == pytest.approx(total)
    assert float(net["expert"].weight.grad[0, 0]) == pytest.approx((rank + 1) / total, rel=1e-5)
    assert attachment.moments.names == (
        "shared.weight",
        "shared.bias",
        *[f"rank{r}.expert.{kind}" for r in range(world) for kind in ("weight", "bias")],
    )


def shards_and_stages(rank, world):
    """Two stages, each sharded over two processes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    stage = rank // 2
    torch.manual_seed(stage)
    net = nn.Linear(5, 3)
    grads = [torch.randn(3, 5), torch.randn(3)]
    net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh["data"], [Shard(0)]))
    net.bias = nn.Parameter(distribute_tensor(net.bias.detach(), mesh["data"], [Shard(0)]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = gw.attach(
        optimizer, gw.transforms.Autoscale(), process_group=mesh["stage"].get_group()
    )
    for param, grad in zip(net.parameters(), grads, strict=True):
        param.grad = distribute_tensor(grad, mesh["data"], [Shard(0)])
    optimizer.step()
    torch.manual_seed(1 - stage)
    nn.Linear(5, 3)
    other = torch.randn(3, 5)
    centred = [g - g.mean() for g in (grads[0], other)]
    sigma = torch.cat([c.flatten() for c in centred]).double().std(correction=0)
    found = attachment.state["0.Autoscale[trend].sigma"]
    torch.testing.assert_close(found, sigma, rtol=1e-6, atol=0)
    assert len(attachment.moments.names) == 4


@pytest.mark.parametrize(("task", "world"), [(stages, 2), (experts, 3), (shards_and_stages, 4)])
def test_parameters_that_are_on_some_processes_only(task, world, tmp_path):
    spread.run(world, task, folder=tmp_path)


# --- what cannot be ---


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    if dist.is_initialized():
        dist.destroy_process_group()


def sharded(mesh, *placements):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    weight = distribute_tensor(net[1].weight.detach(), mesh, placements or [Shard(0)])
    net[1].weight = nn.Parameter(weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = gw.autoscale(optimizer, model=net)
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    return net, optimizer, attachment


def test_a_gradient_that_is_placed_otherwise(mesh):
    net, optimizer, attachment = sharded(mesh)
    right = net[1].weight.grad
    net[1].weight.__dict__["_grad"] = None
    for wrong, told in (
        (distribute_tensor(torch.ones(2, 4), mesh, [Shard(1)]), r"'1\.weight' to be placed as"),
    ):
        net[1].weight.grad = wrong
        with pytest.raises(UserError, match=told):
            optimizer.step()
    assert attachment.moments is None
    net[1].weight.grad = right
    optimizer.step()
    assert attachment.moments.names == ("0.weight", "0.bias", "1.weight", "1.bias")


def test_partial_sums_are_no_parts(mesh):
    from torch.distributed.tensor import DTensor

    _, optimizer, _ = sharded(mesh)
    param = nn.Parameter(DTensor.from_local(torch.ones(2, 4), mesh, [Partial()]))
    optimizer.param_groups[0]["params"][2] = param
    param.grad = None
    with pytest.raises(UserError, match=r"has the placement .*: expected Shard or Replicate"):
        optimizer.step()


def test_rows_that_are_dealt_out_in_turns(mesh):
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import _StridedShard

    _, optimizer, _ = sharded(mesh)
    placed = DTensor.from_local(torch.ones(4, 4), mesh, [_StridedShard(0, split_factor=2)])
    optimizer.param_groups[0]["params"][2] = nn.Parameter(placed)
    with pytest.raises(UserError, match=r"^parameter '\S+' has the placement .* rows out in turns"):
        optimizer.step()


def test_a_gradient_on_another_mesh(mesh):
    net, optimizer, attachment = sharded(mesh)
    other = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))["tensor"]
    net[1].weight.__dict__["_grad"] = None
    with contextlib.suppress(RuntimeError):  # where torch itself refuses
        net[1].weight.grad = distribute_tensor(torch.ones(2, 4), other, [Shard(0)])
        with pytest.raises(UserError, match=r"^expected gradient '1\.weight' to be placed as its"):
            optimizer.step()
        assert attachment.moments is None


def unresolved(*arguments):
    raise RuntimeError("Could not resolve the process group registered under the name 7")


@pytest.mark.parametrize("case", ["one dimension", "two dimensions", "another world since"])
def test_a_group_that_is_gone_before_the_first_step(case, mesh, monkeypatch):
    on = init_device_mesh("cpu", (1, 1)) if case == "two dimensions" else mesh
    net = nn.Linear(2, 4, bias=False)
    weight = distribute_tensor(net.weight.detach(), on, [Shard(0)] * on.ndim)
    net.weight = nn.Parameter(weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    gw.autoscale(optimizer, model=net)
    net.weight.grad = torch.ones_like(net.weight)
    if case == "another world since":  # whose groups have other names
        monkeypatch.setattr(sys.modules["gradwise.attach.placement"], "_group", unresolved)
    else:
        dist.destroy_process_group()
    with pytest.raises(
        UserError, match=r"^the processes that hold 'weight' cannot be reached: the process group"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ("data", r"^expected process_group to be a torch\.distributed process group, .* got str$"),
        ("mesh", r"process group, such as mesh\.get_group\(\) gives, got DeviceMesh$"),
        ("other", r"^expected process_group to have this process in it, got one without rank 0: "),
        ("gone", r"^expected process_group of processes that can be reached, got one before "),
    ],
)
def test_what_is_no_group_of_this_process(group, told, mesh):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    given = {"data": "data", "mesh": mesh, "other": dist.GroupMember.NON_GROUP_MEMBER}
    given["gone"] = dist.group.WORLD
    if group == "gone":
        dist.destroy_process_group()
    with pytest.raises(UserError, match=told):
        gw.attach(optimizer, gw.transforms.Autoscale(), process_group=given[group])
    assert not optimizer._optimizer_step_pre_hooks


def test_steps_within_backward_are_refused_for_shards(mesh):
    net, optimizer, _ = sharded(mesh)
    with pytest.raises(UserError, match=r"^expected parameters that are whole .* within backward"):
        gw.attach_in_backward([optimizer], gw.transforms.Autoscale(), lagged=True)
    plain = torch.optim.SGD(nn.Linear(4, 4).parameters(), lr=0.1)
    gw.attach_in_backward([plain], gw.transforms.Autoscale(), lagged=True)
    plain.param_groups[0]["params"][:] = net[1].parameters()  # sharded later
    with pytest.raises(UserError, match=r"^expected parameters that are whole .* within backward"):
        plain.step()


def test_fsdp_steps_within_backward(mesh):
    # FSDP2 calls the hooks from a backward function of its own.
    net = fully_shard(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), mesh=mesh)
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}
    for param, optimizer in optimizers.items():
        gw.autoscale(optimizer)
        param.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    with pytest.raises(UserError, match=r"needs all gradients, but this optimizer steps within"):
        net(torch.ones(3, 4)).square().mean().backward()


def the_group_is_gone(rank, world):
    net = spread.spread("fsdp", world, spread.model())
    _, optimizer = spread.train(net, spread.TRANSFORMS["autoscale"], steps=1)
    dist.destroy_process_group()
    with pytest.raises(UserError, match=r"that hold '0\.weight' cannot be reached"):
        optimizer.step()


def test_a_process_group_that_is_gone(tmp_path):
    spread.run(2, the_group_is_gone, folder=tmp_path)


def test_detached_it_is_torchs_again(mesh):
    net, optimizer, attachment = sharded(mesh)
    attachment.detach()
    optimizer.step()
    assert (net[1].weight.grad.to_local() == 1).all()
