"""Symmetric alpha-stable random values, the heavy-tailed noise of a shared radio band."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.errors import UserError


def alpha_stable(
    shape: Sequence[int],
    alpha: float,
    scale: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent symmetric alpha-stable values: characteristic function exp(-|scale u|^alpha).

    After J. Chambers, C. Mallows, B. Stuck, JASA 71(354), 1976, with U uniform on (-pi/2, pi/2) and
    W exponential of mean 1, alpha written a:

        X = scale sin(a U) / cos(U)^(1/a) (cos(U - a U) / W)^((1 - a) / a)

    alpha = 2 is normal with variance 2 scale^2, alpha = 1 is Cauchy with quartiles at +-scale.
    Below 2 the p-th absolute moment is infinite for p >= alpha: look at medians and quantiles, not
    at means of squares. Computed in float64 on a logarithmic scale (float32 where the device has
    no float64); what the dtype cannot hold becomes its largest finite value, never inf or NaN.

    Args:
        shape: of the result.
        alpha: tail index, 0 < alpha <= 2; smaller is heavier.
        scale: >= 0, in the result's unit.
        generator: source of randomness; torch's global one of the device where None.
        dtype: floating; torch's default where None.
        device: of the result; the generator's where None, torch's default without one. Values are
            drawn on the generator's device and moved.

    Raises:
        UserError: where alpha or scale is out of its bounds or dtype not floating.

    Examples:
        >>> import torch
        >>> noise = alpha_stable((100_000,), 1.0, 3.0, generator=torch.Generator().manual_seed(0))
        >>> noise.quantile(0.75).round(decimals=1)
        tensor(3.)
    """
    if not 0 < alpha <= 2:
        raise UserError(f"expected 0 < alpha <= 2, got alpha={alpha}")
    if not 0 <= scale < math.inf:
        raise UserError(f"expected 0 <= scale < inf, got scale={scale}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise UserError(f"expected a floating dtype, got dtype={dtype}")
    if device is None:
        device = torch.get_default_device() if generator is None else generator.device
    source = torch.device(device) if generator is None else generator.device
    wide = torch.float32 if source.type == "mps" else torch.float64
    uniform = torch.rand(tuple(shape), generator=generator, dtype=wide, device=source)
    angle = (uniform - 0.5) * math.pi
    waiting = torch.empty_like(angle).exponential_(generator=generator)
    if scale == 0:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    if alpha == 1:
        size = angle.tan().abs().log()  # (1 - a) / a = 0: W has no part in it
    else:
        size = (
            (alpha * angle).sin().abs().log()
            - angle.cos().log() / alpha
            + (((1 - alpha) * angle).cos().log() - waiting.log()) * ((1 - alpha) / alpha)
        )
    most = min(torch.finfo(dtype).max, torch.finfo(wide).max)
    values = (size + math.log(scale)).exp().clamp(max=most) * angle.sign()
    return values.to(device=device, dtype=dtype)
