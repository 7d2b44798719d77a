"""Augmentation of whole batches, on the device where the data lies.

Nothing here loops over samples, makes the host wait for the device, or draws a random number
from anywhere but the generator that is passed in: equal generators give equal batches.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy.special import betaincinv
from torch.nn import functional as F

from gradwise.errors import UserError

SETTINGS = ("none", "standard", "strong")

# The strong setting, after the papers: mixup draws its weight from Beta(0.2, 0.2) (Zhang et al.
# 2018), cutout hides a quarter of the side, 8 of 32 pixels (DeVries and Taylor 2017, CIFAR-100).
_MIXUP_ALPHA = 0.2
_CUTOUT_FRACTION = 0.25
_LABEL_SMOOTHING = 0.1

# Nodes of the table of mixup weights: dense enough that linear interpolation between them is
# off by less than 1e-6.
_MIXUP_NODES = 2049


@dataclass(frozen=True)
class Augment:
    """Turns a batch as stored into a batch to train on.

    | setting | what happens, in this order |
    |---|---|
    | `none` | normalise |
    | `standard` | crop, flip, normalise |
    | `strong` | crop, flip, normalise, cutout, mixup; and `label_smoothing` is 0.1 |

    - Crop: `crop_padding` black pixels (value 0, before normalising, as is the custom for CIFAR)
      on every side, then a window of the original size at a random place.
    - Flip: left to right for one sample in two.
    - Normalise: minus `mean`, over `std`; uint8 pixels are scaled to [0, 1] first, floating point
      is taken as it is.
    - Cutout: a square of a quarter of the shorter side (8 pixels of 32, 2 of 8), with its centre
      anywhere in the image, is set to the mean colour. What sticks out is cut off. Samples that
      are no images keep all their values.
    - Mixup: one weight lambda from Beta(0.2, 0.2) for the batch; each sample becomes lambda times
      itself plus (1 - lambda) times the sample that a random permutation puts in its place, and
      the targets become the same mixture of one-hot rows.

    Label smoothing is left to the loss (`torch.nn.functional.cross_entropy` takes it together
    with either kind of target): pass it `label_smoothing=augment.label_smoothing`.

    Args:
        mean: Mean of each channel, [C]; of pixels scaled to [0, 1] where the data is uint8.
        std: Standard deviation of each channel in the same scale, [C], above 0.
        crop_padding: Pixels that a crop may move by; 0 for no crops.
        flip: Whether images may be flipped. Digits may not.
        setting: "none", "standard" or "strong".
        num_classes: Number of classes; needed by the strong setting for its soft targets.

    Attributes:
        mean: The means as a tuple.
        std: The standard deviations as a tuple.

    Raises:
        UserError: If an argument is out of its bounds.

    Examples:
        >>> augment = Augment(mean=[0.5], std=[0.25], crop_padding=1, setting="standard")
        >>> x = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
        >>> y = torch.tensor([3, 7])
        >>> images, target = augment(x, y, torch.Generator().manual_seed(0))
        >>> images.shape, images.dtype, round(images.max().item(), 4), target.tolist()
        (torch.Size([2, 1, 8, 8]), torch.float32, 2.0, [3, 7])
    """

    mean: Sequence[float] | torch.Tensor
    std: Sequence[float] | torch.Tensor
    crop_padding: int = 0
    flip: bool = False
    setting: str = "standard"
    num_classes: int | None = None
    _constants: dict[torch.device, tuple[torch.Tensor, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            if isinstance(given, torch.Tensor) and given.dim() != 1:
                raise UserError(f"expected {name} of shape [C], got {list(given.shape)}")
            values = tuple(float(value) for value in given)
            if not all(map(math.isfinite, values)):
                raise UserError(f"expected finite numbers in {name}, got {name}={values}")
            object.__setattr__(self, name, values)
        if not len(self.mean) == len(self.std) > 0:
            raise UserError(
                f"expected mean and std of one length of at least 1, got {len(self.mean)} and "
                f"{len(self.std)}"
            )
        if min(self.std) <= 0:
            raise UserError(f"expected std above 0, got std={self.std}")
        if self.crop_padding < 0:
            raise UserError(f"expected crop_padding >= 0, got crop_padding={self.crop_padding}")
        if self.setting not in SETTINGS:
            nearest = difflib.get_close_matches(self.setting, SETTINGS, n=1, cutoff=0.0)[0]
            raise UserError(
                f"expected setting to be one of {', '.join(SETTINGS)}, got "
                f"setting={self.setting!r}: did you mean {nearest!r}?"
            )
        if self.setting == "strong" and (self.num_classes is None or self.num_classes < 2):
            raise UserError(
                "expected num_classes >= 2 for the strong setting, got "
                f"num_classes={self.num_classes}"
            )

    @property
    def label_smoothing(self) -> float:
        """The label smoothing that the loss is to apply: 0.1 in the strong setting, else 0."""
        return _LABEL_SMOOTHING if self.setting == "strong" else 0.0

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one batch for training.

        Args:
            x: Samples [B, C, ...]: uint8 in 0..255, or floating point. Crops and flips
                need images [B, C, H, W].
            y: Labels [B], int64, in 0..num_classes-1 (not checked here: that would make the host
                wait).
            generator: Where all randomness comes from, on the device of `x`.

        Returns:
            The samples, float32 and normalised, in channels_last memory if they are images; and
            the labels [B], int64, or in the strong setting the soft targets [B, num_classes],
            float32, whose rows add up to 1.

        Raises:
            UserError: If a shape, a dtype or the generator's device does not fit.
        """
        self._check(x)
        if y.shape != x.shape[:1] or y.dtype != torch.int64:
            raise UserError(
                f"expected labels of shape {list(x.shape[:1])} and dtype torch.int64, got "
                f"{list(y.shape)} and {y.dtype}"
            )
        if self.setting == "none":
            return self._normalise(x), y
        if generator.device.type != x.device.type:
            raise UserError(
                f"expected a generator on {x.device.type}, where the data is, got one on "
                f"{generator.device.type}"
            )
        if x.dim() != 4 and (self.crop_padding or self.flip):
            raise UserError(
                f"expected images [B, C, H, W] to crop and flip, got the shape {list(x.shape)}"
            )
        if self.crop_padding:
            x = _random_crop(x, self.crop_padding, generator)
        if self.flip:
            x = _random_flip(x, generator)
        x = self._normalise(x)
        if self.setting == "standard":
            return x, y
        if x.dim() == 4:
            x = _cutout(x, generator)
        return self._mixup(x, y, generator)

    def prepare_eval(self, x: torch.Tensor) -> torch.Tensor:
        """Return the samples normalised and otherwise as they are, for evaluation.

        Args:
            x: Samples [B, C, ...]: uint8 in 0..255, or floating point.

        Returns:
            The samples in float32, in channels_last memory if they are images.

        Raises:
            UserError: If the shape or the dtype does not fit.
        """
        self._check(x)
        return self._normalise(x)

    def _check(self, x: torch.Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != len(self.mean):
            raise UserError(
                f"expected samples of shape [B, {len(self.mean)}, ...], got {list(x.shape)}"
            )
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise UserError(f"expected samples of dtype uint8 or floating point, got {x.dtype}")

    def _on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return 1 / std, -mean / std, the classes and the mixup weights, copied there once."""
        if device not in self._constants:
            mean = torch.as_tensor(self.mean, dtype=torch.float64)
            std = torch.as_tensor(self.std, dtype=torch.float64)
            quantiles = torch.linspace(0, 1, _MIXUP_NODES, dtype=torch.float64)
            weights = torch.from_numpy(betaincinv(_MIXUP_ALPHA, _MIXUP_ALPHA, quantiles.numpy()))
            self._constants[device] = (
                (1 / std).to(device, torch.float32),
                (-mean / std).to(device, torch.float32),
                torch.arange(self.num_classes or 0, device=device),
                weights.to(device, torch.float32),
            )
        return self._constants[device]

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift, _, _ = self._on(x.device)
        per_channel = (-1,) + (1,) * (x.dim() - 2)
        if x.dtype == torch.uint8:
            scale = scale / 255
        x = torch.addcmul(shift.view(per_channel), x.float(), scale.view(per_channel))
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def _mixup(
        self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, _, classes, weights = self._on(x.device)
        # The inverse of the distribution function, read off a table: torch has no beta sampler
        # that takes a generator on every device.
        place = torch.rand((), generator=generator, device=x.device) * (_MIXUP_NODES - 1)
        below = place.long().clamp(max=_MIXUP_NODES - 2)
        lower, upper = weights.gather(0, torch.stack((below, below + 1)))
        keep = torch.lerp(lower, upper, place - below)
        partner = torch.rand(len(x), generator=generator, device=x.device).argsort()
        target = (y[:, None] == classes).float()
        return torch.lerp(x[partner], x, keep), torch.lerp(target[partner], target, keep)


def _random_crop(x: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Pad images [B, C, H, W] with zeros and cut a window of [H, W] out of each."""
    batch, _, height, width = x.shape
    top, left = torch.randint(
        2 * padding + 1, (2, batch), generator=generator, device=x.device
    ).unbind()
    padded = F.pad(x, (padding, padding, padding, padding))
    # All windows as a view [B, C, top, left, H, W]; one indexing operation copies one of each.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=x.device), :, top, left]


def _random_flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip each image of [B, C, H, W] left to right with probability one half."""
    flipped = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(flipped, x.flip(3), x)


def _cutout(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Set a square in each image of [B, C, H, W] to 0, the mean colour, in place."""
    batch, _, height, width = x.shape
    size = max(1, round(min(height, width) * _CUTOUT_FRACTION))
    hidden = []
    for side, shape in ((height, (batch, 1, height, 1)), (width, (batch, 1, 1, width))):
        centre = torch.randint(side, (batch, 1), generator=generator, device=x.device)
        offset = torch.arange(side, device=x.device) - (centre - size // 2)
        hidden.append(((offset >= 0) & (offset < size)).view(shape))
    return x.masked_fill_(hidden[0] & hidden[1], 0.0)
