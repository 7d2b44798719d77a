"""Run folders for tests of the live view: small ones whose numbers follow from their steps."""

import dataclasses
from pathlib import Path

import numpy as np

from gradwise.watch.alerts import Alert, AlertJournal
from gradwise.watch.store import RunWriter

METRICS = ("mean", "std", "norm", "max_abs", "zeros", "nonfinite", "weight_norm", "update_ratio")
NAMES = ("conv.weight", "conv.bias", "block.2.weight", "block.10.weight", "head.weight")


def norm_of(steps, layers):
    """What `norm` is in these runs: layer i has i + 1 at step 0 and grows by 1 % a step."""
    return np.arange(1.0, layers + 1) * (1 + 0.01 * np.asarray(steps)[:, None])


class Made:
    """A run folder that a test writes into step by step."""

    def __init__(self, folder, names=NAMES, metrics=METRICS, meta=None, resume_from=None):
        self.folder = folder
        self.names = tuple(names)
        self.metrics = metrics
        self.writer = RunWriter(
            folder,
            self.names,
            layer_metrics=metrics,
            step_metrics=("grad_norm", "grad_std", "applied_norm", "alpha"),
            meta={"kind": "watch", "model": "Net", "optimizer": "SGD"} if meta is None else meta,
            resume_from=resume_from,
        )

    def write(self, steps, *, every=1, began=1000.0, scale=1.0, **scalars):
        """Records of these steps, a tenth of a second apart, on the disk at once."""
        steps = np.asarray(list(steps))
        norm = scale * norm_of(steps, len(self.names))
        turn = (steps[:, None] // every) % 10 == np.arange(len(self.names))
        layers = {
            "norm": norm,
            "std": norm / 10,
            "mean": -norm / 100,
            "max_abs": norm / 2,
            "zeros": np.zeros_like(norm),
            "nonfinite": np.zeros_like(norm),
            "weight_norm": np.where(turn, 5.0, np.nan),
            "update_ratio": np.where(turn, 1e-3, np.nan),
        }
        columns = {
            "grad_norm": norm.sum(1),
            "grad_std": norm.sum(1) / 100,
            "applied_norm": np.ones(len(steps)),
            "alpha": np.full(len(steps), 0.5),
            "time": began + steps / 10,
            "lr": np.full(len(steps), 0.1),
        }
        self.writer.append(
            steps,
            {name: layers[name] for name in self.metrics},
            columns | {name: np.broadcast_to(v, len(steps)) for name, v in scalars.items()},
        )
        self.writer.flush()
        return self

    def close(self):
        self.writer.close()
        return self.folder


def alert(rule="dead", step=3, layer="conv.bias", severity="warning", ended=None):
    return Alert(
        rule, step, layer, 1.0, f"The sentence on {rule}.", f"Advice on {rule}.", severity, ended
    )


def note(folder, *alerts):
    """Write alerts into a run folder as a watch does."""
    with AlertJournal(Path(folder)) as journal:
        for one in alerts:
            journal.write(dataclasses.replace(one, ended=None))
            journal.end(one)
