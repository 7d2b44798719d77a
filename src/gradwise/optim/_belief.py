"""What a Kalman filter believes about parameters, and the derivatives and algebra of an update."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.errors import UserError


class Belief(ABC):
    """The covariance P of the parameters, as one step of the filter needs it.

    Args:
        state: the optimizer's; what is missing of P begins here with the initial variance.
        groups: the group of each parameter.
        params: of all groups.
        rows: J = de/dtheta = -H as [m, numel] a parameter; None where it is 0.
        error: the residuals [m]; small matrices live on its device.
    """

    def __init__(
        self,
        state: Any,
        groups: Sequence[dict[str, Any]],
        params: Sequence[Tensor],
        rows: Sequence[Tensor | None],
        error: Tensor,
    ) -> None:
        self.groups, self.params, self.rows, self.error = groups, params, rows, error
        self.prepare(state)

    @abstractmethod
    def prepare(self, state: Any) -> None:
        """Take P out of the optimizer's state."""

    @abstractmethod
    def spread(self) -> Tensor:
        """H P H^T, [m, m]."""

    @abstractmethod
    def update(
        self, grads: Sequence[Tensor | None], whitener: Tensor, root: Tensor, ok: Tensor
    ) -> None:
        """Move the parameters by -lr P grad and take P along, where the 0-d `ok` holds.

        Args:
            grads: -H^T S^-1 e, shaped like the parameters; None where it is 0.
            whitener: T with T^T T = S^-1, [m, m].
            root: lower triangular L with L L^T = R^-1, [m, m].
            ok: 0-d bool.
        """


class Diagonal(Belief):
    """One variance a parameter value, `state[p]["variance"]`, shaped like the parameter."""

    def prepare(self, state: Any) -> None:
        """See `Belief`."""
        self.variances: list[Tensor | None] = []
        for p, group in zip(self.params, self.groups, strict=True):
            known = state[p].get("variance") if p in state else None
            if known is None and p.requires_grad:
                start = float(group["initial_variance"])
                known = state[p]["variance"] = torch.full_like(p, start, dtype=wide([p]))
            if known is not None and known.shape != p.shape:
                raise UserError(
                    f"expected a variance of shape {tuple(p.shape)}, as the parameter has, got "
                    f"one of shape {tuple(known.shape)} out of the loaded state"
                )
            self.variances.append(known)

    def spread(self) -> Tensor:
        """See `Belief`."""
        total = self.error.new_zeros(len(self.error), len(self.error))
        for row, variance in zip(self.rows, self.variances, strict=True):
            if row is not None and variance is not None:
                total += ((row * variance.reshape(-1)) @ row.T).to(total.device)
        return total

    def update(
        self, grads: Sequence[Tensor | None], whitener: Tensor, root: Tensor, ok: Tensor
    ) -> None:
        """See `Belief`."""
        parts = zip(self.groups, self.params, self.rows, self.variances, grads, strict=True)
        for group, p, row, variance, grad in parts:
            if not p.requires_grad or variance is None:
                continue
            here = ok.to(p.device)
            lr = group["lr"]
            if isinstance(lr, Tensor):
                lr = lr.to(p.device).reshape(())
            new = variance
            if row is not None and grad is not None:
                old = variance.to(row.dtype)
                _move(p, -lr * old * grad, here)
                # q = diag(P H^T S^-1 H) is below 1 but for rounding. Of 1 - lr (2 - lr) q, this
                # is the form that stays positive for any lr.
                q = old * (whitener.to(p.device) @ row).square().sum(0).view(p.shape)
                left = (1 - q).clamp_min(torch.finfo(q.dtype).eps)
                new = old * (left + (1 - lr) ** 2 * q)
            new = new + float(group["process_noise"])
            variance.copy_(torch.where(here, new, variance.to(new.dtype)))


class Full(Belief):
    """The covariance of all pairs of values, `state[first]["covariance"]`, [d, d]."""

    def prepare(self, state: Any) -> None:
        """See `Belief`."""
        first = self.params[0]
        known = state[first].get("covariance")
        if known is None:
            starts = [group["initial_variance"] for group in self.groups]
            known = torch.diag(self._by_value(starts, wide(self.params)))
            state[first]["covariance"] = known
        d = sum(p.numel() for p in self.params)
        if known.shape != (d, d):
            raise UserError(
                f"expected a covariance of shape {(d, d)}, as the parameters have, got one of "
                f"shape {tuple(known.shape)} out of the loaded state"
            )
        parts = [
            self.error.new_zeros(len(self.error), p.numel()) if row is None else row
            for p, row in zip(self.params, self.rows, strict=True)
        ]
        self.covariance: Tensor = known
        self.row = torch.cat([part.to(known.device) for part in parts], 1)
        self.prior = self.covariance.to(self.error.dtype)
        self.across: Tensor = self.prior @ self.row.T  # P J^T, [d, m]

    def spread(self) -> Tensor:
        """See `Belief`."""
        return (self.row @ self.across).to(self.error.device)

    def update(
        self, grads: Sequence[Tensor | None], whitener: Tensor, root: Tensor, ok: Tensor
    ) -> None:
        """See `Belief`."""
        prior, across = self.prior, self.across
        lr = self._by_value(self._of_moving("lr"), prior.dtype)
        flat = [
            prior.new_zeros(p.numel()) if g is None else g.reshape(-1).to(prior.device)
            for p, g in zip(self.params, grads, strict=True)
        ]
        moves = (-lr * (prior @ torch.cat(flat))).split([p.numel() for p in self.params])
        for p, move in zip(self.params, moves, strict=True):
            if p.requires_grad:
                _move(p, move.view(p.shape).to(p.device), ok.to(p.device))

        whitener, root = whitener.to(prior.device), root.to(prior.device)
        gain = lr[:, None] * ((across @ whitener.T) @ whitener)  # -K; the signs meet in pairs
        half = prior - gain @ across.T
        noise = torch.linalg.solve_triangular(root, gain.T, upper=False)  # R = L^-T L^-1
        new = half - (half @ self.row.T) @ gain.T + noise.T @ noise
        new = (new + new.T) / 2
        new.diagonal().add_(self._by_value(self._of_moving("process_noise"), new.dtype))
        self.covariance.copy_(torch.where(ok.to(new.device), new, prior))

    def _of_moving(self, option: str) -> list[float | Tensor]:
        """A group option for each parameter, 0 where it is frozen."""
        pairs = zip(self.groups, self.params, strict=True)
        return [group[option] if p.requires_grad else 0.0 for group, p in pairs]

    def _by_value(self, numbers: Sequence[float | Tensor], dtype: torch.dtype) -> Tensor:
        """One number a parameter, spread over its values: [d]."""
        parts = []
        for number, p in zip(numbers, self.params, strict=True):
            one = torch.as_tensor(number, dtype=dtype, device=self.params[0].device)
            parts.append(one.reshape(1).expand(p.numel()))
        return torch.cat(parts)


