"""What the models of `sparse_features` say together: tables and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradwise.report.article import Table
from gradwise.reproduce.experiments._several import is_number

# The authors' notebook, one problem [V]: rate, test loss, non-zero coordinates.
AUTHORS = {
    "sgd": [("0.25", "3.5e-3", "200"), ("0.282", "6.6e-4", "156"), ("0.282", "2.8e-4", "89")],
    "gd": [("2.0", "0.168", ""), ("3.53", "0.449", ""), ("3.53", "0.438", "")],
}
AUTHORS["sgd"].append(("0.282", "1.5e-4", "71"))
AUTHORS["gd"].append(("3.53", "0.497", ""))
AUTHORS_DECAYS = [0.1, 0.3, 0.5]


class Data:
    """Results by kind of model and seed."""

    def __init__(self, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
        self.settings, self.results = settings, results
        q = [f"{x:g}" for x in sorted(settings["relu_decays"])]
        self.relu_ends = q[0], q[-1]

    def seeds(self, kind: str) -> list[dict[str, Any]]:
        """One result a seed."""
        names = [f"{kind}-seed={seed}" for seed in self.settings["seeds"]]
        return [self.results[name] for name in names if name in self.results]

    def images(self) -> list[dict[str, Any]]:
        """By seed, the runs with large and small steps; None for one that diverged."""
        pairs = []
        for seed in self.settings["image_seeds"]:
            names = {s: f"images-{s}-seed={seed}" for s in ("large", "small")}
            if all(name in self.results for name in names.values()):
                pairs.append({s: self.results[name]["run"] for s, name in names.items()})
        return pairs

    def diagonal(self, method: str) -> list[tuple[str, list[dict[str, Any] | None]]]:
        """By phase of large steps, the runs of all seeds."""
        found = [one[method] for one in self.seeds("diagonal")]
        columns = [("constant", [one["constant"] for one in found])]
        for k, q in enumerate(self.settings["decays"]):
            columns.append((percent(q), [one["runs"][k] for one in found]))
        return columns


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:g} %"


def tables(data: Data) -> tuple[Table, ...]:
    """Ends of all runs."""
    return (_image_table(data), _diagonal_table(data), _relu_table(data))


def _image_table(data: Data) -> Table:
    rows = []
    for schedule, name in (("large", "warm-up, then decay"), ("small", "small and constant")):
        runs = [pair[schedule] for pair in data.images() if pair[schedule] is not None]
        stages = range(len(data.settings["blocks"]))
        rows.append(
            (
                name,
                *(_mean([run["active"][k] for run in runs], 100) for k in stages),
                _mean([run["distinct_active"][-1] for run in runs], 100),
                _mean([run["rank"][-1] for run in runs]),
                _mean([run["train_loss"] for run in runs]),
                _mean([run["test_loss"] for run in runs]),
                _mean([run["accuracy"] for run in runs], 100),
                _mean([run["share"] for run in runs]),
                _mean([run["level"] for run in runs]),
            )
        )
    stage_names = [f"active, stage {k + 1} (%)" for k in range(len(data.settings["blocks"]))]
    return Table(
        "Images",
        (
            "steps",
            *stage_names,
            "without duplicates, last (%)",
            "rank, last",
            "training loss",
            "test loss",
            "accuracy (%)",
            "share in plateaus",
            "level",
        ),
        tuple(rows),
        "Means over seeds at the end of training. Plateaus are those of `loss_stabilisation`; a "
        "loss that falls slowly under small steps counts as one too.",
    )


def _diagonal_table(data: Data) -> Table:
    rows = []
    for method, name in (("sgd", "SGD"), ("gd", "gradient descent")):
        rates = [one[method]["rate"] for one in data.seeds("diagonal")]
        small = data.settings[f"{method}_small"]
        same = data.settings["decays"] == AUTHORS_DECAYS
        for k, (phase, runs) in enumerate(data.diagonal(method)):
            known = [run for run in runs if run is not None]
            shares = [rate if k else small * rate for rate in rates if rate is not None]
            theirs = AUTHORS[method][k] if same else ("", "", "")
            rows.append(
                (
                    name,
                    phase,
                    _mean(shares),
                    _geometric([run["test_loss"] for run in known]),
                    _mean([run["nonzero"] for run in known]),
                    _mean([run["rank"] for run in known]),
                    _geometric([run["train_loss"] for run in known]),
                    f"{len(known)} of {len(runs)}",
                    *theirs,
                )
            )
    return Table(
        "Diagonal linear networks",
        (
            "method",
            "large steps for",
            "rate",
            "test loss",
            "non-zero",
            "rank of the Jacobian",
            "training loss",
            "converged",
            "authors' rate",
            "test loss",
            "non-zero",
        ),
        tuple(rows),
        "Means over seeds, each its own problem, of losses geometric ones; on the right the "
        "authors' notebook, one problem.",
    )


def _relu_table(data: Data) -> Table:
    rows = []
    for q in data.relu_ends:
        runs = [one[q] for one in data.seeds("relu") if one[q] is not None]
        names = ("singular_sum", "active", "distinct_active", "rank", "train_loss")
        rows.append((percent(float(q)), *(_mean([run[name] for run in runs]) for name in names)))
    return Table(
        "ReLU network on a line",
        (
            "warm-up",
            "sum of singular values",
            "active share",
            "without duplicates",
            "rank of the Jacobian",
            "training loss",
        ),
        tuple(rows),
        "Means over seeds. The authors' notebook has, at 2 % and 50 %, 540 and 22 as the sum, "
        "0.487 and 0.267 as the share, and training losses of 2.1e-4 and 1.7e-4.",
    )


def _geometric(values: Sequence[Any]) -> str:
    """For what spans orders of magnitude."""
    logs = [math.log(value) for value in values if is_number(value) and value > 0]
    return f"{math.exp(math.fsum(logs) / len(logs)):.2g}" if logs else "—"


def _mean(values: Sequence[Any], scale: float = 1.0) -> str:
    finite = [value for value in values if is_number(value)]
    return f"{scale * math.fsum(finite) / len(finite):.3g}" if finite else "—"


def notes(data: Data) -> tuple[str, ...]:
    """What a reader has to know."""
    settings = data.settings
    blocks = "-".join(map(str, settings["blocks"]))
    told = [
        f"Images: a residual network with {blocks} blocks in its stages, the first "
        f"{settings['width']} channels wide, on {settings['data']}; the "
        "paper's is a ResNet-18, whose shortcuts have weights of their own where here they have "
        "none.",
        "Diagonal networks: the authors chose their rates at the edge of divergence of their one "
        "problem. Here each problem has its own: the largest of a list at which the schedule that "
        "decays last does not diverge, and the constant rate in the authors' proportion to it.",
        "ReLU network: points, base rate and initialisation are the authors'; scale, warm-up and "
        "number of steps are not known to us and were chosen so that both warm-ups fit the points.",
    ]
    lost = sum(one is None for pair in data.images() for one in pair.values())
    for method in ("sgd", "gd"):
        lost += sum(run is None for _, runs in data.diagonal(method) for run in runs)
    lost += sum(one[q] is None for one in data.seeds("relu") for q in data.relu_ends)
    if lost:
        told.append(f"Runs that diverged and are left out: {lost}.")
    return tuple(told)
