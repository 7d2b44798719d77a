"""`Directions`: cosine and sign agreement with the sample before, against float64."""

from __future__ import annotations

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

import gradwise as gw
from attach.counting import Calls
from gradwise.backends import pairs
from gradwise.watch.probes import Directions
from reference.strategies import ALL, COMMON, bits, gradients, values
from watch.probes.probe_helpers import ON_ROUTES, ROUTES, Elsewhere, Sharded, dot, numbers, route

KEYS = ("direction_dot", "direction_now", "direction_before", "direction_agree")


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def oracle(now: list[float], before: list[float]) -> tuple[float, float, float, float]:
    pairs_ = list(zip(now, before, strict=True))
    agree = sum(sign(a) == sign(b) for a, b in pairs_ if not math.isnan(a + b))
    return dot(now, before), dot(now, now), dot(before, before), agree


def one(sums: dict[str, Tensor], i: int) -> tuple[float, ...]:
    assert tuple(sums) == KEYS
    return tuple(sums[key][i].item() for key in KEYS)


def assert_sums(sums: dict[str, Tensor], i: int, now: list[float], before: list[float]) -> None:
    want = oracle(now, before)
    slack = 1e-14 * math.sqrt(want[1] * want[2])  # of a dot product whose terms cancel
    got = one(sums, i)
    assert got[0] == pytest.approx(want[0], rel=1e-13, abs=slack + 1e-200)
    assert got[1:3] == pytest.approx(want[1:3], rel=1e-12, abs=1e-200)
    assert got[3] == want[3]


def signs(like: Tensor, seed: int) -> Tensor:
    """Zeros of both signs and numbers of both signs, some of them as small as there are."""
    real = torch.view_as_real(like) if like.is_complex() else like
    tiny = torch.finfo(like.dtype).tiny
    kinds = torch.tensor([0.0, -0.0, 1.0, -2.0, tiny, -tiny], dtype=real.dtype)
    drawn = torch.randint(6, real.shape, generator=torch.Generator().manual_seed(seed))
    chosen = kinds[drawn]
    return torch.view_as_complex(chosen) if like.is_complex() else chosen


@COMMON
@given(gradients(dtypes=(*ALL, torch.complex128), absent=False), st.integers(0, 1000), ON_ROUTES)
def test_sums_are_those_of_float64(grads: list[Tensor], seed: int, name: str) -> None:
    with route(name):
        probe = Directions(every=1)
        assert probe.look(grads) == {}
        for turn in range(3):
            before = [numbers(g) for g in grads]
            for i, g in enumerate(grads):  # in place, as torch adds up gradients
                if turn == 1:
                    g.copy_(signs(g, seed + i))
                else:
                    g += values(g.shape, g.dtype, seed + 7 * turn + i, 1.0, 0.0, "normal")
            kept = [bits(g) for g in grads]
            sums = probe.look(grads)
            assert [bits(g) for g in grads] == kept
            for i, g in enumerate(grads):
                assert_sums(sums, i, numbers(g), before[i])


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("threads", [1, 2])
def test_long_tensors(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "CHUNK_ON_HOST", 100_003)
    first = [torch.randn(800_001), torch.randn(3), torch.randn(700, 900)]
    second = [torch.randn_like(g) + 0.3 * g for g in first]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with route(name):
            probe = Directions(every=1)
            probe.look(first)
            sums = probe.look(second)
    finally:
        torch.set_num_threads(before)
    for i, (x, y) in enumerate(zip(second, first, strict=True)):
        x, y = x.double().flatten(), y.double().flatten()
        want = [(x @ y).item(), (x @ x).item(), (y @ y).item(), (x.sign() == y.sign()).sum().item()]
        assert list(one(sums, i)) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("name", ROUTES)
def test_cosine_and_agreement_by_hand(name: str) -> None:
    with route(name):
        probe = Directions(every=1)
        probe.look([torch.tensor([3.0, 4.0]), torch.tensor([1.0, -1.0, 0.0, -0.0])])
        sums = probe.look([torch.tensor([-30.0, -40.0]), torch.tensor([2.0, 2.0, -0.0, 5.0])])
    cosine = sums["direction_dot"] / (sums["direction_now"] * sums["direction_before"]).sqrt()
    assert cosine[0].item() == pytest.approx(-1.0)
    assert sums["direction_agree"].tolist() == [0.0, 2.0]
    whole = sums["direction_dot"].sum()  # parameters of a module are added up
    assert whole.item() == -250.0


@pytest.mark.parametrize("name", ROUTES)
def test_one_scale_for_all_cancels_out(name: str) -> None:
    first, second = torch.randn(100), torch.randn(100)
    with route(name):
        cosines = []
        for scale in (1.0, 1024.0):
            probe = Directions(every=1)
            probe.look([first])
            s = probe.look([second * scale])
            cosines.append(
                (s["direction_dot"] / (s["direction_now"] * s["direction_before"]).sqrt()).item()
            )
    assert cosines[0] == pytest.approx(cosines[1], rel=1e-12)


def test_its_turn_and_what_it_compares_with() -> None:
    probe = Directions(every=3)
    found = [probe.look([torch.tensor([float(step + 1)])]) for step in range(8)]
    assert [bool(f) for f in found] == [False, False, False, True, False, False, True, False]
    assert one(found[3], 0) == (4.0, 16.0, 1.0, 1.0)
    assert one(found[6], 0) == (28.0, 49.0, 16.0, 1.0)


