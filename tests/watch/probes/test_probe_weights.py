"""`Weights`: norms of weights and updates in turns, against float64, whatever a step does."""

from __future__ import annotations

import copy
import math
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

import gradwise as gw
from attach.counting import Calls
from gradwise.watch.probes import Weights, module_of
from reference.strategies import ALL, COMMON, bits, gradients, laid_out, values
from watch.probes.probe_helpers import ON_ROUTES, ROUTES, Elsewhere, Sharded, dot, numbers, route

TYPES = (*ALL, torch.complex128)


def names_of(count: int) -> list[str]:
    return [f"layer{i}.weight" for i in range(count)]


def models(count: int = 20, width: int = 8) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


def probe_of(model: nn.Module, every: int) -> Weights:
    named = dict(model.named_parameters())
    return Weights(list(named.values()), list(named), every)


def nudge(params: list[Tensor], by: float = 0.5) -> None:
    with torch.no_grad():
        for param in params:
            param.add_(by)


def step_of(probe: Weights, params: list[Tensor], by: float = 0.5) -> dict[str, Tensor]:
    probe.before()
    nudge(params, by)
    return probe.after()


def measured(sums: dict[str, Tensor]) -> list[int]:
    assert torch.equal(sums["update_sumsq"].isnan(), sums["weight_sumsq"].isnan())
    return (~sums["update_sumsq"].isnan()).nonzero().flatten().tolist()


@COMMON
@given(gradients(dtypes=TYPES, absent=False), st.integers(0, 1000), ON_ROUTES)
def test_sums_are_those_of_float64(params: list[Tensor], seed: int, name: str) -> None:
    before = [numbers(p) for p in params]
    with route(name):
        probe = Weights(params, names_of(len(params)), every=1)
        probe.before()
        for i, p in enumerate(params):
            p += values(p.shape, p.dtype, seed + i, 0.1, 0.3, "normal")
        sums = probe.after()
    for i, p in enumerate(params):
        now = numbers(p)
        change = [a - b for a, b in zip(now, before[i], strict=True)]
        double = p.dtype in (torch.float64, torch.complex128)
        in_kernel = name == "native" and p.dtype == torch.float32 and p.is_contiguous()
        rel = 1e-12 if double or in_kernel else 1e-6
        got = sums["update_sumsq"][i].item(), sums["weight_sumsq"][i].item()
        assert got[0] == pytest.approx(dot(change, change), rel=rel, abs=1e-200)
        assert got[1] == pytest.approx(dot(now, now), rel=1e-12, abs=1e-200)


@COMMON
@given(gradients(dtypes=TYPES, absent=False), ON_ROUTES)
def test_measuring_changes_no_weight(params: list[Tensor], name: str) -> None:
    before = [bits(p) for p in params]
    with route(name):
        probe = Weights(params, names_of(len(params)), every=1)
        probe.before()
        sums = probe.after()
    assert [bits(p) for p in params] == before
    assert sums["update_sumsq"].tolist() == [0.0] * len(params)


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("threads", [1, 2])
def test_long_tensors_on_threads(name: str, threads: int) -> None:
    params = [torch.randn(900, 901), torch.randn(7), torch.randn(800_003), torch.randn(3, 3)]
    old = [p.clone() for p in params]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with route(name):
            sums = step_of(Weights(params, names_of(4), every=1), params, 1e-3)
    finally:
        torch.set_num_threads(before)
    for i, (p, o) in enumerate(zip(params, old, strict=True)):
        change = (p.double() - o.double()).square().sum().item()
        assert sums["update_sumsq"][i].item() == pytest.approx(change, rel=1e-6)
        assert sums["weight_sumsq"][i].item() == pytest.approx(p.double().square().sum().item())


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("every", [1, 3, 10, 50])
def test_everybody_has_one_turn_with_the_whole_module(name: str, every: int) -> None:
    model = models(20)
    params, names = zip(*((p, n) for n, p in model.named_parameters()), strict=True)
    with route(name):
        probe = probe_of(model, every)
        for _ in range(2):
            seen: list[int] = []
            for _ in range(every):
                sums = step_of(probe, list(params))
                if not sums:
                    assert every > 20  # more turns than modules: nobody's turn
                    continue
                here = measured(sums)
                modules = {names[i].rpartition(".")[0] for i in here}
                assert here == [i for i, n in enumerate(names) if n.rpartition(".")[0] in modules]
                for i in here:
                    assert sums["update_sumsq"][i].item() == pytest.approx(
                        0.25 * params[i].numel(), rel=1e-5
                    )
                seen += here
            assert sorted(seen) == list(range(len(params)))


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_turns_are_even_and_memory_is_bounded(sizes: list[int], every: int) -> None:
    params = [torch.zeros(n) for n in sizes]
    probe = Weights(params, names_of(len(params)), every)
    for _ in range(2 * every):
        step_of(probe, params)
    held = sum(memory.numel() for memory in probe._memory.values())
    padding = 16 * len(sizes)
    # A turn is filled while it has least, so it ends no fuller than the average and one more.
    assert held <= sum(sizes) / every + max(sizes) + padding


