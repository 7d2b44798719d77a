"""What pages of analyses say of results whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gradwise.analysis.implicit_bias import planted_problem, train_diagonal
from gradwise.analysis.online import FixedPoint, Regret
from gradwise.analysis.stability import Stability
from gradwise.analysis.trajectory import TrajectoryRecorder, TrajectoryReport
from gradwise.report.analyses import implicit_bias, online, stability, trajectory
from gradwise.report.article import Article, Part, Picture, Table, write_article


def cells(table: Table, name: str) -> dict[str, str]:
    row = next(row for row in table.rows if row[0] == name)
    return dict(zip(table.header, row, strict=True))


def sound(pictures: tuple[Picture, ...], tables: tuple[Table, ...], folder: object) -> None:
    """Pages can be made of them."""
    parts = (Part("Results", tables=tables, pictures=pictures),)
    html, words = write_article(Article("A", "analysis", "B", parts), folder)
    assert html.read_text().count("<figure") == len(pictures)
    for table in tables:
        assert table.title in words.read_text()
    for picture in pictures:
        assert "nan" not in picture.svg.decode().lower().replace("finance", "")


# --- trajectory ---


def walked(*points: list[float]) -> tuple[TrajectoryReport, list[TrajectoryReport]]:
    layers = {"a.weight": 2, "b.weight": 1}
    recorder: TrajectoryRecorder | None = None
    for point in points:
        values = torch.tensor(point, dtype=torch.float64).split([*layers.values()])
        named = dict(zip(layers, values, strict=True))
        recorder = recorder or TrajectoryRecorder(named)
        recorder.add(named)
    assert recorder is not None
    return recorder.report(), list(recorder.layer_reports())


def test_a_right_angle(tmp_path) -> None:
    report, layers = walked([1, 0, 0], [1, 1, 0], [0, 1, 0])
    tables = trajectory.tables(report, layers, relative=False)
    assert cells(tables[0], "turn")["value"] == "90.0°"
    assert cells(tables[0], "path length")["value"] == "2"
    assert cells(tables[0], "efficiency")["value"] == f"{math.sqrt(0.5):.4g}"
    assert cells(tables[1], "b")["efficiency"] == "—"  # it did not move
    assert "turn by 90.0°" in trajectory.lead(report, False)
    sound(trajectory.pictures(report, layers, relative=False), tables, tmp_path)


def test_the_relative_map_is_another(tmp_path) -> None:
    report, _ = walked([5, 0, 0], [6, 0, 0], [5, 1, 0], [4, 0, 0])
    far, near = (trajectory.tables(report, [], relative=r)[0] for r in (False, True))
    assert float(cells(far, "MDS")["value"]) > 0.9
    assert float(cells(near, "MDS")["value"]) == pytest.approx(1 / 9, abs=1e-3)
    sound(trajectory.pictures(report, [], relative=True), (near,), tmp_path)


def test_a_run_that_stands_still(tmp_path) -> None:
    report, layers = walked([1, 2, 3], [1, 2, 3])
    assert "Nothing moved" in trajectory.lead(report, True)
    tables = trajectory.tables(report, layers, relative=True)
    assert cells(tables[0], "MDS")["value"] == "—"
    sound(trajectory.pictures(report, layers, relative=True), tables, tmp_path)


def test_long_maps_are_thinned_out() -> None:
    report, _ = walked(*([math.cos(t / 99), math.sin(t / 99), 1.0] for t in range(401)))
    picture = trajectory.pictures(report, [], relative=False)[0]
    assert "One in 2 checkpoints" in picture.caption
    assert "401" in picture.alt


# --- stability ---


def stable(distances: Tensor, test: bool = True) -> Stability:
    steps, seeds, samples = distances.shape
    losses = torch.full((steps, seeds), 0.5, dtype=torch.float64)
    return Stability(
        tuple(10 * k for k in range(steps)),
        tuple(range(samples)),
        100,
        tuple(range(seeds)),
        distances,
        losses,
        losses + 0.25 if test else None,
    )


def test_stability_in_words(tmp_path) -> None:
    distances = torch.zeros(2, 3, 4, dtype=torch.float64)
    distances[1] = torch.tensor([[0.03], [0.04], [0.05]])
    result = stable(distances)
    (table,) = stability.tables(result, smoothness=2.0)
    row = cells(table, "10")
    assert row["eps^2"] == "0.04"
    # t(0.975, 2) = 4.303 times 0.01 / sqrt(3)
    assert row["95 % interval"] == "0.0152 to 0.0648"
    assert row["gap"] == "0.25"
    assert float(row["bound of the gap"]) == pytest.approx(0.04 + math.sqrt(2) * 0.2, rel=1e-3)
    assert "0.2 in root mean square" in stability.lead(result)
    sound(stability.pictures(result), (table,), tmp_path)


def test_stability_without_test_samples_or_interval(tmp_path) -> None:
    result = stable(torch.ones(2, 1, 1, dtype=torch.float64), test=False)
    assert stability.intervals(result) == [None, None]
    (table,) = stability.tables(result, smoothness=None)
    assert table.header == ("step", "eps^2", "95 % interval", "training loss")
    assert "gap" not in stability.lead(result)
    sound(stability.pictures(result), (table,), tmp_path)


# --- implicit bias ---


def test_reference_solutions() -> None:
    inputs = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    found = implicit_bias.references(inputs, torch.tensor([2.0], dtype=torch.float64))
    small, sparse = found["smallest l2 norm"], found["smallest l1 norm"]
    assert small.l2 == pytest.approx(2 / math.sqrt(5))
    assert sparse.l1 == pytest.approx(1.0)
    assert (sparse.visible, sparse.spread) == (1, pytest.approx(1.0))
    assert small.spread == pytest.approx(9 / 5)


def test_nothing_interpolates_too_many_samples(tmp_path) -> None:
    inputs = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    targets = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert implicit_bias.references(inputs, targets) == {}
    one = implicit_bias.solution(inputs, targets, torch.tensor([0.5], dtype=torch.float64))
    assert one.loss == pytest.approx(0.25 / 4)
    table, _ = implicit_bias.tables(one, [one, one], {})
    assert "No beta fits" in table.note


def test_sgd_and_gd_side_by_side(tmp_path) -> None:
    problem = planted_problem(20, 40, 2, seed=0)
    how = {"alpha": 0.1, "gamma": 0.05, "steps": 3000, "record_every": 500}
    gd = train_diagonal(problem.data, batch_size=None, **how)
    sgd = train_diagonal(problem.data, seeds=range(3), **how)
    ours = implicit_bias.solutions(*problem.data, sgd)
    (plain,) = implicit_bias.solutions(*problem.data, gd)
    known = implicit_bias.references(*problem.data)
    assert all(s.alpha < plain.alpha and s.l1 < plain.l1 for s in ours)
    assert all(s.kkt < s.kkt_start / 3 for s in ours)  # the alpha that it has explains it better
    assert known["smallest l1 norm"].l1 < min(s.l1 for s in ours)
    assert plain.predicted == pytest.approx(0.1)
    np.testing.assert_allclose(ours[0].alpha, sgd.effective_alpha[0].median())
    tables = implicit_bias.tables(plain, ours, known)
    assert [row[0] for row in tables[0].rows] == ["SGD", "GD", *known]
    assert [row[0] for row in tables[1].rows] == ["SGD", "GD"]
    assert cells(tables[1], "GD")["effective alpha"] == f"{plain.alpha:.3g}"
    assert "±" in cells(tables[1], "SGD")["effective alpha"]
    assert "effective alpha of" in implicit_bias.lead(plain, ours)
    sound(implicit_bias.pictures(gd, sgd), tables, tmp_path)


# --- online ---


def game(regret: float, variation: float) -> Regret:
    losses = torch.full((5,), 1.0, dtype=torch.float64)
    point = FixedPoint(torch.zeros(2, dtype=torch.float64), 5 - regret, None, 7)
    steps = torch.linspace(0, variation, 5, dtype=torch.float64)
    return Regret(losses, losses - regret / 5, point, steps)


def test_regret_in_words(tmp_path) -> None:
    games = {online.OPTIMISTIC: game(2.0, 16.0), online.PLAIN: game(3.5, 9.0)}
    (table,) = online.tables(games, radius=2.0, at_edge=True)
    row = cells(table, "optimistic mirror descent")
    assert (row["regret"], row["variation"]) == ("2", "16")
    assert row["regret / (1 + sqrt variation)"] == "0.4"
    assert "on the edge" in table.note
    assert "leaves 1.5 less" in online.lead(games)
    assert "vary by 2 (root mean square)" in online.lead(games)
    assert "edge" not in online.tables(games, radius=2.0, at_edge=False)[0].note
    sound(online.pictures(games), (table,), tmp_path)
    worse = {online.OPTIMISTIC: game(4.0, 1.0), online.PLAIN: game(3.5, 1.0)}
    assert "leaves 0.5 more" in online.lead(worse)
