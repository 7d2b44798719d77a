"""Attach: everything that touches somebody else's training loop."""

from gradwise.attach.attachment import Attachment, attachment_of
from gradwise.attach.checkpoint import CheckpointHooks
from gradwise.attach.functions import Wrapper, attach, attached, autoscale, unwrapped

__all__ = [
    "Attachment",
    "CheckpointHooks",
    "Wrapper",
    "attach",
    "attached",
    "attachment_of",
    "autoscale",
    "unwrapped",
]
