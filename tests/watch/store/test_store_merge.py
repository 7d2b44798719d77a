"""Few files, in order, of bounded size, however long the run and however it is flushed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.watch.store import load, parts
from gradwise.watch.store.grid import Grid, TableSpec, layer_groups, write_grid
from gradwise.watch.store.merge import FAN_IN, LEFT, cap_of, merge, plan, tail
from gradwise.watch.store.parts import Part, part_name, resolve
from gradwise.watch.store.pyramid import extend, level_spec
from gradwise.watch.store.reading import PartReader
from gradwise.watch.store.shelf import Shelf

from .conftest import Maker, layer_values


class FakeShelf(Shelf):
    """A shelf whose parts exist in name only."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.spec = TableSpec("steps", ("step",), None)
        self.parts, self._steps, first = [], {}, 0  # no folder, nothing to tidy
        for tier, size in sizes:
            part = Part(
                Path(part_name(first, first + size - 1, tier)), first, first + size - 1, tier
            )
            self.parts.append(part)
            self._steps[part] = size
            first += size

    def replace(self, merged: list[Part]) -> None:
        at = self.parts.index(merged[0])
        assert self.parts[at : at + len(merged)] == merged
        first, last = merged[0].first, merged[-1].last
        tier = merged[0].tier + 1
        part = Part(Path(part_name(first, last, tier)), first, last, tier)
        self._steps[part] = sum(self._steps[old] for old in merged)
        self.parts[at : at + len(merged)] = [part]


@given(sizes=st.lists(st.integers(1, 40), max_size=200), cap=st.integers(10, 500))
def test_merging_as_one_goes_keeps_files_few(sizes: list[int], cap: int) -> None:
    shelf = FakeShelf([])
    at = 0
    for size in sizes:
        part = Part(Path(part_name(at, at + size - 1, 0)), at, at + size - 1, 0)
        shelf.parts.append(part)
        shelf._steps[part] = size
        at += size
        while found := plan(shelf, cap):
            assert len(found) <= FAN_IN
            assert len({one.tier for one in found}) == 1
            assert sum(shelf.steps(one) for one in found) <= cap
            shelf.replace(found)
        tiers = [one.tier for one in shelf.parts]
        full = [one for one in shelf.parts if shelf.steps(one) * 2 > cap]
        few = FAN_IN + LEFT + 1
        assert len(shelf.parts) <= 2 * len(full) + few * (max(tiers, default=0) + 1) + 1
    assert sum(shelf.steps(one) for one in shelf.parts) == sum(sizes)


def test_a_busy_tier_is_left_alone() -> None:
    shelf = FakeShelf([(1, 8)] * 12 + [(0, 1)] * 12)
    assert [part.first for part in plan(shelf, 1000)] == list(range(96, 104))
    assert [part.first for part in plan(shelf, 1000, frozenset({0}))] == list(range(0, 64, 8))
    assert plan(shelf, 1000, frozenset({0, 1})) == []


def test_the_newest_of_each_tier_are_left() -> None:
    assert plan(FakeShelf([(1, 8)] * 11 + [(0, 1)] * 11), 1000) == []
    left = FakeShelf([(0, 1)] * 3 + [(1, 8)] * 2 + [(0, 1)] * 12)
    assert [part.first for part in plan(left, 1000)] == list(range(19, 27))


@given(flushes=st.integers(50, 1500), newest=st.integers(1, 300))
def test_reading_the_newest_records_costs_what_they_are(flushes: int, newest: int) -> None:
    """However many there are in all: merging leaves small parts behind every large one."""
    shelf = FakeShelf([])
    for at in range(flushes):
        part = Part(Path(part_name(at, at, 0)), at, at, 0)
        shelf.parts.append(part)
        shelf._steps[part] = 1
        while found := plan(shelf, 10**6):
            shelf.replace(found)
    touched = [part for part in shelf.parts if part.last >= flushes - newest]
    assert sum(shelf.steps(part) for part in touched) <= 3 * newest + FAN_IN


