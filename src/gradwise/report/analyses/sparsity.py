"""Sparsity of features and ranks, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradwise.analysis.sparsity import FeatureSparsity, JacobianRank
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, svg

SOURCE = (
    "Andriushchenko, Varre, Pillaud-Vivien, Flammarion, "
    "SGD with Large Step Sizes Learns Sparse Features, ICML 2023"
)
URL = "https://arxiv.org/abs/2210.05337"
_LINES = 8  # spectra in one picture; of more layers, evenly chosen ones


def lead(layers: Mapping[str, FeatureSparsity], jacobian: JacobianRank | None) -> str:
    """The answer in two sentences.

    Args:
        layers: by name.
        jacobian: or None.
    """
    name, last = list(layers.items())[-1]
    words = (
        f"In {name}, the last of {len(layers)} layers, {_percent(last.active)} of the activations "
        f"are positive, {_percent(last.distinct_active)} without duplicates"
        if len(layers) > 1
        else f"In {name}, {_percent(last.active)} of the activations are positive, "
        f"{_percent(last.distinct_active)} without duplicates"
    )
    words += (
        f"; {last.dead} of {last.examined} neurons are never on, {last.duplicates} repeat another, "
        f"and the features have rank {last.rank}."
    )
    if jacobian is not None:
        most = min(jacobian.rows, jacobian.parameters)
        words += f" The Jacobian has rank {jacobian.rank} of at most {most}."
    return words


def tables(
    layers: Mapping[str, FeatureSparsity], jacobian: JacobianRank | None
) -> tuple[Table, ...]:
    """A row for each layer, and the Jacobian.

    Args:
        layers: by name.
        jacobian: or None.
    """
    header = ("layer", "neurons", "examined", "active", "distinct", "dead", "duplicates", "rank")
    rows = tuple(
        (
            name,
            str(one.neurons),
            str(one.examined),
            _percent(one.active),
            _percent(one.distinct_active),
            str(one.dead),
            str(one.duplicates),
            str(one.rank),
        )
        for name, one in layers.items()
    )
    samples = next(iter(layers.values())).samples
    found = [
        Table(
            "Feature sparsity",
            header,
            rows,
            f"Active: positive activations of {samples} samples, all neurons. Distinct: those of "
            "the examined neurons that are no duplicates, over all examined.",
        )
    ]
    if jacobian is not None:
        row = (str(jacobian.rank), str(jacobian.rows), str(jacobian.parameters))
        found.append(Table("Jacobian", ("rank", "rows", "parameters"), (row,)))
    return tuple(found)


def notes(layers: Mapping[str, FeatureSparsity], threshold: float, rtol: float) -> tuple[str, ...]:
    """What the numbers rest on.

    Args:
        layers: by name.
        threshold: of correlation.
        rtol: of ranks.
    """
    found = [
        "The model stood still, in evaluation mode and without augmentation; one forward pass.",
        f"Duplicates are neurons of an absolute correlation above {threshold:g}; of several copies "
        f"one is left. Ranks count singular values above {rtol:g} of the largest, not centred.",
        "A channel counts once for each place of its map: neurons are channels times positions.",
    ]
    if any(one.examined < one.neurons for one in layers.values()):
        found.append(
            "Where fewer neurons were examined than there are, a choice drawn by the seed stands "
            "for all: dead, duplicates and rank are of that choice."
        )
    return tuple(found)


def pictures(
    layers: Mapping[str, FeatureSparsity], jacobian: JacobianRank | None
) -> tuple[Picture, ...]:
    """Shares by layer, and singular values.

    Args:
        layers: by name.
        jacobian: or None.
    """
    return (_shares(layers), _spectra(layers, jacobian))


def _shares(layers: Mapping[str, FeatureSparsity]) -> Picture:
    height = min(1.4 + 0.3 * len(layers), 14.0)
    with axes(height=height) as (figure, axis):
        places = range(len(layers))
        for shift, label, values in (
            (-0.2, "active", [100 * one.active for one in layers.values()]),
            (0.2, "distinct", [100 * one.distinct_active for one in layers.values()]),
        ):
            axis.barh([at + shift for at in places], values, 0.38, label=label)
        axis.set_yticks(places, [*layers], fontsize=8 if len(layers) <= 40 else 4)
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_xlabel("positive activations in %")
        axis.legend()
        return Picture(
            "sparsity",
            "The share of positive activations in each layer, of all neurons, and of those that "
            "are no duplicates. Short bars are sparse features.",
            f"Two bars for each of {len(layers)} layers.",
            svg(figure),
        )


def _spectra(layers: Mapping[str, FeatureSparsity], jacobian: JacobianRank | None) -> Picture:
    names = [*layers]
    if len(names) > _LINES:
        at = [round(k * (len(names) - 1) / (_LINES - 1)) for k in range(_LINES)]
        names = [names[k] for k in at]
    with axes(1, 1 if jacobian is None else 2, squeeze=False) as (figure, grid):
        left = grid[0][0]
        for name, color in zip(names, COLORS, strict=False):
            _spectrum(left, layers[name].singular_values.tolist(), name, color)
        left.set_title("features")
        left.legend()
        if jacobian is not None:
            _spectrum(grid[0][1], jacobian.singular_values.tolist(), "Jacobian", COLORS[0])
            grid[0][1].set_title("Jacobian")
        for axis in grid[0]:
            axis.set_xlabel("rank")
            axis.set_ylabel("singular value over the largest")
        thinned = len(names) < len(layers)
        return Picture(
            "sparsity-spectra",
            "Singular values over the largest, in falling order: the earlier they fall, the fewer "
            "directions the features fill."
            + (f" {len(names)} of {len(layers)} layers are drawn." if thinned else ""),
            "Falling lines of singular values, one a layer.",
            svg(figure),
        )


def _spectrum(axis: object, values: Sequence[float], label: str, color: str) -> None:
    largest = values[0] if values and values[0] > 0 else 1.0
    kept = [value / largest for value in values if value > 1e-7 * largest]  # below is rounding
    axis.semilogy(range(1, len(kept) + 1), kept, label=label, color=color)  # type: ignore[attr-defined]  # an Axes


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
