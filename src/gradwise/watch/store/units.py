"""What the usual columns are measured in, for `run.json` and whoever reads a run years later."""

__all__ = ["unit_of"]

_UNITS = {
    "mean": "gradient",
    "std": "gradient",
    "var": "gradient^2",
    "norm": "gradient",
    "max_abs": "gradient",
    "zeros": "share 0..1",
    "nonfinite": "count",
    "cosine": "cosine -1..1",
    "sign_agreement": "share 0..1",
    "weight_norm": "weight",
    "update_norm": "weight",
    "update_ratio": "ratio",
    "alpha": "factor",
    "lr": "weight per unit of update",
    "loss": "loss",
    "noise_scale": "samples",
    "skipped": "steps",
    "backwards": "backward passes",
    "time": "s since 1970-01-01 UTC",
}

_PREFIXES = ("grad_", "applied_")


def unit_of(metric: str) -> str:
    """The unit of a metric that gradwise itself records, or an empty string.

    "gradient" is the unit of the loss divided by that of the weights. `grad_` and `applied_`
    (before and after the transforms) leave the unit what it is, and so does a group's name after
    a slash. What a transform reports of itself (`transform/...`) has a unit that only it knows.

    Args:
        metric: the column's name.

    Examples:
        >>> unit_of("grad_norm"), unit_of("lr/head"), unit_of("my_score")
        ('gradient', 'weight per unit of update', '')
        >>> unit_of("grad_var"), unit_of("applied_max_abs"), unit_of("transform/threshold")
        ('gradient^2', 'gradient', '')
    """
    name = metric.split("/", 1)[0]
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return _UNITS.get(name, "")
