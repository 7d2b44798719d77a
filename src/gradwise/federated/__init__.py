"""Over-the-air federated learning without a federated framework.

`Channel` makes of the clients' gradients what the server receives. The server then steps with any
optimizer of torch's or of `gradwise.optim`.
"""

from gradwise.federated.channel import Channel, Fading
from gradwise.federated.stable import alpha_stable

__all__ = ["Channel", "Fading", "alpha_stable"]
