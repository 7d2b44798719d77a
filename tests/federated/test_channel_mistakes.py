"""What a user can do wrong with the channel, and what it then says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.federated import Channel


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": 0.0}, "mean=0.0"),
        ({"mean": math.inf}, "mean=inf"),
        ({"alpha": 1.0}, "1 < alpha <= 2, got alpha=1.0"),
        ({"alpha": 2.5}, "alpha=2.5"),
        ({"scale": -0.1}, "scale=-0.1"),
        ({"scale": math.nan}, "scale=nan"),
        ({"seed": 0, "generator": seeded()}, "either a generator or a seed"),
    ],
)
def test_channel_refuses(settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Channel(**settings)


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        ([], "at least 1 client"),
        (["g"], "got str"),
        ([torch.ones(2), [torch.ones(2)]], "client 1 to send entries"),
        ([[torch.ones(2)], [torch.ones(2), torch.ones(2)]], "client 1 to send entries"),
        ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], "client 1 to send entries"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(3)}], r"entry 'a' of client 1 .* \(3,\)"),
        ([[torch.ones(2)], [torch.ones(2).double()]], "entry 0 of client 1 .* got torch.float64"),
        ([torch.ones(2, dtype=torch.int64)], "floating gradients"),
        ([torch.ones(2).to_sparse()], "dense gradients"),
        ([[1.0]], "got float"),
    ],
)
def test_round_refuses(clients: Sequence[Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Channel()(clients)


@pytest.mark.parametrize(
    "fading",
    [
        lambda n, generator: torch.ones(n + 1),
        lambda n, generator: torch.full((n,), math.nan),
        lambda n, generator: torch.ones(n, dtype=torch.cfloat),
    ],
)
def test_fading_functions_are_checked(fading: Callable[[int, torch.Generator], Tensor]) -> None:
    with pytest.raises(UserError, match="expected fading to give 2 finite real gains"):
        Channel(fading)([torch.ones(1), torch.ones(1)])


@pytest.mark.parametrize("state", [{}, {"generator": None}, {"generator": torch.ones(3)}])
def test_foreign_states_are_refused(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected the state of a cpu generator"):
        Channel().load_state_dict(state)


def test_no_client_has_no_gains() -> None:
    with pytest.raises(UserError, match="got 0"):
        Channel().gains(0)
