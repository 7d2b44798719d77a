"""Every Python example in the README and the docs runs as it is printed."""

import re
from pathlib import Path

import numpy as np
import pandas
import polars
import pytest
import torch

from gradwise.watch import RunWriter

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page share their names, as a reader would type them one after another.

    A page may use what stands in every training script; that is given here.
    """
    monkeypatch.chdir(tmp_path)
    with RunWriter("runs/a", ["head.weight"], layer_metrics=["norm"]) as writer:
        writer.append(np.arange(50), {"norm": np.ones((50, 1))}, {"loss": np.ones(50)})
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    names = {
        "torch": torch,
        "pandas": pandas,
        "polars": polars,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(torch.randn(32, 8), torch.randint(4, (32,))) for _ in range(3)],
        "loss_fn": torch.nn.functional.cross_entropy,
    }
    for block in blocks(page):
        exec(compile(block, f"{page.name}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
