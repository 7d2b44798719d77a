"""Attach: everything that touches somebody else's training loop."""

from gradwise.attach.attachment import Attachment, attachment_of
from gradwise.attach.checkpoint import CheckpointHooks
from gradwise.attach.functions import Wrapper, attach, attached, autoscale, unwrapped
from gradwise.attach.in_backward import InBackward, attach_in_backward

__all__ = [
    "Attachment",
    "CheckpointHooks",
    "InBackward",
    "Wrapper",
    "attach",
    "attach_in_backward",
    "attached",
    "attachment_of",
    "autoscale",
    "unwrapped",
]
