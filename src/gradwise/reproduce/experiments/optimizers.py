"""An optimizer against its paper's baselines on image classification, each at its own best rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.settings import Settings
from gradwise.lab.statistics import mean_ci
from gradwise.report.article import Table
from gradwise.reproduce.cells import Comparison
from gradwise.reproduce.claims import Claim, Conclusion, Judged, judge_greater
from gradwise.reproduce.experiments._optimizer_found import Runs, label, read
from gradwise.reproduce.experiments._optimizer_mechanisms import PROBES, Probe
from gradwise.reproduce.experiments._optimizer_pictures import curves, differences, mechanism

__all__ = ["comparisons", "conclude"]

_TITLES = {
    "sgd": "SGD with momentum",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "sgdf": "SGDF",
    "hgm": "HGM",
    "adamomentum": "AdaMomentum",
    "adarem": "AdaRem",
}
_CLAIMS = ("accuracy_above", "accuracy_near", "faster_than")
Found = Mapping[str, Runs]


def comparisons(settings: dict[str, Any]) -> list[Comparison]:
    """One for all optimizers that share their learning rates.

    First weights, batches and rows held out depend on the seed alone, so that optimizers can be
    compared seed by seed across comparisons.

    Args:
        settings: of the recipe.

    Raises:
        UserError: where a setting is out of its bounds.
    """
    _check(settings)
    shared = Settings(
        data=settings["data"],
        data_dir=settings["data_dir"],
        model=settings["model"],
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        schedule=settings["schedule"],
        augment=settings["augment"],
        limit_train=settings["limit_train"],
        limit_test=settings["limit_test"],
        device=settings["device"],
        record_every=0,
    )
    groups: dict[tuple[float, ...], list[str]] = {}
    for spec in _specs(settings):
        groups.setdefault(_rates(settings, spec), []).append(spec)
    return [
        Comparison(
            "+".join(map(label, specs)),
            replace(shared, lr=rates if len(rates) > 1 else rates[0]),
            tuple(specs),
            tuple(settings["seeds"]),
        )
        for rates, specs in groups.items()
    ]


def _specs(settings: Mapping[str, Any]) -> list[str]:
    return [settings["method"], *settings["baselines"]]


def _rates(settings: Mapping[str, Any], spec: str) -> tuple[float, ...]:
    return tuple(map(float, settings["rates"][label(spec)]))


def _check(settings: Mapping[str, Any]) -> None:
    labels = [label(spec) for spec in _specs(settings)]
    for name in labels:
        if labels.count(name) > 1:
            raise UserError(f"expected every optimizer once, got {name} twice")
        if not isinstance(settings["rates"].get(name), list) or not settings["rates"][name]:
            raise UserError(f"expected a list of learning rates for {name} in rates")
        if len(settings["rates"][name]) != len(settings["rates"][labels[0]]):
            raise UserError(
                f"expected as many learning rates for every optimizer, got {labels[0]} "
                f"{len(settings['rates'][labels[0]])} and {name} {len(settings['rates'][name])}"
            )
    if len(labels) < 2:
        raise UserError("expected at least one baseline, got none")
    for claim in _CLAIMS:
        for name in settings[claim]:
            if name not in labels[1:]:
                raise UserError(
                    f"expected {claim} to name baselines ({', '.join(labels[1:])}), got {name!r}"
                )
    if not any(settings[claim] for claim in _CLAIMS):
        raise UserError(f"expected a claim in one of {', '.join(_CLAIMS)}, got none")
    if not 0 < settings["early"] <= 1:
        raise UserError(f"expected 0 < early <= 1, got early={settings['early']:g}")
    if not 0 <= settings["margin"] < 1:
        raise UserError(f"expected 0 <= margin < 1, got margin={settings['margin']:g}")


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge what the paper says of its optimizer beside others, seed by seed.

    Args:
        settings: of the recipe.
        results: of the comparisons, by name.

    Raises:
        UserError: where results are missing or damaged.
    """
    _check(settings)
    found = read(settings, results)
    margin = settings["margin"]
    claims = [_above(found, name, margin) for name in settings["accuracy_above"]]
    claims += [_near(found, name, margin) for name in settings["accuracy_near"]]
    epoch = max(1, round(settings["early"] * settings["epochs"]))
    claims += [_faster(found, name, epoch) for name in settings["faster_than"]]
    tables = [_summary(found, epoch)]
    if any(runs.grid for runs in found.values()):
        tables.append(_grid(found))
    pictures = [curves(found), differences(found)]
    method = label(settings["method"])
    if method in PROBES:
        probe = PROBES[method](settings["method"])
        claims += probe.claims
        tables.append(_mechanism(probe))
        pictures.append(mechanism(probe))
    return Conclusion(tuple(claims), tuple(tables), tuple(pictures), _notes(settings, found))


def _method(found: Found) -> tuple[str, Runs]:
    return next(iter(found.items()))


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _gains(found: Found, baseline: str) -> list[float]:
    _, ours = _method(found)
    pairs = zip(ours.accuracy, found[baseline].accuracy, strict=True)
    return [mine - theirs for mine, theirs in pairs]


def _above(found: Found, baseline: str, margin: float) -> Claim:
    judged = judge_greater(_gains(found, baseline), negligible=margin)
    return Claim(
        f"{_title(_method(found)[0])} ends with a higher test accuracy than {_title(baseline)}.",
        _points(found, baseline, judged),
        judged.verdict,
    )


