"""The step that RENG and RING share: differentiate, transform, precondition, descend."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gradwise.errors import UserError
from gradwise.optim._fisher import Group, find_blocks, precondition, refresh, wide
from gradwise.optim._kronecker import Gathering, layers_of
from gradwise.optim._newton import Inverse
from gradwise.optim.base import FoldingOptimizer, Params, Transforms, check, check_lr

Fisher = Literal["empirical", "identity"]
Reduction = Literal["mean", "sum"]
Closure = Callable[[], Any]
Trained = Sequence[tuple[Tensor, Group]]  # the parameters to differentiate for, with their groups
Grads = list[Tensor | None]
_CLOSURE = "a closure that evaluates the model and returns the loss without calling backward"


class NaturalGradient(FoldingOptimizer):
    """What RENG and RING share; they differ in how the regularised gradient is got.

    The arguments are described at RENG. Between steps there is no hook on the model: those that
    gather the factors are there for one evaluation in `factor_every` steps and go with it.

    Attributes:
        inversions: how the last refresh of the factors went, two entries a layer, A first.
    """

    inversions: tuple[Inverse, ...] = ()

    def __init__(
        self,
        params: nn.Module | Params,
        lr: float | Tensor = 1e-3,
        rho: float = 0.05,
        damping: float = 1e-3,
        momentum: float = 0.0,
        factor_decay: float = 0.95,
        factor_every: int = 10,
        weight_decay: float = 0.0,
        *,
        model: nn.Module | None = None,
        fisher: Fisher = "empirical",
        reduction: Reduction = "mean",
        max_dim: int = 8192,
        newton_tol: float = 1e-3,
        newton_iterations: int = 60,
        maximize: bool = False,
        transform: Transforms | None = None,
    ) -> None:
        if isinstance(params, nn.Module):
            model = params if model is None else model
            params = params.named_parameters()
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise UserError(
                f"expected the module itself, got {type(model).__name__}: the gradients that the "
                "optimizer takes do not pass through it, so pass its .module to one process"
            )
        self._layers = [] if model is None else layers_of(model)
        self._norms = [] if model is None else [m for m in model.modules() if _counts(m)]
        defaults = {
            "lr": lr,
            "rho": rho,
            "damping": damping,
            "momentum": momentum,
            "factor_decay": factor_decay,
            "factor_every": factor_every,
            "weight_decay": weight_decay,
            "fisher": fisher,
            "reduction": reduction,
            "max_dim": max_dim,
            "newton_tol": newton_tol,
            "newton_iterations": newton_iterations,
            "maximize": maximize,
        }
        _check(defaults)
        super().__init__(params, defaults, transform)
        owned = {id(p) for group in self.param_groups for p in group["params"]}
        wanted = any(group["fisher"] == "empirical" for group in self.param_groups)
        if wanted and not any(id(layer.weight) in owned for layer in self._layers):
            raise UserError(
                "expected model= to have an nn.Linear or nn.Conv2d whose weight is among the "
                f"parameters, got {'none' if model is None else type(model).__name__}; "
                "fisher='identity' needs none"
            )

    def add_param_group(self, param_group: Group) -> None:
        """Add a group with options of its own.

        Raises:
            UserError: where an option is out of its bounds or a parameter is complex.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(param.is_complex() for param in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise UserError(f"expected real parameters for {type(self).__name__}, got complex ones")

    def __getstate__(self) -> dict[str, Any]:
        # Copied or pickled together with their model, the layers stay those of that model.
        return {**super().__getstate__(), "_layers": self._layers, "_norms": self._norms}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One update; the gradients are taken here, and left regularised in `.grad`.

        Args:
            closure: evaluates the model on one batch and returns the loss, without `backward`.

        Returns:
            The loss before the update, detached.

        Raises:
            UserError: where there is no closure, or what it does is not that.
            RuntimeError: for a sparse gradient.
        """
        if closure is None:
            raise UserError(f"expected {_CLOSURE}, got closure=None")
        places = [(p, group) for group in self.param_groups for p in group["params"]]
        for param, _ in places:
            param.grad = None
        trained = [(p, group) for p, group in places if p.requires_grad]
        blocks = find_blocks(self._layers, self.param_groups)
        due = [b for b in blocks if b.due(self.state.get(b.param, {}))]
        tallies = [block.tally() for block in due]
        watched = {
            layer: tally for b, tally in zip(due, tallies, strict=True) for layer in b.layers
        }
        loss, grads = self._gradients(closure, trained, Gathering(watched))
        for (param, _), grad in zip(trained, grads, strict=True):
            # A copy: autograd may hand out one tensor for two parameters, or an expanded one.
            param.grad = None if grad is None else grad.detach().clone()
        with torch.autocast(loss.device.type, enabled=False):
            fold = self._decided()
            directions: Grads = [p.grad for p, _ in places]
            if fold is not None:
                given = enumerate(directions)
                directions = [None if g is None else fold(i, g) for i, g in given]
            told = [
                (b, self.state[b.param], factors)
                for b, tally in zip(due, tallies, strict=True)
                if (factors := tally.factors()) is not None
            ]
            report: list[Inverse] = []
            for group in self.param_groups:
                report += refresh([entry for entry in told if entry[0].group is group], group)
            self.inversions = tuple(report) or self.inversions
            for block in blocks:
                precondition(block, self.state.get(block.param, {}), directions)
            for (param, group), direction in zip(places, directions, strict=True):
                if direction is not None:
                    self._descend(param, direction, group)
        return loss

    def _descend(self, param: Tensor, direction: Tensor, group: Group) -> None:
        state = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        direction = direction.to(wide(param.dtype))
        if group["maximize"]:
            direction = -direction
        if group["momentum"] != 0:
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
            else:
                state["momentum_buffer"] = direction.clone()
            direction = state["momentum_buffer"]
        lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        if group["weight_decay"] != 0:
            param.mul_(1 - lr * group["weight_decay"])
        if isinstance(lr, Tensor):
            param.sub_(direction * lr)
        else:
            param.add_(direction, alpha=-lr)

    @abstractmethod
    def _gradients(
        self, closure: Closure, trained: Trained, gathering: Gathering
    ) -> tuple[Tensor, Grads]:
        """The loss and the regularised gradients."""

    def _first(
        self, closure: Closure, trained: Trained, gathering: Gathering, create_graph: bool
    ) -> tuple[Tensor, Grads]:
        """The loss and its plain gradients; the factors are gathered here and only here."""
        with gathering:
            loss = self._evaluate(closure, trained)
            gathering.count()
            return loss.detach(), self._differentiate(loss, trained, create_graph)

    def _evaluate(self, closure: Closure, trained: Trained) -> Tensor:
        with torch.enable_grad():
            loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise UserError(f"expected {_CLOSURE}, a tensor with one element, got {found}")
        if any(param.grad is not None for param, _ in trained):
            raise UserError(f"expected {_CLOSURE}, got one that wrote gradients")
        if trained and not loss.requires_grad:
            raise UserError(f"expected {_CLOSURE}, got one whose loss depends on no parameter")
        return loss

    def _differentiate(self, loss: Tensor, trained: Trained, create_graph: bool) -> Grads:
        if not trained:
            return []
        with torch.enable_grad():
            params = [p for p, _ in trained]
            grads: Grads = list(
                torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True)
            )
        if any(grad is not None and grad.layout != torch.strided for grad in grads):
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        return grads


def _counts(module: nn.Module) -> bool:
    """Whether the module keeps running statistics."""
    return isinstance(module, _NormBase) and bool(module.track_running_stats)


def _check(options: Group) -> None:
    check_lr(options["lr"])
    check("rho", options["rho"], 0.0)
    check("momentum", options["momentum"], 0.0)
    check("factor_decay", options["factor_decay"], 0.0, 1.0)
    check("weight_decay", options["weight_decay"], 0.0)
    for name in ("damping", "newton_tol"):
        if not isinstance(options[name], int | float) or not options[name] > 0:
            raise UserError(f"expected {name} > 0, got {name}={options[name]!r}")
    for name in ("factor_every", "max_dim", "newton_iterations"):
        if not isinstance(options[name], int) or options[name] < 1:
            raise UserError(f"expected {name} >= 1, got {name}={options[name]!r}")
    for name, allowed in (("fisher", Fisher), ("reduction", Reduction)):
        words = get_args(allowed)
        if options[name] not in words:
            choice = " or ".join(map(repr, words))
            raise UserError(f"expected {name} to be {choice}, got {name}={options[name]!r}")
