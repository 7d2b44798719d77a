"""What a trajectory looks like: its map, its angles and lengths, and its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradwise.analysis.trajectory import Angles, TrajectoryMap, TrajectoryReport
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import axes, svg

LARGEST_MAP = 400  # checkpoints that are drawn; more are thinned out


def lead(report: TrajectoryReport, relative: bool) -> str:
    """The answer in two sentences.

    Args:
        report: of the whole model.
        relative: whether directions are seen from the first checkpoint.
    """
    seen = _map(report, relative)
    if report.efficiency is None or seen.mds is None:
        return f"Nothing moved in {len(report.norms)} checkpoints."
    origin = "the first checkpoint" if relative else "the origin"
    return (
        f"Seen from {origin}, {len(report.norms)} checkpoints point the same way to "
        f"{seen.mds:.3g} (1: one straight ray). The way between the ends is "
        f"{report.efficiency:.3g} of the path's length, and consecutive updates turn by "
        f"{_degrees(report.turns.mean)} on average."
    )


def tables(
    report: TrajectoryReport, layers: Sequence[TrajectoryReport], relative: bool
) -> tuple[Table, ...]:
    """Hallmarks of the model, and of its layers.

    Args:
        report: of the whole model.
        layers: of each layer, or none.
        relative: which map the similarity is of.
    """
    seen = _map(report, relative)
    last = _number(float(report.norms[-1]))
    whole = Table(
        "Hallmarks",
        ("quantity", "value", "what it says"),
        (
            ("checkpoints", str(len(report.norms)), ""),
            ("MDS", _number(seen.mds), "mean of the map: 1 one direction, near 0 many"),
            ("MDS, off the diagonal", _number(seen.mds_off_diagonal), "without each one's own 1"),
            ("path length", _number(report.path_length), "sum of the steps' norms"),
            ("displacement", _number(report.displacement), "from the first to the last"),
            ("efficiency", _number(report.efficiency), "displacement / path length"),
            ("turn", _degrees(report.turns.mean), "mean between consecutive updates"),
            ("angle at the origin", _degrees(report.apex_origin.mean), "mean a step"),
            ("angle at the start", _degrees(report.apex_start.mean), "mean a step"),
            ("norm", f"{_number(float(report.norms[0]))} to {last}", "first to last"),
        ),
    )
    if not layers:
        return (whole,)
    rows = tuple(
        (
            one.layer or "",
            _number(_map(one, relative).mds),
            _number(one.efficiency),
            _degrees(one.turns.mean),
            _number(one.path_length),
            _number(float(one.norms[-1])),
        )
        for one in layers
    )
    header = ("layer", "MDS", "efficiency", "mean turn", "path length", "last norm")
    return whole, Table("Layers", header, rows)


def without_maps(report: TrajectoryReport) -> dict[str, Any]:
    """A layer's numbers; its maps would be as large as the model's, once for each layer.

    Args:
        report: of the layer.
    """
    plain = report.to_dict()
    for name in ("map", "relative_map"):
        plain[name] = {key: plain[name][key] for key in ("mds", "mds_off_diagonal")}
    return plain


def pictures(
    report: TrajectoryReport, layers: Sequence[TrajectoryReport], relative: bool
) -> tuple[Picture, ...]:
    """The map as a heatmap, angles and norms, and the layers' similarity.

    Args:
        report: of the whole model.
        layers: of each layer, or none.
        relative: which map is drawn.
    """
    made = [_map_picture(report, relative), _course_picture(report)]
    if layers:
        made.append(_layer_picture(layers, relative))
    return tuple(made)


def _map_picture(report: TrajectoryReport, relative: bool) -> Picture:
    seen = _map(report, relative)
    thin = max(1, math.ceil(len(seen.indices) / LARGEST_MAP))
    cosines = seen.cosines[::thin, ::thin].numpy()
    origin = "the first checkpoint" if relative else "the origin"
    with axes(width=4.6, height=4.0) as (figure, axis):
        axis.grid(False)
        if cosines.size:
            low = min(0.0, float(cosines.min()))
            first, last = seen.indices[0], seen.indices[-1]
            image = axis.imshow(
                cosines,
                vmin=low,
                vmax=1.0,
                extent=(first - 0.5, last + 0.5, last + 0.5, first - 0.5),
                interpolation="nearest",
            )
            figure.colorbar(image, ax=axis, label="cosine")
        axis.set_xlabel("checkpoint")
        axis.set_ylabel("checkpoint")
        return Picture(
            "trajectory-map",
            f"Cosines between checkpoints, seen from {origin}. Bright off the diagonal: the run "
            "kept its direction." + (f" One in {thin} checkpoints is drawn." if thin > 1 else ""),
            f"Heatmap of the cosines between all {len(seen.indices)} checkpoints.",
            svg(figure),
        )


def _course_picture(report: TrajectoryReport) -> Picture:
    steps = list(report.steps)
    with axes(1, 2) as (figure, (left, right)):
        for angles, at, label in (
            (report.turns, steps[1:-1], "turn between updates"),
            (report.apex_origin, steps[:-1], "at the origin"),
            (report.apex_start, steps[1:-1], "at the start"),
        ):
            left.plot(at, _all_degrees(angles), label=label, marker=_dot(at))
        left.set_ylabel("angle in degrees")
        right.plot(steps, report.norms.tolist(), label="norm", marker=_dot(steps))
        right.plot(steps, report.distances.tolist(), label="from the start", marker=_dot(steps))
        right.plot(steps[1:], report.step_norms.tolist(), label="of a step", marker=_dot(steps))
        right.set_ylabel("length")
        for axis in (left, right):
            axis.set_xlabel("checkpoint")
            axis.set_ylim(bottom=0)
            axis.legend()
        return Picture(
            "trajectory-course",
            "Left: angles along the run; updates that turn by 90 degrees have nothing in common, "
            "by more they go back. Right: the norm of the parameters, their distance from the "
            "first checkpoint, and the length of each step.",
            "Two panels of lines over checkpoints: angles, and lengths.",
            svg(figure),
        )


def _layer_picture(layers: Sequence[TrajectoryReport], relative: bool) -> Picture:
    names = [one.layer or "" for one in layers]
    height = min(1.2 + 0.2 * len(names), 14.0)
    with axes(1, 2, height=height, sharey=True) as (figure, (left, right)):
        for axis, label, values in (
            (left, "MDS", [_map(one, relative).mds for one in layers]),
            (right, "efficiency", [one.efficiency for one in layers]),
        ):
            axis.barh(range(len(names)), [math.nan if v is None else v for v in values])
            axis.set_xlabel(label)
            axis.set_xlim(0, 1)
        left.set_yticks(range(len(names)), names, fontsize=7 if len(names) <= 60 else 3)
        left.invert_yaxis()
        return Picture(
            "trajectory-layers",
            "How much each layer kept its direction, and how straight it went.",
            "Two bars a layer: mean directional similarity, and efficiency.",
            svg(figure),
        )


def _map(report: TrajectoryReport, relative: bool) -> TrajectoryMap:
    return report.relative_map if relative else report.map


def _all_degrees(angles: Angles) -> list[float]:
    return [math.degrees(x) for x in angles.values.tolist()]


def _degrees(value: float | None) -> str:
    return "—" if value is None else f"{math.degrees(value):.1f}°"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"


def _dot(values: Sequence[Any]) -> str | None:
    return "." if len(values) <= 60 else None
