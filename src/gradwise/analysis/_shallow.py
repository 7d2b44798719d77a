"""The shallow network of the stability paper, and its paired runs, all neighbours at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradwise.analysis._neighbours import Dataset, index_sequence, rising
from gradwise.analysis._pairs import Stability
from gradwise.analysis._passes import Progress
from gradwise.errors import UserError

CURVATURE = 4 / (3 * math.sqrt(3))  # the largest |tanh''|


class ShallowNetwork(nn.Module):
    """One hidden layer that learns, with outgoing weights that do not.

        f_W(x) = sum_{k<=m} mu_k tanh(<w_k, x>),  mu_k = +-1 / sqrt(m)               (14.1)

    of Lei, Jin and Ying, NeurIPS 2022, arXiv 2209.09298 [R], for any smooth activation; tanh,
    standard normal W and alternating signs are this library's choice.

    Args:
        dimension: of the inputs, >= 1.
        width: m >= 1.
        dtype: of the weights; torch's default where None.

    Attributes:
        weight: W, (width, dimension).
        signs: mu, (width,), a buffer.

    Raises:
        UserError: where dimension or width is below 1.

    Examples:
        >>> network = ShallowNetwork(5, 100)
        >>> network(torch.zeros(3, 5)).shape
        torch.Size([3])
    """

    signs: Tensor

    def __init__(self, dimension: int, width: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if dimension < 1 or width < 1:
            raise UserError(
                f"expected dimension >= 1 and width >= 1, got dimension={dimension} and "
                f"width={width}"
            )
        self.weight = nn.Parameter(torch.randn(width, dimension, dtype=dtype))
        self.register_buffer("signs", _signs(width).to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n,) of inputs (n, dimension)."""
        return torch.tanh(x @ self.weight.T) @ self.signs


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1/2 (f - y)^2 over the batch, the loss of (14.1).

    Args:
        outputs: f, any shape.
        targets: y, the same shape.

    Examples:
        >>> half_squared_error(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]))
        tensor(0.2500)
    """
    return (outputs - targets).square().mean() / 2


def shallow_smoothness(inputs: Tensor, targets: Tensor, width: int) -> float:
    """G for (14.4): no sample's loss 1/2 (f_W(x) - y)^2 is curved more, at any W.

        G = max_i |x_i|^2 (1 + c (1 + |y_i| / sqrt(m))),  c = max |tanh''| = 0.77        [D]

    as the Hessian is grad f grad f^T + (f - y) Hess f, with |grad f| <= |x|, |f| <= sqrt(m) and
    |Hess f| <= c |x|^2 / sqrt(m).

    Args:
        inputs: (n, d), n >= 1.
        targets: (n,).
        width: m >= 1.

    Raises:
        UserError: where the shapes are others or the width is below 1.

    Examples:
        >>> round(shallow_smoothness(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]), 100), 3)
        1.77
    """
    if inputs.ndim != 2 or len(inputs) == 0 or targets.shape != inputs.shape[:1] or width < 1:
        raise UserError(
            f"expected inputs (n, d), targets (n,) and width >= 1, got {tuple(inputs.shape)}, "
            f"{tuple(targets.shape)} and width={width}"
        )
    x, y = inputs.detach().double(), targets.detach().double()
    curved = 1 + CURVATURE * (1 + y.abs() / math.sqrt(width))
    return float((x.square().sum(1) * curved).max())


def shallow_stability(
    n: int,
    *,
    steps: Sequence[int] = (100, 400, 1600),
    replaced: int = 20,
    draws: int = 1,
    lr: float = 0.5,
    batch_size: int | None = None,
    width: int = 100,
    dimension: int = 5,
    noise: float = 0.3,
    test_samples: int = 20_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stability:
    """Measure (14.3) and the generalisation gap of the network (14.1) on samples of a teacher.

    Inputs are uniform on the unit sphere, targets tanh(<a, x>) + noise with a standard normal a.
    Descent is W <- W - lr grad L (14.2), from standard normal weights. The run on S and all those
    on its neighbours go side by side, in float64. Width, dimension, noise and steps are this
    library's experiment; the paper has none [D].

    For small losses eps^2 falls like 1/n^2 [R]: n^2 eps^2 flattens as n grows.

    Args:
        n: samples, >= 1.
        steps: where to compare, >= 0 each, rising.
        replaced: samples replaced one at a time, 1 <= replaced; the first n at most.
        draws: data sets S, each with its own replacements and initialisation, >= 1.
        lr: step size, >= 0, in squared units of the weights over the loss.
        batch_size: None for all samples; else drawn by `index_sequence`.
        width: m >= 1.
        dimension: of the inputs, >= 1.
        noise: standard deviation of the targets' noise, >= 0.
        test_samples: >= 1.
        seed: of everything; the teacher and the test samples are the same for every n.
        progress: is told the steps done and all, over all draws.

    Returns:
        With S = draws, and `smoothness` from `shallow_smoothness` over all samples.

    Raises:
        UserError: where an argument is out of its bounds, or a run is not finite.

    Examples:
        >>> small, large = (shallow_stability(n, steps=[100], width=20) for n in (10, 40))
        >>> bool(large.eps_squared < small.eps_squared), bool(large.gap < small.gap)
        (True, True)
    """
    at = rising(steps)
    counts = {"n": n, "replaced": replaced, "draws": draws, "width": width}
    counts |= {"dimension": dimension, "test_samples": test_samples}
    for name, value in {**counts, "batch_size": 1 if batch_size is None else batch_size}.items():
        if value < 1:
            raise UserError(f"expected {name} >= 1, got {name}={value}")
    for name, size in (("lr", lr), ("noise", noise)):
        if not 0 <= size < math.inf:
            raise UserError(f"expected 0 <= {name} < inf, got {name}={size}")
    count = min(replaced, n)
    world = torch.Generator().manual_seed(seed)
    teacher = torch.randn(dimension, generator=world, dtype=torch.float64)
    test = _samples(test_samples, teacher, noise, world)
    smoothness = shallow_smoothness(*test, width)
    distances, judged, seeds = [], [], []
    for draw in range(draws):
        own = int(torch.randint(2**31, (), generator=world))
        generator = torch.Generator().manual_seed(own)
        start = torch.randn(width, dimension, generator=generator, dtype=torch.float64)
        data = _samples(n, teacher, noise, generator)
        fresh = _samples(count, teacher, noise, generator)
        smoothness = max(smoothness, *(shallow_smoothness(*part, width) for part in (data, fresh)))
        batches = None if batch_size is None else index_sequence(n, at[-1], batch_size, own)
        points = descend(data, fresh, start, lr, batches, at, progress, (draw, draws))
        distances.append([(w[1:] - w[0]).square().sum((1, 2)) for w in points])
        judged.append([(_loss(w[0], *data), _loss(w[0], *test)) for w in points])
        seeds.append(own)
    moved = torch.stack([torch.stack(one) for one in distances], 1)  # (T, draws, K)
    if not bool(moved.isfinite().all()):
        raise UserError(f"expected a step size at which runs stay finite, got lr={lr}")
    losses = torch.tensor(judged, dtype=torch.float64).permute(2, 1, 0).contiguous()
    return Stability(
        tuple(at), tuple(range(count)), n, tuple(seeds), moved, losses[0], losses[1], smoothness
    )


@torch.no_grad()
def descend(
    data: Dataset,
    fresh: Dataset,
    start: Tensor,
    lr: float,
    batches: Tensor | None,
    at: Sequence[int],
    progress: Progress | None,
    turn: tuple[int, int],
) -> list[Tensor]:
    """Weights (1 + K, m, d) at these steps: of the run on S, then of those on the S^(i), i < K."""
    runs = 1 + len(fresh[0])
    x, y = data[0].repeat(runs, 1, 1), data[1].repeat(runs, 1)
    for i in range(runs - 1):
        x[i + 1, i], y[i + 1, i] = fresh[0][i], fresh[1][i]
    mu, w, points = _signs(start.shape[0]), start.repeat(runs, 1, 1), []
    for step in range(at[-1] + 1):
        if step in at:
            points.append(w.clone())
            if progress is not None and at[-1] > 0:
                progress(turn[0] * at[-1] + step, turn[1] * at[-1])
        if step < at[-1]:
            rows, goal = (x, y) if batches is None else (x[:, batches[step]], y[:, batches[step]])
            hidden = torch.bmm(rows, w.mT).tanh_()  # (runs, b, m)
            error = (hidden @ mu - goal) / goal.shape[1]
            slope = (1 - hidden.square_()) * mu  # of f over <w_k, x>
            w.baddbmm_(slope.mul_(error[..., None]).mT, rows, alpha=-lr)
    return points


def _samples(count: int, teacher: Tensor, noise: float, generator: torch.Generator) -> Dataset:
    x = torch.randn(count, len(teacher), generator=generator, dtype=torch.float64)
    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True)
    spread = noise * torch.randn(count, generator=generator, dtype=torch.float64)
    return x, torch.tanh(x @ teacher) + spread


def _loss(weight: Tensor, inputs: Tensor, targets: Tensor) -> float:
    outputs = torch.tanh(inputs @ weight.T) @ _signs(len(weight))
    return float(half_squared_error(outputs, targets))


def _signs(width: int) -> Tensor:
    """mu, (m,), float64: + and - in turn."""
    mu = torch.full((width,), 1 / math.sqrt(width), dtype=torch.float64)
    mu[1::2] *= -1
    return mu
