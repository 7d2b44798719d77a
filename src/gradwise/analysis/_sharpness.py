"""The largest eigenvalues of the Hessian, from its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradwise.analysis._frozen import device_of, frozen
from gradwise.analysis._line import real_parameters
from gradwise.analysis._passes import LossFn, Progress, Source, attached_loss, gradients
from gradwise.errors import UserError

Method = Literal["lanczos", "power"]
BASIS = 20  # vectors of a Lanczos basis; up to this many parameters the Hessian is built whole


@dataclass(frozen=True, eq=False)
class Sharpness:
    """The top of the Hessian's spectrum, in units of loss over squared parameter.

    Attributes:
        values: [count] float64, the algebraically largest eigenvalues, descending.
        vector: eigenvector of the first, of length 1, one float64 tensor a trainable parameter.
        residual: |H v - lambda v| of that pair: an eigenvalue lies no farther from lambda.
        products: Hessian-vector products for it, each two backward passes over the data.
    """

    values: Tensor
    vector: tuple[Tensor, ...]
    residual: float
    products: int

    @property
    def value(self) -> float:
        """lambda_max."""
        return float(self.values[0])

    @property
    def critical_step(self) -> float:
        """2 / lambda_max: above it gradient descent is unstable; infinity without curvature."""
        return 2 / self.value if self.value > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """All but the vector as plain values."""
        return {
            "value": self.value,
            "values": self.values.tolist(),
            "critical_step": self.critical_step,
            "residual": self.residual,
            "products": self.products,
        }


def sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any],
    *,
    method: Method = "lanczos",
    count: int = 1,
    tolerance: float = 1e-3,
    max_products: int = 400,
    chunk_size: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sharpness:
    """The largest eigenvalue lambda_max of the Hessian of the mean loss, by exact products H v.

    Args:
        model: measured in evaluation mode, left as it was.
        loss_fn: of outputs and targets, the mean over a batch; differentiable twice.
        data: inputs and targets [n, ...] as two tensors, or a loader that gives the same samples in
            each pass, without augmentation.
        method: "lanczos" is scipy's `eigsh`, which holds about 20 float64 vectors as long as the
            parameters in host memory; it needs the extra "lab". "power" is power iteration, shifted
            where the most negative eigenvalue leads; it takes more products, holds a few vectors on
            the model's device and needs torch only.
        count: how many eigenvalues; 1 with "power".
        tolerance: relative accuracy of the eigenvalues with "lanczos"; with "power", of
            |H v - lambda v|, which bounds it, relative to lambda, or to lambda and the shift.
        max_products: give up after about so many.
        chunk_size: samples in one pass, for tensors.
        seed: of the vector to start with.
        progress: told (products done, max_products).

    Raises:
        UserError: where an argument is out of its bounds, a product is not finite, or there is no
            convergence within `max_products`.
        ModuleNotFoundError: with "lanczos" where scipy is not installed.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)
        >>> found = sharpness(model, torch.nn.MSELoss(), data, count=2)  # H = X^T X
        >>> found.values, found.critical_step
        (tensor([4., 1.], dtype=torch.float64), 0.5)
    """
    if method not in get_args(Method):
        raise UserError(f"expected method in {get_args(Method)}, got method={method!r}")
    if not 0 < tolerance < 1:
        raise UserError(f"expected 0 < tolerance < 1, got tolerance={tolerance}")
    if max_products < 1:
        raise UserError(f"expected max_products >= 1, got max_products={max_products}")
    product = _Product(model, loss_fn, data, chunk_size, max_products, progress)
    most = 1 if method == "power" else product.size
    if not 1 <= count <= most:
        raise UserError(f"expected 1 <= count <= {most} with {method!r}, got count={count}")
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(product.size, generator=generator, dtype=torch.float64)
    start = (start / start.norm()).to(product.device)
    # The kernels of fused attention cannot be differentiated twice.
    with frozen(model, data), sdpa_kernel(SDPBackend.MATH):
        if method == "power":
            values, vector = _power(product, start, tolerance, max_products)
        elif product.size <= max(BASIS, 2 * count):
            values, vector = _dense(product)
        else:
            values, vector = _lanczos(product, start, count, tolerance, max_products)
        residual = float((product(vector) - values[0] * vector).norm())
    return Sharpness(values[:count].cpu(), product.split(vector), residual, product.done)


class _Product:
    """v -> H v for float64 vectors [size] that hold all trainable parameters one after another."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Iterable[Any],
        chunk_size: int,
        total: int,
        progress: Progress | None,
    ) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._params = list(real_parameters(model).values())
        self.device = device_of(model)
        self.size = sum(param.numel() for param in self._params)
        self.done = 0
        self._source = Source(data, self.device, chunk_size)
        self._total, self._progress = total, progress

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """One tensor a parameter, on its device."""
        parts = torch.split(flat, [param.numel() for param in self._params])
        return tuple(v.view(p.shape).to(p.device) for v, p in zip(parts, self._params, strict=True))

    def __call__(self, flat: Tensor) -> Tensor:
        sums = torch.zeros_like(flat)
        vectors = [v.to(p.dtype) for v, p in zip(self.split(flat), self._params, strict=True)]
        samples = 0
        for inputs, targets, size in self._source:
            loss = attached_loss(self._loss_fn(self._model(inputs), targets))
            grads = gradients(loss, self._params, create_graph=True)
            # Where the gradient is constant, H has zeros and autograd nothing to go through.
            curved = [(g, v) for g, v in zip(grads, vectors, strict=True) if g.requires_grad]
            if curved:
                found = torch.autograd.grad(
                    [g for g, _ in curved],
                    self._params,
                    [v for _, v in curved],
                    allow_unused=True,
                    materialize_grads=True,
                )
                rows = [h.to(flat).flatten() for h in found]
                sums.add_(torch.cat(rows), alpha=size)
            samples += size
        sums /= samples
        if not bool(sums.isfinite().all()):
            raise UserError("expected finite second derivatives at this point, got others")
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, max(self.done, self._total))
        return sums


