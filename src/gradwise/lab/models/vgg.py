"""VGG-16 with batch normalisation and the head used for CIFAR."""

import torch
from torch import nn

from gradwise.lab.models._layers import conv3x3, init_convs

# Configuration D of the paper: widths of the convolutions between two poolings.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16BN(nn.Module):
    """VGG-16 (Simonyan and Zisserman 2015, configuration D) with batch normalisation.

    Five stages of 3x3 convolutions, each ending in a 2x2 max pooling, then one linear layer in
    place of the three of ImageNet. The convolutions have no bias, because the normalisation
    behind each of them subtracts it. Images larger than 32x32 are averaged before the linear
    layer. Modules are called `stage1.conv1`, `stage1.bn1`, ..., `fc`.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Examples:
        >>> net = VGG16BN(num_classes=10, in_channels=3)
        >>> net.eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> net.stage5.conv3.weight.shape
        torch.Size([512, 512, 3, 3])
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stages = tuple(f"stage{i}" for i in range(1, len(_STAGES) + 1))
        channels = in_channels
        for name, widths in zip(self.stages, _STAGES, strict=True):
            stage = nn.Sequential()
            for i, width in enumerate(widths, start=1):
                stage.add_module(f"conv{i}", conv3x3(channels, width))
                stage.add_module(f"bn{i}", nn.BatchNorm2d(width))
                stage.add_module(f"relu{i}", nn.ReLU(inplace=True))
                channels = width
            stage.add_module("pool", nn.MaxPool2d(2))
            self.add_module(name, stage)
        self.fc = nn.Linear(channels, num_classes)
        init_convs(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, num_classes] of images [B, C, H, W], H and W at least 32."""
        for name in self.stages:
            x = getattr(self, name)(x)
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