@pytest.mark.parametrize("name", ROUTES)
def test_gradients_that_come_and_go(name: str) -> None:
    two, five = torch.full((2,), 2.0), torch.full((3,), 5.0)
    steps = [[two, None], [two, five], [None, five], [two, five], [two, five], [None, None]]
    measured = []
    with route(name):
        probe = Directions(every=1)
        for grads in [*steps, *steps]:
            sums = probe.look([None if g is None else g.clone() for g in grads])
            here = [not math.isnan(one(sums, i)[0]) for i in range(2)] if sums else []
            measured.append([i for i, there in enumerate(here) if there])
            for i in measured[-1]:
                assert_sums(sums, i, numbers(grads[i]), numbers(grads[i]))
    assert measured == [[], [0], [1], [1], [0, 1], []] * 2
    assert all(kept is None for kept in probe._kept)  # what has gone takes no memory


@pytest.mark.parametrize("name", ROUTES)
def test_types_shapes_and_strides_that_change(name: str) -> None:
    with route(name):
        probe = Directions(every=1)
        for grad in (
            torch.ones(4),
            torch.ones(4, dtype=torch.bfloat16),
            torch.ones(4, dtype=torch.float64),
            torch.ones(2, 2),
            torch.ones(6),
            torch.arange(6.0).view(2, 3),
            torch.arange(6.0).view(3, 2).t(),
        ):
            steady = torch.ones(3)
            changed = probe.look([grad, steady])
            if changed:
                assert math.isnan(one(changed, 0)[3])
                assert one(changed, 1) == (3.0, 3.0, 3.0, 3.0)
            sums = probe.look([2 * grad, steady])
            assert_sums(sums, 0, numbers(2 * grad), numbers(grad))
        assert probe.look([torch.ones(3)]) == {}  # another number of parameters: begin anew
        assert one(probe.look([torch.ones(3)]), 0) == (3.0, 3.0, 3.0, 3.0)


@pytest.mark.parametrize("name", ROUTES)
def test_odd_gradients(name: str) -> None:
    grads = [
        torch.eye(3).to_sparse(),
        torch.ones(3).as_subclass(Sharded),
        torch.zeros(0, 4),
        torch.ones(2).as_subclass(Elsewhere),
        torch.ones(8)[::2],
        torch.ones(3, dtype=torch.complex64) * 1j,
    ]
    with route(name):
        probe = Directions(every=1)
        probe.look(grads)
        sums = probe.look(grads)
        assert probe.look([]) == {}
        assert probe.look([None, grads[0]]) == probe.look([None, grads[0]]) == {}
    assert [math.isnan(one(sums, i)[0]) for i in range(6)] == [True, True, *[False] * 4]
    assert one(sums, 2) == (0.0, 0.0, 0.0, 0.0)
    assert one(sums, 3) == (2.0, 2.0, 2.0, 2.0)
    assert one(sums, 4) == (4.0, 4.0, 4.0, 4.0)
    assert one(sums, 5) == (3.0, 3.0, 3.0, 6.0)


@pytest.mark.parametrize("name", ROUTES)
def test_what_is_not_finite(name: str) -> None:
    bad = torch.tensor([1.0, math.nan, math.inf, 0.0] * 10)
    with route(name):
        probe = Directions(every=1)
        probe.look([torch.ones(40)])
        now = one(probe.look([bad]), 0)
        after = one(probe.look([torch.ones(40)]), 0)
        again = one(probe.look([torch.ones(40)]), 0)
    assert not math.isfinite(now[0])
    assert not math.isfinite(now[1])
    assert now[2:] == (40.0, 20.0)  # a NaN agrees with nothing, a zero with zeros
    assert not math.isfinite(after[0])
    assert again == (40.0, 40.0, 40.0, 40.0)


def test_memory_is_one_set_of_gradients() -> None:
    grads = [torch.randn(30, 40), torch.randn(7).bfloat16(), None]
    probe = Directions(every=2)
    places = []
    for _ in range(9):
        probe.look([None if g is None else g.clone() for g in grads])
        kept = [k for k in probe._kept if k is not None]
        assert sum(k.nbytes for k in kept) == sum(g.nbytes for g in grads if g is not None)
        places.append([k.data_ptr() for k in kept])
    assert all(place == places[0] for place in places)


def test_a_deep_copy_goes_its_own_way() -> None:
    probe = Directions(every=1)
    probe.look([torch.ones(2)])
    twin = copy.deepcopy(probe)
    assert one(twin.look([torch.full((2,), 5.0)]), 0) == (10.0, 50.0, 2.0, 2.0)
    assert one(probe.look([torch.ones(2)]), 0) == (2.0, 2.0, 2.0, 2.0)


def test_a_steady_sample_reads_nothing() -> None:
    grads = [torch.randn(40, 3), torch.randn(5).bfloat16(), None, torch.randn(2).double()]
    probe = Directions(every=1)
    with route("foreach"):
        probe.look(grads)
        probe.look(grads)
        with Calls() as calls:
            sums = probe.look(grads)
    assert calls.waits == []
    assert sums["direction_dot"].isnan().tolist() == [False, False, True, False]


def test_nothing_is_read_where_there_is_nothing_to_read() -> None:
    grads = [torch.empty(4, 3, device="meta"), None]
    probe = Directions(every=1)
    probe.look(grads)
    sums = probe.look(grads)
    assert {value.device.type for value in sums.values()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device() -> None:
    first, second = torch.randn(300, 40), torch.randn(300, 40)
    probe = Directions(every=1)
    probe.look([first.cuda(), None])
    probe.look([first.cuda(), None])
    there = second.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = probe.look([there, None])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_sums(sums, 0, numbers(second), numbers(first))


def test_users_mistakes() -> None:
    with pytest.raises(gw.UserError, match=r"^expected every >= 1, got every=-2$"):
        Directions(-2)