def test_copies_go_where_the_last_ones_were() -> None:
    model = models(20)
    probe = probe_of(model, 5)
    places = []
    for _ in range(15):
        step_of(probe, list(model.parameters()))
        places.append({m.data_ptr() for m in probe._memory.values()})
    assert all(place == places[4] for place in places[5:])


def test_module_names() -> None:
    assert module_of("a.b.weight") == "a.b"
    assert module_of("weight") == module_of("cls_token") == ""
    # Parameters without names must not all come at one step.
    assert module_of("3") == "3"
    assert module_of("group0.17") == "group0.17"


@pytest.mark.parametrize("name", ROUTES)
def test_a_real_optimizer(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model[0].to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    params = list(model.parameters())
    with route(name):
        probe = probe_of(model, 2)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(5, 3, 6, 6)).square().mean().backward()
            old = [p.detach().double().clone() for p in params]
            probe.before()
            optimizer.step()
            sums = probe.after()
            for i in measured(sums):
                change = (params[i].detach().double() - old[i]).square().sum().item()
                assert change > 0
                assert sums["update_sumsq"][i].item() == pytest.approx(change, rel=1e-4)


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_update_below_the_precision_is_none(name: str, dtype: torch.dtype) -> None:
    weight = torch.ones(50, dtype=dtype)
    gap = torch.finfo(dtype).eps
    with route(name):
        probe = Weights([weight], ["w"], every=1)
        assert step_of(probe, [weight], gap / 8)["update_sumsq"].item() == 0.0
        sums = step_of(probe, [weight], gap)
    assert sums["update_sumsq"].item() == pytest.approx(50 * gap**2, rel=1e-12)


class TestStepsThatAreNotSo:
    @pytest.mark.parametrize("name", ROUTES)
    def test_a_step_within_a_step(self, name: str) -> None:
        weight = torch.zeros(4)
        with route(name):
            probe = Weights([weight], ["w"], every=1)
            probe.before()
            nudge([weight], 100.0)
            inner = step_of(probe, [weight], 2.0)
            nudge([weight], 100.0)
            assert probe.after() == {}
            assert inner["update_sumsq"].item() == 16.0
            assert step_of(probe, [weight], 1.0)["update_sumsq"].item() == 4.0

    def test_a_step_that_never_finished(self) -> None:
        model = models(4)
        params = list(model.parameters())
        probe, plain = probe_of(model, 4), probe_of(model, 4)
        probe.before()
        nudge(params, 7.0)  # a checkpoint is loaded, say
        sums = step_of(probe, params)
        expected = step_of(plain, params)
        assert measured(sums) == measured(expected)  # its turn was not lost
        assert sums["update_sumsq"].nan_to_num().tolist() == pytest.approx(
            expected["update_sumsq"].nan_to_num().tolist(), rel=1e-5
        )

    def test_an_end_without_a_beginning(self) -> None:
        probe = Weights([torch.ones(2)], ["w"])
        assert probe.after() == {}


