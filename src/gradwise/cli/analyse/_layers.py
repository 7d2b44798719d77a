"""Which modules of a model give what a ReLU leaves, and how large a Jacobian may be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradwise.analysis._frozen import frozen, trainable
from gradwise.analysis._passes import Source
from gradwise.cli.analyse._problem import Problem
from gradwise.errors import UserError

__all__ = ["default_points", "rectified"]

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Threshold)
_SMOOTH = (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU)
_BYTES = 2**30  # of gradients for a Jacobian
_ROW = 12  # bytes an entry: as it is kept, and again in float64


def rectified(problem: Problem, chunk_size: int) -> list[str]:
    """Names of the modules whose outputs are post-ReLU features, seen on the first batch.

    Nowhere negative and somewhere exactly 0: so it finds a ReLU that is called as a function,
    by the block that ends with it. Modules that only hand such values on (pooling, dropout,
    flattening) and containers of one that is named already are left out. A model without any
    gets its smooth activations (GELU and the like), whose positive share can be counted as well.

    Args:
        problem: model and data.
        chunk_size: samples in a batch, for tensors.

    Raises:
        UserError: where there is none of either.
    """
    model, found = problem.model, list[str]()
    outputs: list[Tensor] = []  # kept, so that no other tensor gets the same place

    def listen(name: str, module: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            if not isinstance(output, Tensor) or not _is_rectified(output):
                return  # a ReLU in place may yet make it one, and then it is the ReLU's
            if any(output is one for one in outputs) or name in found:
                return
            outputs.append(output)
            hands_on = not isinstance(module, _RECTIFIERS) and not any(
                True for _ in module.parameters()
            )
            if hands_on and any(isinstance(x, Tensor) and bool((x >= 0).all()) for x in inputs):
                return
            found.append(name)

        return module.register_forward_hook(hook)

    with frozen(model, problem.data), torch.no_grad():
        handles = [listen(name, module) for name, module in model.named_modules() if name]
        try:
            inputs, _, _ = next(iter(Source(problem.data, problem.device, chunk_size)))
            model(inputs)
        finally:
            for handle in handles:
                handle.remove()
    if not found:
        found = [name for name, module in model.named_modules() if isinstance(module, _SMOOTH)]
    if not found:
        known = [name for name, _ in model.named_modules() if name][:8]
        raise UserError(
            "found no module whose output is that of a ReLU (one that is called as a function "
            "between two modules cannot be seen): make it a module, or name another as --layer; "
            f"there are {', '.join(known) or 'none'}"
        )
    return found


def _is_rectified(output: Tensor) -> bool:
    if output.ndim < 2 or not output.is_floating_point() or output.numel() == 0:
        return False
    return float(output.min()) == 0.0


def default_points(problem: Problem) -> int:
    """How many samples' gradients of all outputs fit into a bounded memory, at least one.

    Args:
        problem: model and data.
    """
    parameters = sum(param.numel() for param in trainable(problem.model).values())
    with frozen(problem.model, problem.data), torch.no_grad():
        inputs, _, _ = next(iter(Source(problem.data, problem.device, 1)))
        output = problem.model(inputs[:1]) if isinstance(inputs, Tensor) else None
    outputs = output.numel() if isinstance(output, Tensor) else 1
    points = max(1, _BYTES // (_ROW * parameters * max(outputs, 1)))
    return min(points, problem.samples or points)
