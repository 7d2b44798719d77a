"""Attach: everything that touches somebody else's training loop."""

from gradwise.attach.attachment import Attachment, attach, autoscale

__all__ = ["Attachment", "attach", "autoscale"]
