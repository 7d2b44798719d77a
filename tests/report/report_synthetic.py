"""Run folders as the lab writes them, with numbers that look like those of a training."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from gradwise.watch.store import RunWriter

METHODS = ("sgd", "center", "autoscale", "znorm", "clip(max_norm=1.0)")
SUMMARIES = {
    "sgd": "plain gradients",
    "center": "subtract each tensor's mean",
    "autoscale": "zero-centre, then one factor that follows the trend of the global std",
    "znorm": "subtract each tensor's mean and divide by its std",
    "clip(max_norm=1.0)": "shrink all gradients together when their norm exceeds max_norm",
}


def layer_names(count: int) -> list[str]:
    """Names as a small ResNet has them."""
    names = ["stem.conv.weight", "stem.norm.weight", "stem.norm.bias"]
    block = 0
    while len(names) < count - 2:
        stage, at = divmod(block, 2)
        for part in ("conv1.weight", "norm1.weight", "norm1.bias", "conv2.weight"):
            names.append(f"stages.{stage}.{at}.{part}")
        block += 1
    return [*names[: count - 2], "head.weight", "head.bias"][-count:]


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The inverse of `pack`, as the page's script does it."""
    kind, levels = {1: ("u1", 252), 2: ("<u2", 65532)}[packed["size"]]
    shape = packed["rows"], packed["columns"]
    codes = np.frombuffer(base64.b64decode(packed["codes"]), kind).reshape(shape).astype(float)
    scales = np.frombuffer(base64.b64decode(packed["scales"]), "<f8").reshape(shape[0], 3, 1)
    unit, low, high = scales[:, 0], scales[:, 1], scales[:, 2]
    values = unit * np.sinh(low + (codes - 3) * (high - low) / levels)
    for code, meaning in enumerate((np.nan, 0.0, np.inf)):
        values[codes == code] = meaning
    return values


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def watch(folder: Path, layers: list[str], steps: int, rng: np.random.Generator, at: int) -> None:
    """A record of one trial: stds that fall over time, each layer on a level of its own."""
    time = np.arange(steps)
    level = -1.5 - 2.5 * np.linspace(0, 1, len(layers)) + rng.normal(0, 0.3, len(layers))
    trend = (
        -1.2 * (1 - np.exp(-time / (steps / 3 + 1)))[:, None] * np.linspace(0.3, 1.3, len(layers))
    )
    wiggle = np.cumsum(rng.normal(0, 0.02, (steps, len(layers))), axis=0)
    std = 10 ** (level + trend + wiggle + rng.normal(0, 0.06, (steps, len(layers))))
    std[:, -1] *= 3
    pooled = std.mean(axis=1)
    norm = pooled * 250
    alpha = np.clip(1 - 0.5 * rng.random(steps) ** 4, 0, 1) if at != 3 else np.full(steps, np.nan)
    if at in (0, 1):
        alpha = np.ones(steps)
    loss = 2.3 * np.exp(-time / (steps / 4 + 1)) + 0.05 + rng.normal(0, 0.02, steps) ** 2
    with RunWriter(
        folder,
        layers,
        layer_metrics=["mean", "std", "norm", "nonfinite"],
        step_metrics=["loss", "lr", "grad_norm", "grad_mean", "grad_std", "applied_norm", "alpha"],
    ) as writer:
        writer.append(
            time,
            {"mean": std * 0.01, "std": std, "norm": std * 40, "nonfinite": std * 0},
            {
                "loss": loss,
                "lr": 0.1 * (1 - time / steps),
                "grad_norm": norm,
                "grad_mean": pooled * 0.01,
                "grad_std": pooled,
                "applied_norm": norm * np.nan_to_num(alpha, nan=3.0),
                "alpha": alpha,
            },
        )