def _near(found: Found, baseline: str, margin: float) -> Claim:
    judged = judge_greater(_gains(found, baseline), than=-margin)
    return Claim(
        f"{_title(_method(found)[0])} ends with a test accuracy that is at most "
        f"{100 * margin:g} points below that of {_title(baseline)}.",
        _points(found, baseline, judged),
        judged.verdict,
    )


def _points(found: Found, baseline: str, judged: Judged) -> str:
    method, ours = _method(found)
    mine, theirs = mean_ci(ours.accuracy)[0], mean_ci(found[baseline].accuracy)[0]
    return (
        f"{100 * mine:.2f} % with {method} and {100 * theirs:.2f} % with {baseline}; {method} "
        f"less {baseline} {judged.words('points', scale=100)}"
    )


def _faster(found: Found, baseline: str, epoch: int) -> Claim:
    method, ours = _method(found)
    mine, theirs = _early(ours, epoch), _early(found[baseline], epoch)
    judged = judge_greater([b - a for a, b in zip(mine, theirs, strict=True)])
    return Claim(
        f"{_title(method)} trains faster than {_title(baseline)}: its training loss is lower in "
        f"epoch {epoch} of {len(ours.losses[0])}.",
        f"{mean_ci(mine)[0]:.3f} with {method} and {mean_ci(theirs)[0]:.3f} with {baseline}; "
        f"{baseline} less {method} {judged.words('nats')}",
        judged.verdict,
    )


def _early(runs: Runs, epoch: int) -> list[float]:
    return [losses[epoch - 1] for losses in runs.losses]


def _interval(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    mean, interval = mean_ci([scale * value for value in values])
    if interval is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _summary(found: Found, epoch: int) -> Table:
    rows = [
        (
            runs.spec,
            f"{runs.learning_rate:g}",
            _interval(runs.accuracy, 2, 100),
            _interval([100 * max(row) for row in runs.accuracies], 2),
            _interval(_early(runs, epoch), 3),
            _interval([row[-1] for row in runs.losses], 3),
            f"{runs.diverged} of {len(runs.accuracy)}",
            f"{runs.seconds:.1f}",
        )
        for runs in found.values()
    ]
    return Table(
        "Accuracy and loss",
        (
            "optimizer",
            "learning rate",
            "test accuracy, %",
            "best epoch's, %",
            f"training loss, epoch {epoch}",
            "training loss, last",
            "diverged",
            "seconds a training",
        ),
        tuple(rows),
        "Mean and 95 % interval over the seeds. Claims are judged by the last epoch: the best one "
        "is chosen on the test set, as some papers report it. A training that diverged counts as "
        "guessing.",
    )


def _grid(found: Found) -> Table:
    rows = [
        (
            name,
            f"{rate:g}",
            f"{100 * validation:.2f}",
            f"{100 * test:.2f}",
            "chosen" if rate == runs.learning_rate else "",
        )
        for name, runs in found.items()
        for rate, validation, test in runs.grid
    ]
    return Table(
        "Learning rates",
        ("optimizer", "learning rate", "accuracy held out, %", "test accuracy, %", "choice"),
        tuple(rows),
        "Means of the seeds. The choice is made on rows held out of the training set.",
    )


def _mechanism(probe: Probe) -> Table:
    rows = []
    for name, seeds in probe.series.items():
        means = [sum(column) / len(column) for column in zip(*seeds, strict=True)]
        rows.append((name, *(f"{mean:.3f}" for mean in means)))
    return Table(
        f"Mechanism: {probe.title.lower()}",
        (probe.x_label, *(f"{x:g}" for x in probe.x)),
        tuple(rows),
        f"On made-up gradients, not on the data: {probe.y_label}, mean of the seeds.",
    )


def _notes(settings: Mapping[str, Any], found: Found) -> tuple[str, ...]:
    count = len(_rates(settings, settings["method"]))
    budget = (
        f"the best of {count} learning rates of its own, chosen on rows held out"
        if count > 1
        else "one learning rate of its own"
    )
    notes = [
        f"Every optimizer has the same budget: {len(settings['seeds'])} seeds, as many epochs, and "
        f"{budget}. Weight decay and schedule are the same for all."
    ]
    for name, runs in found.items():
        rates = sorted(rate for rate, _, _ in runs.grid)
        if len(rates) > 1 and runs.learning_rate in (rates[0], rates[-1]):
            notes.append(
                f"The learning rate chosen for {name}, {runs.learning_rate:g}, lies at an end of "
                "its list: a better one may lie beyond."
            )
    differing = _unequal(found)
    notes.append(
        f"First weights or batches differ between optimizers at {differing}: differences between "
        "them are not those of optimizers alone."
        if differing
        else "Seed by seed, all optimizers began with the same weights and saw the same batches."
    )
    if label(settings["method"]) in PROBES:
        notes.append(
            "What is said of made-up gradients is measured with this library's optimizer on "
            "gradients made for it, seeds of their own; it shows what the formula does, not what "
            "that is worth in training."
        )
    return tuple(notes)


def _unequal(found: Found) -> str:
    """The seeds, by their place, at which optimizers began or went on with other data."""
    places = []
    for at in range(len(_method(found)[1].seen)):
        weights = {runs.seen[at][0] for runs in found.values()}
        batches = {runs.seen[at][1] for runs in found.values()} - {None}
        if len(weights) > 1 or len(batches) > 1:
            places.append(str(at + 1))
    return f"seed {', '.join(places)} of the list" if places else ""
