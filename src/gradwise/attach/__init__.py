"""Attach: everything that touches somebody else's training loop."""

from gradwise.attach.attachment import (
    Attachment,
    Wrapper,
    attach,
    attached,
    attachment_of,
    autoscale,
    unwrapped,
)
from gradwise.attach.checkpoint import CheckpointHooks

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