def write_run(
    path: Path,
    *,
    methods: tuple[str, ...] = METHODS,
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 60,
    epochs: int = 6,
    layers: int = 8,
    watched: bool = True,
    gains: tuple[float, ...] = (0.0, 0.002, 0.013, -0.02, 0.001),
    diverged: tuple[tuple[str, int], ...] = (),
    missing: tuple[tuple[str, int], ...] = (),
    **settings: Any,
) -> Path:
    """A finished compare run, or one in which some trials diverged or are missing."""
    rng = np.random.default_rng(7)
    chosen = {
        "data": "digits", "model": "resnet8", "epochs": epochs, "batch_size": 128, "lr": 0.1,
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine",
        "augment": True, "amp": False, "jobs": 2, **settings,
    }  # fmt: skip
    command = (
        f"gradwise compare --data {chosen['data']} --model {chosen['model']} --seeds {len(seeds)}"
    )
    config = {
        "format": 1, "settings": chosen, "methods": list(methods), "seeds": list(seeds),
        "baseline": methods[0], "command": command,
    }  # fmt: skip
    write(path / "config.json", config)
    shift = {seed: rng.normal(0, 0.004) for seed in seeds}
    facts: dict[str, Any] = {}
    for at, method in enumerate(methods):
        values: list[float | None] = []
        status, folders = [], []
        for seed in seeds:
            name = f"trials/{slug(method)}-{at}/seed-{seed}"
            folders.append(name)
            if (method, seed) in missing:
                values.append(None)
                status.append("missing")
                continue
            bad = (method, seed) in diverged
            accuracy = (
                0.1 if bad else 0.93 + gains[at % len(gains)] + shift[seed] + rng.normal(0, 0.0015)
            )
            values.append(round(accuracy, 4))
            status.append("diverged" if bad else "finished")
            write(
                path / name / "result.json",
                result(method, seed, accuracy, bad, steps, epochs, at, rng),
            )
            if watched:
                done = steps // 3 if bad else steps
                watch(path / name / "watch", layer_names(layers), done, rng, at)
        facts[method] = method_facts(method, values, status, folders, seeds, at)
    summary = {
        "format": 1, "baseline": methods[0], "methods": facts,
        "comparisons": comparisons(methods, facts),
        "fairness": {
            "init_checksum_equal": True, "batches_checksum_equal": True, "differences": [],
        },
        "notes": ["Every method ran with learning rate 0.1; none was tuned."],
        "config": config,
        "versions": {
            "gradwise": "0.1.0", "torch": "2.13.0", "python": "3.11.9", "numpy": "2.3.0",
            "device": "cpu", "cpu": "some processor @ 2.5 GHz", "platform": "Linux-6.1-x86_64",
        },
        "finished": not missing,
    }  # fmt: skip
    write(path / "summary.json", summary)
    return path


def result(
    method: str, seed: int, accuracy: float, bad: bool, steps: int, epochs: int, at: int, rng: Any
) -> dict[str, Any]:
    ends = [(epoch + 1) * steps // epochs for epoch in range(epochs)]
    rise = 1 - np.exp(-np.arange(1, epochs + 1) / (epochs / 5))
    test = accuracy * rise + rng.normal(0, 0.003, epochs)
    loss = 2.3 * np.exp(-np.arange(1, epochs + 1) / (epochs / 4)) + 0.08
    curves = {
        "test_accuracy": test.tolist(),
        "train_loss": loss.tolist(),
        "test_loss": (loss * 1.2).tolist(),
    }
    if bad:
        for values in curves.values():
            values[epochs // 3 :] = [None] * (epochs - epochs // 3)
    return {
        "format": 1, "method": method, "seed": seed, "status": "diverged" if bad else "finished",
        "test_accuracy": accuracy, "test_loss": None if bad else float(loss[-1]),
        "history": {"step": ends, "epoch": list(range(1, epochs + 1)), **curves},
        "steps": steps, "wall_time_s": 9.4 + 0.3 * at, "samples_per_s": 4600.0 - 130 * at,
        "peak_memory_bytes": 412_000_000 + 9_000_000 * at, "parameters": 77_000,
        "init_checksum": f"a{seed}", "batches_checksum": f"b{seed}", "device": "cpu", "skipped": 0,
        "diverged_at_step": steps // 3 if bad else None,
    }  # fmt: skip


def method_facts(
    method: str, values: list[float | None], status: list[str], folders: list[str],
    seeds: tuple[int, ...], at: int,
) -> dict[str, Any]:  # fmt: skip
    there = [value for value in values if value is not None]
    mean = float(np.mean(there)) if there else None
    half = float(4.303 * np.std(there, ddof=1) / np.sqrt(len(there))) if len(there) > 1 else None
    ci95 = None if half is None or mean is None else [mean - half, mean + half]
    return {
        "test_accuracy": {"values": values, "mean": mean, "ci95": ci95},
        "seeds": list(seeds), "status": status, "folder": folders,
        "wall_time_s": {"mean": 9.4 + 0.3 * at},
        "peak_memory_bytes": {"mean": 412_000_000 + 9_000_000 * at},
        "samples_per_s": {"mean": 4600.0 - 130 * at},
        "summary": SUMMARIES.get(method, "something else"),
        "skipped": 0, "failures": {}, "learning_rate": 0.1,
        "paper": "V.-D. Yun, Insights from Gradient Dynamics, 2025", "tag": "[V2]",
        "url": "https://arxiv.org/abs/2509.03677",
    }  # fmt: skip


def comparisons(methods: tuple[str, ...], facts: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    base = facts[methods[0]]["test_accuracy"]["values"]
    for method in methods[1:]:
        own = facts[method]["test_accuracy"]["values"]
        pairs = [a - b for a, b in zip(own, base, strict=True) if a is not None and b is not None]
        difference = float(np.mean(pairs)) if pairs else None
        one: dict[str, Any] = {
            "method": method, "difference": difference, "ci95": None, "p": None,
            "verdict": "no difference detected", "note": f"{len(pairs)} pairs",
        }  # fmt: skip
        if len(pairs) > 1 and difference is not None:
            half = float(4.303 * np.std(pairs, ddof=1) / np.sqrt(len(pairs)))
            one["ci95"] = [difference - half, difference + half]
            sure = abs(difference) > 1.3 * half
            one["p"] = 0.012 if sure else 0.41
            if sure:
                one["verdict"] = "better" if difference > 0 else "worse"
        found.append(one)
    return found
