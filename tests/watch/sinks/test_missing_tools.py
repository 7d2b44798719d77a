"""A tool that is not installed: one sentence, where the sink is made."""

import sys

import pytest

from gradwise.errors import UserError
from gradwise.watch.sinks import MLflow, TensorBoard, Trackio, WandB


@pytest.mark.parametrize(
    ("sink", "arguments", "package"),
    [
        (TensorBoard, ("folder",), "tensorboard"),
        (WandB, (), "wandb"),
        (MLflow, ("some-run",), "mlflow"),
        (Trackio, (), "trackio"),
    ],
)
def test_missing_tools(sink, arguments, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=rf"needs {package}, .* pip install {package}$") as error:
        sink(*arguments)
    assert "\n" not in str(error.value)
