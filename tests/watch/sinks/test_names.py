"""Every number has one name, the same in all tools."""

import pytest

from gradwise.watch.sinks import layer_name, step_name


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        *[(f"grad_{m}", f"grad/{m}") for m in ("norm", "mean", "std", "var", "max_abs")],
        *[(f"applied_{m}", f"grad/applied/{m}") for m in ("norm", "mean", "std", "var", "max_abs")],
        ("alpha", "grad/alpha"),
        ("noise_scale", "grad/noise_scale"),
        ("skipped", "grad/skipped"),
        ("backwards", "grad/backwards"),
        ("lr", "lr"),
        ("lr/1", "lr/1"),
        ("transform/clip_share", "transform/clip_share"),
        ("loss", "loss"),
        ("grad_penalty", "grad_penalty"),
        ("grad/penalty", "grad/penalty"),
        ("time", None),
        ("step", None),
        # a user's scalar must not hide one of ours
        ("grad/norm", "user/grad/norm"),
        ("grad/nonfinite", "user/grad/nonfinite"),
        ("grad/step", "user/grad/step"),
        ("grad/layer/w/norm", "user/grad/layer/w/norm"),
    ],
)
def test_step_names(metric: str, name: str | None) -> None:
    assert step_name(metric) == name


def test_layer_names() -> None:
    assert layer_name("body.0.weight", "update_ratio") == "grad/layer/body.0.weight/update_ratio"
