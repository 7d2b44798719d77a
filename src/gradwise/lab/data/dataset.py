"""What the lab means by data: four checked tensors and how to treat them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.lab.data.checks import check_finite, check_labels, check_rows, plain
from gradwise.lab.data.facts import channel_statistics, fingerprint


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A classification task: training and test rows, and how the standard recipe treats them.

    Building one checks it: dtypes, shapes, counts and the range of the labels. `from_arrays`
    derives the fields that follow from the tensors.

    Attributes:
        name: what the user called it.
        train_x: uint8 `[N, C, H, W]` for images, float32 `[N, D, ...]` for anything else.
        train_y: int64 `[N]`, values `0 .. num_classes - 1`.
        test_x: as `train_x`, of the same shape but for N.
        test_y: as `train_y`.
        num_classes: number of classes, at least 2.
        mean: float32 `[C]`, mean over the training rows; of uint8 pixels scaled to 0..1, of
            floats as they are. C is the size of the first axis after the rows.
        std: float32 `[C]`, standard deviation in the same scale; 1 where a channel is constant,
            so that dividing by it is always safe.
        crop_padding: pixels of zeros around an image before a random crop; 0 for no crops.
        flip: whether mirroring an image left to right leaves its class alone.
        class_names: one name a class, or empty.
        fingerprint: SHA-256 in hexadecimal of the four tensors' contents, types and shapes.

    Raises:
        UserError: something does not fit, with the field, the value and the bound.

    Examples:
        >>> from gradwise.lab.data import load
        >>> digits = load("digits", cache=False)
        >>> digits
        Dataset('digits', 1437 train, 360 test, shape (1, 8, 8), 10 classes)
        >>> digits.subset(100, None).train_x.shape
        torch.Size([100, 1, 8, 8])
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor
    crop_padding: int
    flip: bool
    class_names: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        check_rows(self.name, "train", self.train_x, self.train_y)
        check_rows(self.name, "test", self.test_x, self.test_y)
        for field in ("shape", "dtype"):
            train, test = getattr(self.train_x[0], field), getattr(self.test_x[0], field)
            if train != test:
                raise UserError(
                    f"expected train_x and test_x of {self.name} to have the same {field} of a "
                    f"row, got {plain(train)} and {plain(test)}"
                )
        if self.num_classes < 2:
            raise UserError(
                f"expected at least 2 classes in {self.name}, got num_classes={self.num_classes}"
            )
        for part, labels in (("train_y", self.train_y), ("test_y", self.test_y)):
            check_labels(labels.numpy(), self.num_classes, f"{part} of {self.name}")
        channels = (self.train_x.shape[1],)
        for part, value in (("mean", self.mean), ("std", self.std)):
            if value.dtype != torch.float32 or value.shape != channels:
                raise UserError(
                    f"expected {part} of {self.name} to be float32 of shape {channels}, got "
                    f"{plain(value.dtype)} of shape {tuple(value.shape)}"
                )
            if not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"expected finite values in {part} of {self.name}, got {value.tolist()}"
                )
        if not bool((self.std > 0).all()):
            raise UserError(f"expected std of {self.name} above 0, got {self.std.tolist()}")
        self._check_treatment()

    def _check_treatment(self) -> None:
        if self.crop_padding < 0:
            raise UserError(f"expected crop_padding >= 0 for {self.name}, got {self.crop_padding}")
        if self.train_x.ndim != 4 and (self.crop_padding or self.flip):
            raise UserError(
                f"expected images [N, C, H, W] in {self.name} for crop_padding="
                f"{self.crop_padding} and flip={self.flip}, got rows of shape {self.in_shape}"
            )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise UserError(
                f"expected {self.num_classes} class names for {self.name} or none, "
                f"got {len(self.class_names)}"
            )

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one row, `(C, H, W)` for an image."""
        return tuple(self.train_x.shape[1:])

    def subset(self, limit_train: int | None = None, limit_test: int | None = None) -> "Dataset":
        """The first rows only, which are a fair sample where the rows are in random order.

        Mean and standard deviation are those of the rows that stay, as if the others had never
        been there.

        Args:
            limit_train: number of training rows to keep; None keeps all.
            limit_test: number of test rows to keep; None keeps all.

        Returns:
            A data set whose tensors are views of this one's.

        Raises:
            UserError: a limit is below 1 or above the number of rows.

        Examples:
            >>> from gradwise.lab.data import load
            >>> load("digits", cache=False).subset(0)
            Traceback (most recent call last):
            gradwise.errors.UserError: expected 1 <= limit_train <= 1437 for digits, got \
limit_train=0
        """
        train = self._limit("limit_train", limit_train, len(self.train_x))
        test = self._limit("limit_test", limit_test, len(self.test_x))
        if (train, test) == (len(self.train_x), len(self.test_x)):
            return self
        train_x, train_y = self.train_x[:train], self.train_y[:train]
        test_x, test_y = self.test_x[:test], self.test_y[:test]
        mean, std = self.mean, self.std
        if train < len(self.train_x):
            mean, std = channel_statistics(train_x)
        return replace(
            self,
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            mean=mean,
            std=std,
            fingerprint=fingerprint(train_x, train_y, test_x, test_y),
        )

    def _limit(self, argument: str, limit: int | None, rows: int) -> int:
        if limit is None:
            return rows
        if not 1 <= limit <= rows:
            raise UserError(
                f"expected 1 <= {argument} <= {rows} for {self.name}, got {argument}={limit}"
            )
        return limit

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.train_x)} train, {len(self.test_x)} test, "
            f"shape {self.in_shape}, {self.num_classes} classes)"
        )


def from_arrays(
    name: str,
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    num_classes: int | None = None,
    crop_padding: int = 0,
    flip: bool = False,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Make a `Dataset` of four tensors; what follows from them is worked out here.

    Args:
        name: what to call it.
        train_x: uint8 images `[N, C, H, W]`, or float32 `[N, D, ...]` without NaN or infinity.
        train_y: int64 labels `[N]`, from 0.
        test_x: as `train_x`.
        test_y: as `train_y`.
        num_classes: number of classes; None for one more than the largest label.
        crop_padding: pixels of zeros for random crops; 0 for none.
        flip: whether images may be mirrored.
        class_names: one name a class, or empty.

    Returns:
        The checked data set, with its channel statistics and its fingerprint.

    Raises:
        UserError: something does not fit.

    Examples:
        >>> import torch
        >>> x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> from_arrays("toy", x, y, x[:3], y[:3])
        Dataset('toy', 6 train, 3 test, shape (3,), 3 classes)
    """
    check_rows(name, "train", train_x, train_y)
    check_rows(name, "test", test_x, test_y)
    for part, rows in (("train_x", train_x), ("test_x", test_x)):
        check_finite(rows, f"{part} of {name}")
    if num_classes is None:
        num_classes = int(max(train_y.max(), test_y.max())) + 1
    mean, std = channel_statistics(train_x)
    return Dataset(
        name=name,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=num_classes,
        mean=mean,
        std=std,
        crop_padding=crop_padding,
        flip=flip,
        class_names=class_names,
        fingerprint=fingerprint(train_x, train_y, test_x, test_y),
    )
