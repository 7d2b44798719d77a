"""Folders of single runs, small and with everything in them that the page shows."""

from pathlib import Path
from typing import Any

import numpy as np
from report_synthetic import layer_names

from gradwise.watch.alerts import Alert, AlertJournal
from gradwise.watch.store import RunWriter

METRICS = (
    "mean", "std", "var", "norm", "max_abs", "zeros", "nonfinite", "weight_norm", "update_ratio",
)  # fmt: skip
META = {
    "kind": "watch", "optimizer": "AdamW", "model": "ResNet", "transform": "autoscale()",
    "per": "parameter", "every": 1, "run": "c0ffee", "command": ["train.py", "--lr", "0.1 x"],
    "host": "node-1", "versions": {"gradwise": "0.1.0", "torch": "2.13.0"}, "noise": None,
}  # fmt: skip


def alert(step: int, layer: str | None = None, **changes: Any) -> Alert:
    """An alert of a rule that is called "exploding"."""
    told = {
        "rule": "exploding", "step": step, "layer": layer, "value": 12.0,
        "message": f"The norm of {layer or 'all gradients'} is 12 times its trend.",
        "advice": "People lower the learning rate.", "severity": "error", "ended": step + 5,
    }  # fmt: skip
    return Alert(**{**told, **changes})


def write_watched(
    path: Path,
    *,
    layers: list[str] | int = 8,
    steps: int = 200,
    metrics: tuple[str, ...] = METRICS,
    alerts: tuple[Alert, ...] = (),
    meta: dict[str, Any] | None = None,
    histograms: int = 0,
    every: int = 1,
    seed: int = 0,
    close: bool = True,
    scale: float = 1.0,
    **scalars: float,
) -> Path:
    """A run of a training whose gradients shrink, with the alerts it is given."""
    rng = np.random.default_rng(seed)
    names = layer_names(layers) if isinstance(layers, int) else layers
    edges = (-1.0, -0.1, 0.1, 1.0) if histograms else ()
    writer = RunWriter(
        path, names, layer_metrics=metrics, meta=META if meta is None else meta,
        histogram_edges=edges,
    )  # fmt: skip
    at = np.arange(steps) * every
    level = 10.0 ** -np.linspace(1, 3, len(names))
    wave = rng.normal(1, 0.05, (steps, len(names)))
    std = scale * level * np.exp(-at / (steps * every))[:, None] * wave
    norm = np.sqrt((std**2).sum(1)) * 30
    turn = np.where(np.arange(steps)[:, None] % 2 == np.arange(len(names)) % 2, 1.0, np.nan)
    table = {
        "mean": std * rng.normal(0, 0.1, std.shape), "std": std, "var": std**2, "norm": std * 30,
        "max_abs": std * 4, "zeros": np.full_like(std, 0.25), "nonfinite": std * 0,
        "weight_norm": turn * 3, "update_ratio": turn * 1e-3,
    }  # fmt: skip
    rows = {
        "loss": 2.3 * np.exp(-at / (steps * every)) + 0.1, "grad_norm": norm,
        "grad_mean": norm * 1e-3, "grad_std": norm / 100, "grad_max_abs": norm / 3,
        "applied_norm": norm / 2, "applied_mean": norm * 5e-4, "applied_std": norm / 200,
        "applied_max_abs": norm / 6, "alpha": np.full(steps, 0.5), "lr": np.full(steps, 0.1),
        "noise_scale": np.linspace(10, 40, steps), "time": 1.7e9 + np.arange(steps) * 0.05,
        "val/accuracy": np.where(np.arange(steps) % 10 == 9, 0.5, np.nan),
        **{name: np.full(steps, value) for name, value in scalars.items()},
    }  # fmt: skip
    if steps:
        writer.append(at, {name: table[name] for name in metrics}, rows)
    if histograms:
        counts = np.zeros((len(at[::histograms]), len(names), 5), np.int64)
        counts[..., 1:4] = (3, 10, 5)
        writer.append_histograms(at[::histograms], counts)
    writer.flush()
    if alerts:
        with AlertJournal(path) as journal:
            for one in alerts:
                journal.write(one)
    if close:
        writer.close()
    return path