class TestOddParameters:
    @pytest.mark.parametrize("name", ROUTES)
    def test_none_and_empty_ones(self, name: str) -> None:
        with route(name):
            assert step_of(Weights([], [], every=1), []) == {}
            empty = [torch.zeros(0), torch.zeros(3, 0), torch.zeros(2)]
            sums = step_of(Weights(empty, names_of(3), every=1), empty, 1.0)
        assert sums["update_sumsq"].tolist() == pytest.approx([0.0, 0.0, 2.0])

    @pytest.mark.parametrize("name", ROUTES)
    def test_those_that_cannot_be_measured_are_nan(self, name: str) -> None:
        sparse = torch.eye(3).to_sparse()
        sharded = torch.ones(3).as_subclass(Sharded)
        lazy = nn.LazyLinear(2).weight
        whole = torch.arange(3)
        params = [sparse, torch.ones(5), sharded, lazy, whole]
        with route(name):
            probe = Weights(params, names_of(5), every=1)
            for _ in range(3):
                sums = step_of(probe, [params[1]], 1.0)
                assert measured(sums) == [1]
                assert sums["update_sumsq"][1].item() == pytest.approx(5.0)

    @pytest.mark.parametrize("name", ROUTES)
    def test_lazy_ones_are_measured_once_they_are_there(self, name: str) -> None:
        layer = nn.LazyLinear(2)
        with route(name):
            probe = Weights(list(layer.parameters()), ["weight", "bias"], every=1)
            assert step_of(probe, []) == {}
            layer(torch.ones(1, 3))
            sums = step_of(probe, list(layer.parameters()), 1.0)
            assert sums["update_sumsq"].tolist() == pytest.approx([6, 2], rel=1e-6)

    @pytest.mark.parametrize("name", ROUTES)
    def test_shapes_types_and_strides_that_change(self, name: str) -> None:
        weight, other = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(2))
        with route(name):
            probe = Weights([weight, other], ["a.weight", "b.weight"], every=1)
            for new in (torch.zeros(6), torch.zeros(40, 3), torch.zeros(3, dtype=torch.float64)):
                assert measured(step_of(probe, [weight, other], 1.0)) == [0, 1]
                probe.before()
                nudge([other], 2.0)
                weight.data = new.clone()
                sums = probe.after()
                assert measured(sums) == [1]
                assert sums["update_sumsq"][1].item() == pytest.approx(8.0)
                sums = step_of(probe, [weight, other], 1.0)
                assert sums["update_sumsq"].tolist() == pytest.approx([new.numel(), 2.0])
            turned = nn.Parameter(torch.arange(6.0).view(2, 3))
            probe = Weights([turned], ["w"], every=1)
            probe.before()
            turned.data = laid_out(turned.data, "permuted")
            assert measured(probe.after()) == []  # other order, nothing to compare with

    def test_memory_is_given_back_when_weights_shrink(self) -> None:
        weight = nn.Parameter(torch.zeros(10_000))
        probe = Weights([weight], ["w"], every=1)
        step_of(probe, [weight])
        weight.data = torch.zeros(10)
        step_of(probe, [weight])
        assert sum(m.numel() for m in probe._memory.values()) < 100

    @pytest.mark.parametrize("name", ROUTES)
    def test_several_devices_and_types(self, name: str) -> None:
        params = [
            torch.zeros(3),
            torch.zeros(4).as_subclass(Elsewhere),
            torch.zeros(2, dtype=torch.bfloat16),
            torch.zeros(5, dtype=torch.complex64),
            torch.zeros(9)[::2],
        ]
        with route(name):
            probe = Weights(params, names_of(5), every=1)
            for _ in range(2):
                sums = step_of(probe, params, 1.0)
        assert sums["update_sumsq"].tolist() == pytest.approx([3.0, 4.0, 2.0, 5.0, 5.0])
        assert sums["weight_sumsq"].tolist() == pytest.approx([12.0, 16.0, 8.0, 20.0, 20.0])

    def test_frozen_ones_stand_still(self) -> None:
        frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        sums = step_of(Weights([frozen], ["w"], every=1), [])
        assert (sums["update_sumsq"].item(), sums["weight_sumsq"].item()) == (0.0, 3.0)

    def test_no_graph_is_kept(self) -> None:
        weight = nn.Parameter(torch.ones(3))
        sums = step_of(Weights([weight], ["w"], every=1), [weight])
        assert not any(value.requires_grad for value in sums.values())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_shows(self, bad: float) -> None:
        weight = torch.zeros(20)
        sums = step_of(Weights([weight], ["w"], every=1), [weight[3:4]], bad)
        assert not sums["weight_sumsq"].isfinite().any()
        assert not sums["update_sumsq"].isfinite().any()


