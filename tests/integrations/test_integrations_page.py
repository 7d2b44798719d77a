"""The examples of docs/integrations.md run as they are printed, each with its library."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import gradwise as gw

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
SECTIONS = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.M | re.S)
EXAMPLES = {
    name.lower(): block
    for name, text in SECTIONS
    for block in re.findall(r"^```py\n(.*?)^```", text, re.M | re.S)
}


def given_to(name: str) -> dict[str, Any]:
    """What stands in every training script."""
    if name == "lightning":
        models = importlib.import_module("integrations.lit_models")
        return {"module": models.Classifier(), "loader": models.loader(3)}
    if name == "transformers":
        models = importlib.import_module("integrations.hf_models")
        return {"language_model": models.language_model(), "sentences": models.sentences(48)}
    model = torch.nn.Linear(8, 4)
    data = torch.utils.data.TensorDataset(torch.randn(16, 8), torch.randint(4, (16,)))
    return {
        "model": model,
        "loader": torch.utils.data.DataLoader(data, batch_size=4),
        "loss_fn": torch.nn.functional.cross_entropy,
    }


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore:.*`logger=True`")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate"])
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    exec(compile(EXAMPLES[name], f"{PAGE.name}: {name}", "exec"), given_to(name))
    where = {"lightning": "runs/lit", "transformers": "out/gradwise", "accelerate": "runs/acc"}
    run = gw.watch.load(where[name])
    assert run.closed
    assert run.last_step == {"lightning": 2, "transformers": 2, "accelerate": 1}[name]
    assert os.listdir(tmp_path)
