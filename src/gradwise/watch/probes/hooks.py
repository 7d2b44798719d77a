"""Hooks on tensors that keep nothing alive and are in nobody's way."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

Method = Callable[[int, Tensor], None]


class Hook:
    """A method as a hook on one of several tensors.

    Keeps nothing alive, does nothing once the method's owner is gone, and is left behind in silence
    where torch saves or copies the tensor.

    Args:
        method: called with the index and what the hook gets.
        index: the tensor's.
    """

    __slots__ = ("_deliver", "_index", "_method")
    __torch_unserializable__ = True  # otherwise saving a leaf that is no Parameter warns

    def __init__(self, method: Method, index: int) -> None:
        self._method = weakref.WeakMethod(method)
        self._index = index
        self._deliver = _delivery()

    def __call__(self, tensor: Tensor) -> None:
        """Pass it on."""
        self._deliver(self._method, self._index, tensor)


def _deliver(to: weakref.WeakMethod[Method], index: int, tensor: Tensor) -> None:
    method = to()
    if method is not None:
        method(index, tensor)


@cache
def _delivery() -> Callable[[weakref.WeakMethod[Method], int, Tensor], None]:
    # Backward passes may be compiled, hooks and all: these stay outside, or every look would be
    # compiled anew. Made late, because it loads the compiler.
    outside: Callable[[weakref.WeakMethod[Method], int, Tensor], None]
    outside = torch.compiler.disable(_deliver)  # type: ignore[no-untyped-call]
    return outside


def trainable(param: Tensor) -> bool:
    """Whether a gradient can arrive at a tensor now, and with it a hook."""
    return param.requires_grad and param.is_leaf


def before_accumulation(param: Tensor, hook: Hook) -> RemovableHandle:
    """Call a hook with each gradient that is about to be added to a parameter's, or asked for.

    `torch.autograd.grad` asks for gradients that are then added to nothing.
    """
    handle: RemovableHandle
    handle = param.register_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def after_accumulation(param: Tensor, hook: Hook) -> RemovableHandle:
    """Call a hook whenever a backward pass has added to a parameter's gradient."""
    handle: RemovableHandle
    handle = param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def remove(*handles: list[RemovableHandle]) -> None:
    """Take hooks off and forget them."""
    for some in handles:
        while some:
            some.pop().remove()


def at_end_of_backward(hook: Hook, param: Tensor) -> None:
    """Call a hook when the backward pass under way is over and its reductions are done.

    DistributedDataParallel has itself called at that end as well, but asks for it only when the
    last gradient has arrived; who asks at the end comes after it.
    """
    ask = Variable._execution_engine.queue_callback
    ask(lambda: ask(lambda: hook(param)))
