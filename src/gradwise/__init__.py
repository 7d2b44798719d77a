"""gradwise: see your gradients, keep them in line, prove what helps.

import gradwise as gw
gw.autoscale(optimizer)   # hyperparameter-free gradient normalisation, any torch optimizer
"""

import importlib
from types import ModuleType

from gradwise import transforms
from gradwise._version import __version__
from gradwise.affine import Affine
from gradwise.attach import Attachment, attach, autoscale
from gradwise.errors import UserError
from gradwise.moments import Moments, measure

__all__ = [
    "Affine",
    "Attachment",
    "Moments",
    "UserError",
    "__version__",
    "attach",
    "autoscale",
    "measure",
    "transforms",
    "watch",
]


def __getattr__(name: str) -> ModuleType:
    """`gradwise.watch` on first use: it needs the extra "watch", which the core does without."""
    if name == "watch":
        return importlib.import_module("gradwise.watch")
    raise AttributeError(f"module 'gradwise' has no attribute {name!r}")
