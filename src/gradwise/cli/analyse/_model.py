"""The model by name, its weights from a file, and whether it fits data and loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.analysis._passes import LossFn, Source
from gradwise.cli.analyse._own import find, guarded, offered
from gradwise.cli.analyse._problem import Samples
from gradwise.errors import UserError
from gradwise.lab.models import build

__all__ = ["check", "load_weights", "make_model"]

_PLACES = ("model", "state_dict", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # of wrappers: data parallel, compiled


def make_model(name: str, samples: Samples) -> nn.Module:
    """A fresh model on the CPU.

    Args:
        name: a built-in one, or `module:function` with a function that takes nothing, or those of
            `num_classes` and `in_shape` that it asks for.
        samples: what it is for.

    Raises:
        UserError: where there is none, or the function fails or gives something else.
    """
    shape, classes = samples.in_shape, samples.num_classes
    if ":" not in name:
        if shape is None or classes is None:
            raise UserError(
                f"expected data whose classes are known for the built-in model {name!r}, which "
                f"{samples.name} does not tell: name a model of your own as --model module:function"
            )
        return build(name, num_classes=classes, in_shape=shape)
    function = find(name, "model")
    given = offered(function, name, "model", {"num_classes": classes, "in_shape": shape})
    with guarded(f"model {name}"):
        model = function(**given)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"expected model {name} to return a torch.nn.Module, got {type(model).__name__}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"expected model {name} to have a parameter to train, it has none")
    return model


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Put the weights of a file into the model; nothing in the file is run.

    Args:
        model: changed in place.
        path: a state dict saved by `torch.save`, or a dict that holds one as "model", "state_dict"
            or "model_state_dict".
        name: the model's, for messages.

    Raises:
        UserError: where the file cannot be read that way, or does not fit the model.
    """
    state = _state(path)
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    if missing:
        raise UserError(f"weights {path} do not fit model {name}: they lack {_some(missing)}")
    if extra:
        raise UserError(f"weights {path} do not fit model {name}: it has no {_some(extra)}")
    for key, value in own.items():
        if not isinstance(value, Tensor) or torch.nn.parameter.is_lazy(value):
            continue
        if not isinstance(state[key], Tensor) or state[key].shape != value.shape:
            got = state[key]
            shape = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise UserError(
                f"weights {path} do not fit model {name}: {key!r} is {shape} there and "
                f"{list(value.shape)} in the model"
            )
    with guarded(f"putting weights {path} into model {name}"):
        model.load_state_dict(state)


def _state(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises nearly anything for a file that is not one of its own
        raise UserError(
            f"expected weights {path} to be a state dict saved by torch.save and readable with "
            "weights_only=True, it is not"
        ) from error
    places = content if isinstance(content, Mapping) else {}
    for state in (content, *(places.get(place) for place in _PLACES)):
        if isinstance(state, Mapping) and any(isinstance(x, Tensor) for x in state.values()):
            return {str(key): value for key, value in state.items()}
    raise UserError(
        f"expected weights {path} to hold a state dict, itself or as {', '.join(_PLACES)}"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def check(
    model: nn.Module, name: str, samples: Samples, loss_fn: LossFn | None, loss_name: str
) -> None:
    """Run the model and the loss once on a few samples, and leave modes and streams as they were.

    Found here, what does not fit is one sentence. Lazy modules get their shapes from it.

    Args:
        model: on its device.
        name: its name.
        samples: of which the first batch is taken, or two samples of tensors.
        loss_fn: of outputs and targets; None leaves it out.
        loss_name: its name.

    Raises:
        UserError: where something fails, or the loss is not one number.
    """
    parameter = next(iter(model.parameters()))
    modes = [(module, module.training) for module in model.modules()]
    cuda = [parameter.device] if parameter.device.type == "cuda" else []
    model.eval()  # keeps it out of the statistics of norm layers
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            inputs, targets, _ = next(iter(Source(samples.data, parameter.device, chunk_size=2)))
            with guarded(f"model {name} on data {samples.name}"):
                outputs = model(inputs)
            if loss_fn is None:
                return
            with guarded(f"loss {loss_name} of model {name} on data {samples.name}"):
                loss = loss_fn(outputs, targets)
    finally:
        for module, mode in modes:
            module.training = mode
    if loss.numel() != 1:
        raise UserError(
            f"expected loss {loss_name} to return one number, the mean of a batch, got shape "
            f"{list(loss.shape)}"
        )