def jacobian(
    residual: Tensor, params: Sequence[Tensor], chunk_size: int | None, dtype: torch.dtype
) -> list[Tensor | None]:
    """de/dp as [m, numel] for each parameter; None where e does not depend on it.

    Args:
        residual: e, [m], with its graph, which is freed.
        params: of all groups.
        chunk_size: residuals a back pass; None for all.
        dtype: of the result.

    Raises:
        UserError: where a back pass cannot be batched or its result is sparse.
    """
    asked = [i for i, p in enumerate(params) if p.requires_grad]
    m = len(residual)
    size = min(chunk_size or m, m)
    picks = torch.eye(m, dtype=residual.dtype, device=residual.device)
    found: list[Tensor | None] = [None] * len(params)
    if not asked:
        return found
    for start in range(0, m, size):
        rest = start + size < m
        try:
            parts = _back_pass(residual, [params[i] for i in asked], picks, start, size, rest)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if size == 1:
                raise
            reason = str(error).split("\n")[0]
            raise UserError(
                f"the batched back pass fails, chunk_size=1 avoids it: {reason}"
            ) from error
        for i, part in zip(asked, parts, strict=True):
            if part is None:
                continue
            if part.layout != torch.strided:
                raise UserError(f"expected dense derivatives, got sparse ones of parameter {i}")
            rows = found[i]
            if rows is None:
                rows = found[i] = part.new_zeros(m, params[i].numel(), dtype=dtype)
            rows[start : start + size] = part.reshape(min(size, m - start), params[i].numel())
    return found


def _back_pass(
    residual: Tensor, params: Sequence[Tensor], picks: Tensor, start: int, size: int, rest: bool
) -> tuple[Tensor | None, ...]:
    """Derivatives of residuals `start` to `start + size`, which come first in their shape."""
    # One at a time goes without vmap, so that models which it cannot batch work too.
    chosen = picks[start : start + size] if size > 1 else picks[start]
    return torch.autograd.grad(
        residual,
        params,
        chosen,
        retain_graph=rest,
        allow_unused=True,
        is_grads_batched=size > 1,
    )


def gram(rows: Sequence[Tensor | None], error: Tensor) -> Tensor:
    """H H^T, [m, m]."""
    total = error.new_zeros(len(error), len(error))
    for row in rows:
        if row is not None:
            total += (row @ row.T).to(total.device)
    return total


def whiten(spread: Tensor, gram: Tensor | None, noise: float, rho: float) -> tuple[Tensor, Tensor]:
    """T with T^T T = S^-1 and lower triangular L with L L^T = R_rho^-1, both [m, m].

    S^-1 = (A + (L L^T)^-1)^-1 = L (I + L^T A L)^-1 L^T inverts nothing that could be singular.

    Args:
        spread: A = H P H^T.
        gram: H H^T; None where rho is 0.
        noise: R is this times I.
        rho: strength of the regularisation.
    """
    if gram is None:
        root = torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
    else:
        root = _root_above_one(rho / noise * gram)
    root = root / math.sqrt(noise)
    factor = _root_above_one(root.T @ spread @ root)
    return torch.linalg.solve_triangular(factor, root.T, upper=False), root


def _root_above_one(matrix: Tensor) -> Tensor:
    """Cholesky factor of I + matrix for a positive semi-definite matrix; NaN where it has none.

    The matrix comes out of products that are rounded. Where that could come near the 1, as much
    is added: large matrices of low rank would not pass for positive otherwise.
    """
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps * matrix.diagonal().amax()
    rounding = torch.where(rounding < 0.01, 0.0, rounding)
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex(matrix + (1 + rounding) * eye)
    return torch.where(info == 0, factor, torch.nan)


def _move(param: Tensor, by: Tensor, ok: Tensor) -> None:
    wide = param.to(by.dtype)
    param.copy_(torch.where(ok, wide + by, wide))


def wide(tensors: Sequence[Tensor]) -> torch.dtype:
    """Float64 where one of the tensors is, else float32: what sums are taken in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