def _dense(product: _Product) -> tuple[Tensor, Tensor]:
    """All eigenvalues, descending, and the first one's vector, of a Hessian built column by column.

    It takes no more products than a Lanczos basis would.
    """
    columns = torch.eye(product.size, dtype=torch.float64, device=product.device)
    hessian = torch.stack([product(column) for column in columns])
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    return values.flip(0), vectors[:, -1]


def _lanczos(
    product: _Product, start: Tensor, count: int, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    try:
        from scipy.sparse import linalg
    except ModuleNotFoundError as error:
        error.msg = (
            f"{error.msg}: method='lanczos' needs pip install 'gradwise[lab]', "
            "method='power' does without"
        )
        raise
    if float(product(start).norm()) == 0.0:  # H is zero, which ARPACK takes for a mistake
        return torch.zeros(count, dtype=torch.float64), start

    def matvec(vector: Any) -> Any:
        flat = torch.from_numpy(vector.reshape(-1).copy()).to(product.device)
        return product(flat).cpu().numpy()

    shape = (product.size, product.size)
    operator = linalg.LinearOperator(shape, matvec=matvec, dtype=start.cpu().numpy().dtype)
    basis = min(product.size, max(BASIS, 2 * count + 1))
    try:
        values, vectors = linalg.eigsh(
            operator,
            k=count,
            which="LA",
            v0=start.cpu().numpy(),
            ncv=basis,
            tol=tolerance,
            maxiter=max(1, most // basis),
        )
    except linalg.ArpackNoConvergence as error:
        raise UserError(
            f"no convergence within max_products={most} at tolerance={tolerance}, raise either"
        ) from error
    order = values.argsort()[::-1].copy()
    top = torch.from_numpy(vectors[:, order[0]].copy()).to(product.device)
    return torch.from_numpy(values[order].copy()), top


def _power(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """Power iteration, at first on H, whose eigenvalue of largest magnitude leads.

    Where that is negative, or two of opposite sign share the lead, it goes on with H + rho I, whose
    eigenvalues are all positive and in the order of those of H.
    """
    vector, shift, value = start, 0.0, math.nan
    residual = earlier = math.inf
    for done in range(1, most + 1):
        image = product(vector)
        value = float(vector @ image)
        size = float(image.norm())
        residual = float((image - value * vector).norm())
        if size == 0:  # H is zero
            return torch.zeros(1, dtype=torch.float64), vector
        if residual <= tolerance * abs(value + shift) and (value >= 0 or shift > 0):
            return torch.tensor([value], dtype=torch.float64), vector
        if done == most // 4:
            earlier = residual
        # A little more than the largest magnitude, so that nothing of H + rho I is negative.
        if shift == 0.0 and value < 0 and residual <= 0.1 * size:
            shift, vector = 1.1 * size, start
            continue
        if shift == 0.0 and done >= most // 2 and residual > 0.9 * earlier:
            shift = 1.1 * size
        image = image + shift * vector
        vector = image / image.norm()
    raise UserError(
        f"no convergence within max_products={most} at tolerance={tolerance}: "
        f"lambda_max is about {value:.3g}, |H v - lambda v| is {residual:.3g}"
    )
