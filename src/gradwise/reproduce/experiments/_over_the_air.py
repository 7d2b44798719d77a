"""Clients with data of their own, and a server that hears them through a noisy channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gradwise.errors import UserError
from gradwise.federated import Channel
from gradwise.lab.data import load
from gradwise.lab.seeding import derived_seed
from gradwise.optim import AdaGradOTA, AdamOTA

__all__ = ["METHODS", "Rows", "Task", "dirichlet_split", "read", "train"]

METHODS: dict[str, tuple[str, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ("SGD", lambda params, lr, alpha: torch.optim.SGD(params, lr)),
    "adagrad": ("AdaGrad-OTA", lambda params, lr, alpha: AdaGradOTA(params, lr, alpha)),
    "adam": ("Adam-OTA", lambda params, lr, alpha: AdamOTA(params, lr, alpha)),
}
"""The server's optimizers: their names, and what makes one of a rate and a tail index."""

Rows = tuple[Tensor, Tensor]
"""Inputs [N, D] and labels [N]."""


class Task:
    """Rows to train on, to choose learning rates by, and to test with.

    Args:
        train: split among the clients.
        validation: of the training rows, none of which any client has.
        test: seen only to be reported.
        classes: how many labels there are.
    """

    def __init__(self, train: Rows, validation: Rows, test: Rows, classes: int) -> None:
        self.train, self.validation, self.test, self.classes = train, validation, test, classes


def read(settings: Mapping[str, Any]) -> Task:
    """The data of a recipe: images made smaller by `pool`, standardised, and flat.

    Args:
        settings: data, data_dir, pool, train_rows, test_rows, validation_rows, device.

    Raises:
        UserError: where the data are not there or not images.
    """
    data = load(settings["data"], settings["data_dir"])
    limits = (settings["train_rows"], settings["test_rows"])
    rows = [
        min(limit, len(x)) for limit, x in zip(limits, (data.train_x, data.test_x), strict=True)
    ]
    data = data.subset(*rows)
    if data.train_x.ndim != 4 or data.train_x.dtype != torch.uint8:
        raise UserError(f"expected images, got {data.name} with rows of shape {data.in_shape}")
    kept = settings["validation_rows"]
    if not 0 < kept < rows[0]:
        raise UserError(f"expected 0 < validation_rows < {rows[0]}, got validation_rows={kept}")

    def prepared(x: Tensor, y: Tensor) -> Rows:
        scaled = (x.float() / 255 - data.mean[:, None, None]) / data.std[:, None, None]
        small = F.avg_pool2d(scaled, settings["pool"]).flatten(1)
        return small.to(settings["device"]), y.to(settings["device"])

    first = rows[0] - kept
    return Task(
        prepared(data.train_x[:first], data.train_y[:first]),
        prepared(data.train_x[first:], data.train_y[first:]),
        prepared(data.test_x, data.test_y),
        data.num_classes,
    )


def dirichlet_split(labels: Tensor, clients: int, concentration: float, seed: int) -> list[Tensor]:
    """Rows for each client: of every class, shares drawn from a Dirichlet distribution.

    Args:
        labels: [N] of all rows.
        clients: how many, at most N.
        concentration: > 0; small ones give each client few classes.
        seed: of the shares.

    Returns:
        For each client the indices of its rows, at least one; each row has one client.

    Raises:
        UserError: where a number is out of its bounds.

    Examples:
        >>> import torch
        >>> parts = dirichlet_split(torch.arange(100) % 10, 4, 0.5, seed=0)
        >>> torch.cat(parts).sort().values.equal(torch.arange(100))
        True
    """
    if not 1 <= clients <= len(labels):
        raise UserError(f"expected 1 <= clients <= {len(labels)}, got clients={clients}")
    if not 0 < concentration < float("inf"):
        raise UserError(f"expected concentration > 0, got concentration={concentration}")
    draw = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(clients)]
    known = labels.cpu().numpy()
    for label in np.unique(known):
        rows = draw.permutation(np.flatnonzero(known == label))
        shares = draw.dirichlet(np.full(clients, concentration))
        cuts = (np.cumsum(shares)[:-1] * len(rows)).round().astype(int)
        for part, found in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(found.tolist())
    for part in parts:
        if not part:  # a client has to have something to send
            part.append(max(parts, key=len).pop())
    return [torch.tensor(part) for part in parts]


class _Clients:
    """Draws batches for all clients at once."""

    def __init__(self, parts: list[Tensor], seed: int) -> None:
        longest = max(map(len, parts))
        self.table = torch.stack([F.pad(part, (0, longest - len(part))) for part in parts])
        self.sizes = torch.tensor([len(part) for part in parts])[:, None]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, batch: int) -> Tensor:
        """[clients, batch] rows, each client's from its own with replacement."""
        uniform = torch.rand(len(self.sizes), batch, generator=self.generator, dtype=torch.float64)
        return self.table.gather(1, (uniform * self.sizes).long())


def _network(task: Task, hidden: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Linear(task.train[0].shape[1], hidden)
        net = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, task.classes))
    return net.to(task.train[0].device)


@torch.no_grad()
def _accuracy(net: nn.Module, rows: Rows) -> float | None:
    """Share of rows that are right; None where the network says what is no number."""
    outputs = net(rows[0])
    if not bool(outputs.isfinite().all()):
        return None
    return float((outputs.argmax(1) == rows[1]).float().mean())


def train(
    task: Task,
    settings: Mapping[str, Any],
    *,
    method: str,
    lr: float,
    alpha: float | None,
    clients: int,
    seed: int,
) -> dict[str, Any]:
    """One federated training over the air.

    Args:
        task: the data.
        settings: rounds, checks, hidden, batch, concentration, scale.
        method: the server's.
        lr: its learning rate.
        alpha: tail index of the interference, and of the server's powers; None for no
            interference, and powers of 2. The gains fade in any case.
        clients: how many.
        seed: of everything that is drawn, the same for all methods, rates and tails.

    Returns:
        `rounds`, `accuracy` (test, after each of them) and `validation` (at the last three of
        them); None where the network says what is no number.
    """
    labels = task.train[1]
    parts = dirichlet_split(labels, clients, settings["concentration"], derived_seed(seed, "split"))
    source = _Clients(parts, derived_seed(seed, "batches"))
    net = _network(task, settings["hidden"], derived_seed(seed, "weights"))
    params = dict(net.named_parameters())
    optimizer = METHODS[method][1](net.parameters(), lr, 2.0 if alpha is None else alpha)
    channel = Channel(
        "rayleigh",
        alpha=2.0 if alpha is None else alpha,
        scale=0.0 if alpha is None else settings["scale"],
        seed=derived_seed(seed, "channel"),
    )

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (x,)), y)

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    rounds, checks = settings["rounds"], settings["checks"]
    marks = sorted({max(1, round(rounds * (i + 1) / checks)) for i in range(checks)})
    found: dict[str, Any] = {"rounds": marks, "accuracy": [], "validation": []}
    for now in range(1, rounds + 1):
        rows = source.draw(settings["batch"]).to(labels.device)
        weights = {name: p.detach() for name, p in params.items()}
        sent = each(weights, task.train[0][rows], labels[rows])
        heard = channel(list(torch.cat([g.flatten(1) for g in sent.values()], 1)))
        pieces = heard.split([p.numel() for p in params.values()])
        for p, piece in zip(params.values(), pieces, strict=True):
            p.grad = piece.view_as(p)
        optimizer.step()
        if now in marks:
            found["accuracy"].append(_accuracy(net, task.test))
            if now in marks[-3:]:
                found["validation"].append(_accuracy(net, task.validation))
    return found