def test_what_is_full_is_not_written_again() -> None:
    assert plan(FakeShelf([(3, 60)] * 20), 100) == []
    shelf = FakeShelf([(3, 90), (3, 50), (3, 50), (3, 50), *[(3, 60)] * LEFT])
    assert [part.first for part in plan(shelf, 100)] == [90, 140]


def test_the_tail_is_what_can_be_merged_at_once() -> None:
    shelf = FakeShelf([(2, 70), (1, 20), (0, 5), (0, 5)])
    assert [part.first for part in tail(shelf, 90)] == [70, 90, 95]
    assert [part.first for part in tail(shelf, 100)] == [0, 70, 90, 95]
    assert tail(FakeShelf([(2, 70), (1, 20)]), 80) == []
    assert tail(FakeShelf([]), 80) == []


def test_caps_follow_the_number_of_layers() -> None:
    assert cap_of(TableSpec("steps", ("step",), None)) == 65_536
    assert cap_of(TableSpec("layers", ("step",), ("x",) * 100_000)) == 335
    assert cap_of(TableSpec("layers", ("step",), ("x",)), keep_steps=1000) == 250
    assert cap_of(TableSpec("layers", ("step",), ("x",)), keep_steps=0) == 64


@given(
    ranges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(0, 3))),
    bad=st.sets(st.integers(0, 20)),
)
def test_resolving_leaves_no_step_twice(ranges: list[tuple[int, int, int]], bad: set[int]) -> None:
    """Nothing kept spans anything else kept, and all that is whole is kept or spanned."""
    listed = [
        Part(Path(part_name(first, first + length, tier)), first, first + length, tier)
        for first, length, tier in dict.fromkeys(ranges)
    ]
    broken = {part for i, part in enumerate(listed) if i in bad}
    kept, replaced, damaged = resolve(listed, lambda part: part not in broken)
    assert sorted(map(id, listed)) == sorted(map(id, [*kept, *replaced, *damaged]))
    assert set(damaged) <= broken
    assert not set(kept) & broken
    for one in kept:
        assert not any(
            other.first <= one.first and one.last <= other.last for other in kept if other != one
        )
    for one in replaced:
        assert any(other.first <= one.first and one.last <= other.last for other in kept)


def test_a_listing_that_races_with_a_merge_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [Part(Path(part_name(i, i, 0)), i, i, 0) for i in range(2)]
    merged = Part(Path(part_name(0, 1, 1)), 0, 1, 1)
    answers = iter([small[:1], [], [merged], [merged], small])
    monkeypatch.setattr(parts, "_scan", lambda folder: next(answers))
    assert parts.list_parts(Path()) == [merged]


@given(steps=st.integers(1, 200_000), width=st.integers(1, 3000), columns=st.integers(0, 60))
def test_row_groups_hold_whole_layers(steps: int, width: int, columns: int) -> None:
    groups = list(layer_groups(steps, width, columns))
    assert [start for start, _ in groups] == [0, *(stop for _, stop in groups[:-1])]
    assert groups[-1][1] == width
    sizes = {stop - start for start, stop in groups[:-1]}
    assert len(sizes) <= 1
    largest = max(stop - start for start, stop in groups)
    assert largest == 1 or largest * steps * max(columns, 1) <= 2**19


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (2, 3), (3, 7), (6, 7), (4, 4)])
def test_any_layers_of_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stop: int
) -> None:
    monkeypatch.setattr("gradwise.watch.store.grid.GROUP_ROWS", 12)
    spec = TableSpec("layers", ("step",), tuple("abcdefg"))
    steps = np.array([3, 4, 9, 11, 12])
    values = np.arange(35, dtype=np.float32).reshape(7, 5)
    part = write_grid(tmp_path, spec, Grid({"step": steps}, {"norm": values}))
    reader = PartReader(part, spec)
    assert reader.group == 2
    np.testing.assert_array_equal(reader.keys["step"], steps)
    found = reader.read(["norm", "none"], start, stop)
    if stop > start:
        assert list(found) == ["norm"]
        np.testing.assert_array_equal(found["norm"], values[start:stop])
    else:
        assert found == {}


