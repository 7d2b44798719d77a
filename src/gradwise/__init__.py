"""gradwise: see your gradients, keep them in line, prove what helps.

import gradwise as gw
gw.autoscale(optimizer)                # hyperparameter-free gradient normalisation
gw.watch(optimizer, model, "runs/a")   # what every layer's gradient does, each step
"""

import importlib
from typing import TYPE_CHECKING, Any

from gradwise import optim, transforms
from gradwise._version import __version__
from gradwise.affine import Affine
from gradwise.attach import Attachment, InBackward, attach, attach_in_backward, autoscale
from gradwise.errors import UserError
from gradwise.moments import Moments, measure

if TYPE_CHECKING:
    from gradwise.watch.module import WatchModule

    watch: WatchModule

__all__ = [
    "Affine",
    "Attachment",
    "InBackward",
    "Moments",
    "UserError",
    "__version__",
    "attach",
    "attach_in_backward",
    "autoscale",
    "measure",
    "optim",
    "transforms",
    "watch",
]


def __getattr__(name: str) -> Any:
    """`gradwise.watch` on first use: it needs the extra "watch", which the core does without."""
    if name == "watch":
        try:
            return importlib.import_module("gradwise.watch")
        except ModuleNotFoundError as error:
            if error.name in ("numpy", "pyarrow"):
                error.msg = f"{error.msg}: gradwise.watch needs pip install 'gradwise[watch]'"
            raise
    raise AttributeError(f"module 'gradwise' has no attribute {name!r}")
