"""Under which names the numbers of a run are sent: the same in every tool.

Everything that belongs to the gradients is below `grad/`, which the tools take for a group.
Learning rates, the transforms' own numbers and what the user logs keep the names of the run.
"""

from __future__ import annotations

LAYER_METRICS = (
    "mean",
    "std",
    "var",
    "norm",
    "max_abs",
    "zeros",
    "nonfinite",
    "weight_norm",
    "update_ratio",
    "cosine",
    "sign_agreement",
)
"""What a layer can be asked for; a run may have fewer."""

NONFINITE = "grad/nonfinite"
"""Infinite or NaN values in all gradients together, since the row before."""

STEP = "grad/step"
"""The step of the watch, for a tool whose own step belongs to somebody else."""

_MEASURES = ("norm", "mean", "std", "var", "max_abs")
_STEP_NAMES = {
    **{f"grad_{measure}": f"grad/{measure}" for measure in _MEASURES},
    **{f"applied_{measure}": f"grad/applied/{measure}" for measure in _MEASURES},
    **{name: f"grad/{name}" for name in ("alpha", "noise_scale", "skipped", "backwards")},
}
_OURS = {*_STEP_NAMES.values(), NONFINITE, STEP}


def step_name(metric: str) -> str | None:
    """The name of a step's number.

    Args:
        metric: its name in the run.

    Returns:
        The name in the tools, or None for `step` and `time`, which say when a row was and are no
        curves. A user's scalar that is called like one of ours is put below `user/`.

    Examples:
        >>> step_name("grad_norm"), step_name("applied_std"), step_name("noise_scale")
        ('grad/norm', 'grad/applied/std', 'grad/noise_scale')
        >>> step_name("lr/1"), step_name("loss"), step_name("grad/norm"), step_name("time")
        ('lr/1', 'loss', 'user/grad/norm', None)
    """
    if metric in ("step", "time"):
        return None
    if metric in _STEP_NAMES:
        return _STEP_NAMES[metric]
    clash = metric in _OURS or metric.startswith("grad/layer/")
    return f"user/{metric}" if clash else metric


def layer_name(layer: str, metric: str) -> str:
    """The name of a layer's number.

    Args:
        layer: the parameter's or the module's name.
        metric: one of `LAYER_METRICS`.

    Examples:
        >>> layer_name("head.weight", "std")
        'grad/layer/head.weight/std'
    """
    return f"grad/layer/{layer}/{metric}"
