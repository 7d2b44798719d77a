"""`Histograms`: counts equal to numpy's on float64, for every type, scale, edge and oddity."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import gradwise as gw
from attach.counting import Calls
from gradwise.backends import pairs
from gradwise.watch.probes import Histograms
from gradwise.watch.store.runfile import check_edges
from reference.strategies import ALL, COMMON, gradients
from watch.probes.probe_helpers import ON_ROUTES, ROUTES, Elsewhere, Sharded, numbers, route

EDGES = Histograms().edges
SINGLE = st.floats(width=32)
# On the edges, a hair beside them, the least numbers there are, and both zeros.
SPECIAL = st.one_of(
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, *EDGES]),
    st.sampled_from([1e-45, -1e-45, 2.0**-126, -(2.0**-126), 3.4028234663852886e38, 1.0, -1.0]),
    st.builds(
        lambda edge, to: float(np.nextafter(np.float32(edge), np.float32(to))),
        st.sampled_from(EDGES),
        st.sampled_from([-math.inf, math.inf]),
    ),
)
# Loss scales: powers of two, others, and some under which edges leave the range of float32.
SCALES = st.one_of(
    st.none(),
    st.sampled_from([1.0, 1024.0, 2.0**16, 2.0**-10, 3.0, 0.1, 1e4 / 3, 65535.0]),
    st.sampled_from([1e-30, 2.0**-100, 2.0**120, 1e35, 5e-39]),
    st.floats(2.0**-10, 2.0**20, width=32),
)


def oracle(values: list[float], edges: tuple[float, ...], scale: float = 1.0) -> list[int]:
    """What numpy counts in float64, where a factor on powers of two is exact."""
    limits = np.array([-math.inf, *(edge * scale for edge in edges), math.inf])
    return np.histogram(np.array(values, dtype=np.float64), limits)[0].tolist()


def counts_of(
    grads: list[Tensor | None], scale: float | None = None, low: int = -40, high: int = 8
) -> list[list[int]]:
    probe = Histograms(low=low, high=high)
    found = probe.look(grads, None if scale is None else torch.tensor(scale))
    assert found.dtype == torch.int64
    assert found.shape == (len(grads), len(probe.edges) + 1)
    return found.tolist()


@COMMON
@given(st.lists(st.one_of(SINGLE, SPECIAL, SPECIAL), max_size=1200), SCALES, ON_ROUTES)
def test_float32_is_numpy(values: list[float], scale: float | None, name: str) -> None:
    grad = torch.tensor(values, dtype=torch.float32)
    with route(name):
        (got,) = counts_of([grad], scale)
    real = 1.0 if scale is None else torch.tensor(scale).item()  # as float32 holds it
    assert got == oracle(numbers(grad), EDGES, real)
    assert sum(got) == len(values) - sum(map(math.isnan, values))


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Under the last four some edges are no normal numbers of float32.
@pytest.mark.parametrize("scale", [2.0**15, 0.1, 0.7, 1e-30, 2.0**-100, 5e-39, 2.0**122])
def test_every_edge_and_its_neighbours(scale: float, dtype: torch.dtype, name: str) -> None:
    factor = torch.tensor(scale, dtype=dtype)
    at = (torch.tensor(EDGES, dtype=torch.float64) * factor.item()).float()
    below = torch.nextafter(at, torch.tensor(-math.inf))
    above = torch.nextafter(at, torch.tensor(math.inf))
    grads = list(torch.cat([below, at, above]).unbind())
    with route(name):
        got = Histograms().look(grads, factor).tolist()
    for grad, row in zip(grads, got, strict=True):
        assert row == oracle([grad.item()], EDGES, factor.item())


@COMMON
@given(
    st.lists(
        st.one_of(st.floats(), st.sampled_from(EDGES).map(lambda e: math.nextafter(e, 0.0))),
        max_size=60,
    ),
    st.sampled_from([None, 3.0]),
    ON_ROUTES,
)
def test_float64_keeps_its_digits(values: list[float], scale: float | None, name: str) -> None:
    with route(name):
        (got,) = counts_of([torch.tensor(values, dtype=torch.float64)], scale)
    assert got == oracle(values, EDGES, scale or 1.0)


@COMMON
@given(gradients(dtypes=(*ALL, torch.complex128), max_size=6), SCALES, ON_ROUTES)
def test_every_kind_of_gradient(grads: list[Tensor | None], scale: float | None, name: str) -> None:
    with route(name):
        got = counts_of(grads, scale)
    real = 1.0 if scale is None else torch.tensor(scale).item()
    for grad, row in zip(grads, got, strict=True):
        assert row == oracle([] if grad is None else numbers(grad), EDGES, real)


@COMMON
@given(
    st.integers(-126, 126),
    st.integers(0, 252),
    st.lists(st.one_of(SINGLE, SPECIAL), max_size=40),
    ON_ROUTES,
)
def test_any_range_of_edges(low: int, more: int, values: list[float], name: str) -> None:
    high = min(low + more, 126)
    edges = Histograms(low=low, high=high).edges
    assert check_edges(edges) == edges  # as a run folder wants them
    assert edges == tuple(sorted({s * 2.0**k for k in range(low, high + 1) for s in (-1, 1)}))
    with route(name):
        (got,) = counts_of([torch.tensor(values, dtype=torch.float32)], low=low, high=high)
    assert got == oracle([torch.tensor(v).item() for v in values], edges)


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("threads", [1, 2])
def test_large_tensors(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "CHUNK_ON_HOST", 100_003)  # several, the last of them shorter
    grads = [torch.randn(700_001), torch.randn(5), torch.randn(900, 801) ** 9, torch.zeros(70)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with route(name):
            got = counts_of(grads)
    finally:
        torch.set_num_threads(before)
    for grad, row in zip(grads, got, strict=True):
        assert row == oracle(grad.double().flatten().tolist(), EDGES)


@pytest.mark.parametrize("name", ROUTES)
def test_zeros_infinities_and_nan_by_hand(name: str) -> None:
    grad = torch.tensor([0.0, -0.0, 1e-40, math.nan, math.inf, -math.inf, 1e9, -1e9, 1.0, -1.0])
    with route(name):
        (row,) = counts_of([grad], low=-1, high=1)
    # ... -2 | -2 ... -1 | -1 ... -1/2 | middle | 1/2 ... 1 | 1 ... 2 | 2 ...
    assert row == [2, 0, 1, 3, 0, 1, 2]


@pytest.mark.parametrize("name", ROUTES)
def test_odd_gradients(name: str) -> None:
    twice = torch.sparse_coo_tensor([[1, 1, 3]], [2.0, 3.0, -1.0], (6,), check_invariants=False)
    rows = torch.ones(3).as_subclass(Sharded)
    grads = [None, torch.zeros(0), twice, rows, torch.ones(2, 3).t(), torch.tensor(4.0)]
    with route(name):
        got = counts_of(grads)
    assert got[0] == got[1] == got[3] == [0] * (len(EDGES) + 1)
    assert got[2] == oracle(twice.to_dense().tolist(), EDGES)
    assert got[4] == oracle([1.0] * 6, EDGES)
    assert got[5] == oracle([4.0], EDGES)
    with route(name):
        assert counts_of([]) == []
        assert counts_of([None, None]) == [[0] * (len(EDGES) + 1)] * 2


@pytest.mark.parametrize("name", ROUTES)
def test_several_devices(name: str) -> None:
    grads = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]).as_subclass(Elsewhere)]
    with route(name):
        got = counts_of(grads, 2.0)
    assert got == [oracle([1.0, 2.0], EDGES, 2.0), oracle([0.0, 4.0], EDGES, 2.0)]


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan])
def test_a_scale_that_is_none_fails_nothing(name: str, scale: float) -> None:
    with route(name):
        (row,) = counts_of([torch.ones(3)], scale)
    assert sum(row) == 3


def test_its_turn() -> None:
    probe = Histograms(every=3)
    looked = [probe.look([torch.ones(2)], None) is not None for _ in range(7)]
    assert looked == [True, False, False, True, False, False, True]


def test_gradients_keep_their_bits() -> None:
    grad = torch.randn(50)
    before = grad.clone()
    counts_of([grad], 3.0)
    assert torch.equal(grad, before)


def test_a_steady_sample_reads_nothing() -> None:
    grads = [torch.randn(40, 3), torch.randn(5).bfloat16(), None, torch.randn(2).double()]
    scale = torch.tensor(3.0)
    probe = Histograms(every=1)
    with route("foreach"):
        probe.look(grads, scale)
        for factor in (scale, None):
            with Calls() as calls:
                probe.look(grads, factor)
            assert calls.waits == []
            assert calls.names


def test_nothing_is_read_where_there_is_nothing_to_read() -> None:
    grads = [torch.empty(4, 3, device="meta"), None]
    for scale in (None, torch.empty((), device="meta")):
        found = Histograms(every=1).look(grads, scale)
        assert found.device.type == "meta"
        assert found.shape == (2, len(EDGES) + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device() -> None:
    grads = [torch.randn(400, 300) ** 7, torch.randn(50).bfloat16(), torch.zeros(7)]
    there, scale = [g.cuda() for g in grads], torch.tensor(3.0, device="cuda")
    probe = Histograms(every=1)
    probe.look(there, scale)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = probe.look(there, scale)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == counts_of(list(grads), 3.0)


def test_users_mistakes() -> None:
    with pytest.raises(gw.UserError, match=r"^expected every >= 1, got every=0$"):
        Histograms(0)
    with pytest.raises(gw.UserError, match=r"^expected -126 <= low <= high <= 126, got low=3 and"):
        Histograms(low=3, high=2)
    with pytest.raises(gw.UserError, match="high=127"):
        Histograms(high=127)