def test_merging_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts whose row groups are cut differently, and with different columns."""
    monkeypatch.setattr("gradwise.watch.store.grid.GROUP_ROWS", 20)
    spec = TableSpec("layers", ("step",), tuple("abcdefg"))
    for first, last, name in ((0, 2, "norm"), (3, 3, "std"), (4, 12, "norm")):
        steps = np.arange(first, last + 1)
        write_grid(
            tmp_path, spec, Grid({"step": steps}, {name: layer_values(steps, 0, 7).T.copy()})
        )
    shelf = Shelf(tmp_path, spec)
    pauses = sum(1 for _ in merge(shelf, shelf.parts, 1))
    assert pauses == 7
    (part,) = shelf.parts
    assert part.name == "000000000000-000000000012.t1.parquet"
    assert [path.name for path in shelf.folder.iterdir()] == [part.name]
    reader = PartReader(part, spec)
    steps = np.arange(13)
    np.testing.assert_array_equal(reader.keys["step"], steps)
    found = reader.read(["norm", "std"], 0, 7)
    expected = layer_values(steps, 0, 7).T
    has_std = steps == 3
    np.testing.assert_array_equal(found["norm"], np.where(has_std, np.nan, expected))
    np.testing.assert_array_equal(found["std"], np.where(has_std, expected, np.nan))


@pytest.mark.parametrize("job", ["extend", "merge"])
def test_a_paused_job_outlives_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """While a level is being built, or parts merged, the parts may go away beneath it."""
    monkeypatch.setattr("gradwise.watch.store.grid.GROUP_ROWS", 1)
    monkeypatch.setattr("gradwise.watch.store.pyramid._BLOCK_VALUES", 1)
    spec = TableSpec("layers", ("step",), tuple("abc"))
    steps = np.arange(64)
    values = layer_values(steps, 0, 3).T.copy()
    for at in range(0, 64, 16):
        part = slice(at, at + 16)
        write_grid(tmp_path, spec, Grid({"step": steps[part]}, {"norm": values[:, part].copy()}))
    shelf, level = Shelf(tmp_path, spec), Shelf(tmp_path, level_spec(spec, 1))
    paused = extend(shelf, level, 64) if job == "extend" else merge(shelf, shelf.parts, 1)
    next(paused)
    for path in shelf.folder.glob("*.parquet"):
        path.unlink()
    assert len(list(paused)) == 2
    (made,) = (level if job == "extend" else shelf).parts
    reader = PartReader(made, level.spec if job == "extend" else spec)
    if job == "extend":
        found = reader.read(["norm_max"], 0, 3)["norm_max"]
        np.testing.assert_array_equal(found, values.reshape(3, 4, 16).max(2))
    else:
        np.testing.assert_array_equal(reader.read(["norm"], 0, 3)["norm"], values)


def test_a_long_run_has_few_files(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        for start in range(0, 1200, 4):
            maker.append(writer, np.arange(start, start + 4))
            for table in ("layers", "steps"):
                assert len(list((tmp_path / table).iterdir())) < 40
    assert len(list((tmp_path / "layers").iterdir())) == 1
    maker.check(load(tmp_path), np.arange(1200))


def test_a_merge_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    spec = TableSpec("layers", ("step",), tuple("abc"))
    for first in (0, 40_000):
        steps = np.arange(first, first + 40_000)
        write_grid(tmp_path, spec, Grid({"step": steps}, {"norm": np.ones((3, 40_000), "f4")}))
    shelf = Shelf(tmp_path, spec)
    before = list(shelf.parts)
    job = merge(shelf, shelf.parts, 1)
    next(job)
    assert len(list(shelf.folder.iterdir())) == 3
    job.close()
    assert shelf.parts == before
    assert sorted(shelf.folder.iterdir()) == [part.path for part in before]
