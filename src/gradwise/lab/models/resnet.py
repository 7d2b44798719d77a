"""Residual networks for small images, with shortcuts that carry no parameters."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from gradwise.lab.models._layers import conv3x3, init_convs


class ZeroPadShortcut(nn.Module):
    """The option A shortcut: every second pixel, and zeros for the channels that are new.

    It has no parameters, so a network of basic blocks differs from its plain counterpart in
    nothing but the additions. The new channels are split evenly before and after the old ones.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out, at least `in_channels`.
        stride: Step of the subsampling in both directions.

    Examples:
        >>> ZeroPadShortcut(16, 32, stride=2)(torch.ones(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        new = out_channels - in_channels
        self.before, self.after = new // 2, new - new // 2
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` of shape [B, C, H, W] subsampled and padded to the block's output shape."""
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        return f"before={self.before}, after={self.after}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation, around a shortcut.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: Stride of the first convolution.

    Examples:
        >>> BasicBlock(16, 32, stride=2)(torch.ones(2, 16, 8, 8)).shape
        torch.Size([2, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ZeroPadShortcut(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small images: He et al. 2016, section 4.2.

    A 3x3 convolution, stages of basic blocks of which each stage but the first halves the
    resolution, global average pooling and one linear layer. Modules are called `conv1`, `bn1`,
    `stage1.0.conv1`, ..., `fc`, which is how layers appear in pictures.

    Args:
        blocks: Number of basic blocks in each stage.
        widths: Number of channels in each stage.
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Examples:
        >>> net = ResNet((1, 1), (8, 16), num_classes=10, in_channels=1)
        >>> net(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
        >>> net.stage2[0].conv1.weight.shape
        torch.Size([16, 8, 3, 3])
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], *, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = tuple(f"stage{i}" for i in range(1, len(blocks) + 1))
        channels = widths[0]
        for i, (name, depth, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(BasicBlock(channels, width, stride=2 if i > 0 and j == 0 else 1))
                channels = width
            self.add_module(name, stage)
        self.fc = nn.Linear(channels, num_classes)
        init_convs(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, num_classes] of images [B, C, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def cifar_resnet(depth: int, *, num_classes: int, in_channels: int) -> ResNet:
    """Build the CIFAR network of `6 n + 2` layers with 16, 32 and 64 channels.

    Args:
        depth: Number of weighted layers, of the form `6 n + 2`: 20, 32, 44, 56, 110.
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Examples:
        >>> net = cifar_resnet(20, num_classes=10, in_channels=3)
        >>> sum(p.numel() for p in net.parameters())
        269722
    """
    n = (depth - 2) // 6
    return ResNet((n, n, n), (16, 32, 64), num_classes=num_classes, in_channels=in_channels)


def digits_resnet(*, num_classes: int, in_channels: int) -> ResNet:
    """Build the small network for 8x8 digits: 12 weighted layers, about 25 thousand parameters.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Examples:
        >>> net = digits_resnet(num_classes=10, in_channels=1)
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return ResNet((2, 2, 1), (8, 16, 32), num_classes=num_classes, in_channels=in_channels)
