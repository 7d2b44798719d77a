"""Measuring at one point: what an analysis touches is as it was when it ends."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.errors import UserError


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name, each once.

    Raises:
        UserError: where there are none, or some are not initialised yet.
    """
    found = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not found:
        raise UserError("expected a model with a parameter that requires a gradient, got none")
    for name, param in found.items():
        if isinstance(param, nn.UninitializedParameter):
            raise UserError(f"expected an initialised model, got {name!r} without a shape")
    return found


def device_of(model: nn.Module) -> torch.device:
    """Where the model's trainable parameters lie; the first one's where they lie apart."""
    return next(iter(trainable(model).values())).device


@contextmanager
def frozen(model: nn.Module, data: object = None) -> Iterator[None]:
    """Evaluation mode inside, so that norm layers use what they have and dropout drops nothing.

    Afterwards the mode of each module, all buffers, and the random streams of torch (on the CPU
    and on the model's devices), of Python, of numpy where it is loaded, and of the generators that
    `data` carries are as before.

    Args:
        model: to be measured.
        data: a loader, whose own generator is then kept too.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    cuda = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(cuda)))
        stack.enter_context(_other_streams(data))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if recurrent:  # cuDNN's recurrent layers have no gradient in evaluation mode
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    buffer.copy_(value)
                    module._buffers[name] = buffer


@contextmanager
def _other_streams(data: object) -> Iterator[None]:
    """Keep the random streams that are not torch's own."""
    sampler = getattr(data, "sampler", None)
    holders = [data, sampler, getattr(data, "batch_sampler", None)]
    generators = {
        id(found): found
        for holder in holders
        if isinstance(found := getattr(holder, "generator", None), torch.Generator)
    }
    states = [(generator, generator.get_state()) for generator in generators.values()]
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        random.setstate(python)
        if legacy is not None:
            numpy.random.set_state(legacy)


def squared_norm(tensors: list[Tensor]) -> float:
    """The sum of squared magnitudes of all entries, in float64."""
    total = 0.0
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        total += float(torch.linalg.vector_norm(real.detach(), dtype=torch.float64)) ** 2
    return total
