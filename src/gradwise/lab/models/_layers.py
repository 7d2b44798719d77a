"""The convolution that the networks share, and how it starts."""

from torch import nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without bias, for use before a batch normalisation.

    The normalisation subtracts whatever a bias would add. Its true gradient is zero, and what
    rounding leaves of it is the kind of layer that a gradient normaliser blows up to full size.
    """
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def init_convs(model: nn.Module) -> None:
    """Draw the weights of every convolution in `model` from Kaiming's normal law, fan out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
