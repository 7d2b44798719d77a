"""A run that is interrupted, and the two orders in which people load its checkpoint."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import gradwise as gw
from attach.loops import TRANSFORMS, network, train

FIRST, REST = range(5), range(5, 9)


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.02)


def stored(state_dict: Any) -> Any:
    """Through a file that is not trusted."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def half_a_run(key: str = "autoscale") -> tuple[nn.Module, Any, gw.Attachment]:
    model = network()
    optimizer = adam(model)
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    train(model, optimizer, FIRST)
    return model, optimizer, attachment


def attach_then_load(optimizer: Any, saved: Any, make: Callable[[], Any]) -> gw.Attachment:
    attachment = gw.attach(optimizer, make())
    optimizer.load_state_dict(saved)
    return attachment


def load_then_attach(optimizer: Any, saved: Any, make: Callable[[], Any]) -> gw.Attachment:
    optimizer.load_state_dict(saved)
    return gw.attach(optimizer, make())
