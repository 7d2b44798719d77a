"""A multilayer perceptron, the cheapest network of the lab."""

import torch
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Two hidden layers of ReLUs on the flattened input, with PyTorch's own initialisation.

    Args:
        in_features: Number of values in one sample.
        num_classes: Number of logits.
        hidden: Width of both hidden layers.

    Examples:
        >>> MLP(64, num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_features: int, *, num_classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(in_features, hidden)
        self.hidden2 = nn.Linear(hidden, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, num_classes] of samples [B, ...]."""
        x = F.relu(self.hidden1(x.flatten(1)))
        x = F.relu(self.hidden2(x))
        logits: torch.Tensor = self.fc(x)
        return logits
