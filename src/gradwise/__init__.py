"""gradwise: see your gradients, keep them in line, prove what helps."""

from gradwise._version import __version__

__all__ = ["__version__"]