class TestCopies:
    def test_a_deep_copy_measures_the_copies(self) -> None:
        model = models(2)
        probe = probe_of(model, 2)
        step_of(probe, list(model.parameters()))
        probe.before()  # within a step
        twin_model, twin = copy.deepcopy((model, probe))
        assert twin.after() == {}
        sums = step_of(twin, list(twin_model.parameters()), 1.0)
        assert measured(sums) == [2, 3]  # the second turn, as the first has been
        assert sums["update_sumsq"][2:].tolist() == pytest.approx([64.0, 8.0], rel=1e-5)
        assert probe.after()["update_sumsq"][2:].tolist() == [0.0, 0.0]

    def test_a_pickle_holds_no_copies_of_weights(self) -> None:
        weight = torch.zeros(3)
        probe = Weights([weight], ["w"], every=1)
        probe.before()
        twin = pickle.loads(pickle.dumps(probe))
        assert not twin._memory
        assert step_of(twin, twin._params, 1.0)["update_sumsq"].item() == 3.0


class TestNoWaiting:
    def test_a_steady_step_reads_nothing(self) -> None:
        model = models(12).to(torch.float32)
        model[3].to(torch.bfloat16)
        params = list(model.parameters())
        with route("foreach"):
            probe = probe_of(model, 4)
            for step in range(12):
                with Calls() as calls:
                    probe.before()
                nudge(params)
                with calls:
                    probe.after()
                if step >= 4:  # each turn is planned once
                    assert calls.waits == []
                    assert calls.names

    def test_nothing_is_read_where_there_is_nothing_to_read(self) -> None:
        model = models(6).to("meta")
        probe = probe_of(model, 2)
        for _ in range(5):
            probe.before()
            sums = probe.after()
            assert {value.device.type for value in sums.values()} == {"meta"}
            assert {value.shape for value in sums.values()} == {(12,)}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_a_device(self) -> None:
        model = models(12).cuda()
        probe = probe_of(model, 4)
        for step in range(12):
            torch.cuda.set_sync_debug_mode("error" if step >= 4 else "default")
            try:
                sums = step_of(probe, list(model.parameters()))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for i in measured(sums):
                numel = list(model.parameters())[i].numel()
                assert sums["update_sumsq"][i].item() == pytest.approx(0.25 * numel, rel=1e-5)


def test_users_mistakes() -> None:
    with pytest.raises(gw.UserError, match=r"^expected every >= 1, got every=0$"):
        Weights([torch.ones(1)], ["w"], every=0)
    with pytest.raises(gw.UserError, match=r"^expected one name for each of the 1 parameters"):
        Weights([torch.ones(1)], ["w", "v"])
