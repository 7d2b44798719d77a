"""The radio channel of over-the-air aggregation: fading and alpha-stable interference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.federated.stable import alpha_stable

Fading = Literal["rayleigh", "none"] | Callable[[int, torch.Generator], Tensor]
Entry = TypeVar("Entry", bound=Tensor | None)


class Channel:
    """What a server receives when N clients send their gradients at once over a shared radio band.

    The waves add up in the air, so that the sum costs one transmission for any N (H. Wang, Z. Chen,
    N. Pappas, H. Yang, T. Quek, H. V. Poor, ADOTA-FL, IEEE Transactions on Signal Processing 73,
    2025, arXiv 2403.06528):

        g = (1/N) sum_n h_n grad_n + xi                    (8.2)

    h_n is the gain of client n in this round, one for all its entries, drawn anew each round; xi is
    interference, independent per entry, symmetric alpha-stable (see `alpha_stable`). It is added
    behind the average, so that its size does not depend on N, while the variance that fading brings
    falls as 1/N. That (8.2) is so is told [V2]; Rayleigh gains and the parametrisation of xi are
    recalled [R]; the default of `scale` is this library's choice [X].

    Clients may send gradients, or after several local steps their pseudo-gradients
    `w_server - w_client`. Sums are taken in float32 or wider; interference that a narrower dtype
    cannot hold saturates at its largest finite value, while non-finite gradients arrive as such.

    Args:
        fading: "rayleigh", "none" (all gains equal `mean`), or a function of (N, generator) that
            gives N real gains, which are multiplied by `mean`.
        mean: > 0, the mean gain. Rayleigh gains then have variance (4/pi - 1) mean^2.
        alpha: tail index of the interference, 1 < alpha <= 2.
        scale: of the interference, >= 0, in the gradients' unit; 0 for none.
        generator: source of randomness, on the device where values are to be drawn (a CUDA one
            saves large gradients the way); from then on the channel's.
        seed: of a CPU generator of its own, instead of `generator`. With neither, the seed is
            drawn from torch's global generator, so that `torch.manual_seed` decides.

    Raises:
        UserError: where an argument is out of its bounds, or both generator and seed are given.

    Examples:
        One round: three clients, one server.

        >>> import torch
        >>> server = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(server.parameters(), lr=0.1)
        >>> channel = Channel("rayleigh", alpha=1.5, scale=0.01, seed=0)
        >>> clients = []
        >>> for _ in range(3):  # each on its own data
        ...     x, y = torch.randn(8, 4), torch.randn(8, 1)
        ...     loss = torch.nn.functional.mse_loss(server(x), y)
        ...     grads = torch.autograd.grad(loss, list(server.parameters()))
        ...     clients.append(dict(zip(["weight", "bias"], grads)))
        >>> received = channel(clients)
        >>> for name, parameter in server.named_parameters():
        ...     parameter.grad = received[name]
        >>> optimizer.step()

        Without fading and interference it is the plain average:

        >>> ideal = Channel("none", scale=0)
        >>> ideal([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])])
        tensor([2., 4.])
    """

    def __init__(
        self,
        fading: Fading = "rayleigh",
        *,
        mean: float = 1.0,
        alpha: float = 1.5,
        scale: float = 0.1,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> None:
        if not callable(fading) and fading not in ("rayleigh", "none"):
            raise UserError(
                f"expected fading to be 'rayleigh', 'none' or a function, got fading={fading!r}"
            )
        if not 0 < mean < math.inf:
            raise UserError(f"expected 0 < mean < inf, got mean={mean}")
        if not 1 < alpha <= 2:
            raise UserError(f"expected 1 < alpha <= 2, got alpha={alpha}")
        if not 0 <= scale < math.inf:
            raise UserError(f"expected 0 <= scale < inf, got scale={scale}")
        if generator is not None and seed is not None:
            raise UserError(f"expected either a generator or a seed, got both and seed={seed}")
        if generator is None:
            drawn = int(torch.randint(2**62, ())) if seed is None else seed
            generator = torch.Generator().manual_seed(drawn)
        self.fading = fading
        self.mean = float(mean)
        self.alpha = float(alpha)
        self.scale = float(scale)
        self.generator = generator

    def __repr__(self) -> str:
        return (
            f"Channel(fading={self.fading!r}, mean={self.mean}, alpha={self.alpha}, "
            f"scale={self.scale})"
        )

    @overload
    def __call__(self, clients: Sequence[Tensor]) -> Tensor: ...
    @overload
    def __call__(self, clients: Sequence[list[Entry]]) -> list[Entry]: ...
    @overload
    def __call__(self, clients: Sequence[tuple[Entry, ...]]) -> tuple[Entry, ...]: ...
    @overload
    def __call__(self, clients: Sequence[Mapping[str, Entry]]) -> dict[str, Entry]: ...

    @torch.no_grad()
    def __call__(self, clients: Sequence[Any]) -> Any:
        """Play one round.

        Draws the gains, then the interference entry by entry in the first client's order; on one
        generator the same calls give the same bits. A call that is refused draws nothing.

        Args:
            clients: one item a client, all alike: a tensor, a list or tuple of tensors, or a
                dictionary of them. None for a tensor means that this client is silent there.

        Returns:
            The received gradient in the form of one client's, on the first client's device; None
            where all are silent.

        Raises:
            UserError: where there is no client, forms, names, shapes or dtypes differ, or a
                gradient is sparse or an integer.
        """
        names, columns = _columns(clients)
        for name, column in zip(names, columns, strict=True):
            _check(name, column)
        gains = self.gains(len(clients)).tolist()
        received = [self._receive(column, gains) for column in columns]
        first = clients[0]
        if isinstance(first, Tensor):
            return received[0]
        if isinstance(first, Mapping):
            return dict(zip(first, received, strict=True))
        return received if isinstance(first, list) else tuple(received)

    def gains(self, clients: int) -> Tensor:
        """[N] h of one round, drawn from the channel's generator.

        Args:
            clients: N >= 1.

        Raises:
            UserError: where N < 1, or the fading function does not give N finite real numbers.
        """
        if clients < 1:
            raise UserError(f"expected at least 1 client, got {clients}")
        if callable(self.fading):
            drawn = self.fading(clients, self.generator)
            if drawn.shape != (clients,) or drawn.is_complex() or not drawn.isfinite().all():
                raise UserError(f"expected fading to give {clients} finite real gains, got {drawn}")
            return drawn * self.mean
        device = self.generator.device
        if self.fading == "none":
            return torch.full((clients,), self.mean, device=device)
        uniform = torch.rand(clients, generator=self.generator, device=device)
        return (-4 / math.pi * (1 - uniform).log()).sqrt() * self.mean

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state, for resuming; safe for `weights_only` loading."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called; the settings are those of this channel.

        Raises:
            UserError: where there is no state of a generator of this device.
        """
        try:
            self.generator.set_state(state_dict["generator"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"expected the state of a {self.generator.device.type} generator, got "
                f"{', '.join(map(str, state_dict)) or 'nothing'}"
            ) from error

    def _receive(self, column: Sequence[Tensor | None], gains: Sequence[float]) -> Tensor | None:
        like = next((g for g in column if g is not None), None)
        if like is None:
            return None
        total = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        for grad, gain in zip(column, gains, strict=True):
            if grad is not None:
                total.add_(grad.to(total), alpha=gain)
        total.div_(len(column))
        if self.scale == 0:
            return total.to(like.dtype)
        flat = torch.view_as_real(total) if total.is_complex() else total
        noise = alpha_stable(
            flat.shape,
            self.alpha,
            self.scale,
            generator=self.generator,
            dtype=flat.dtype,
            device=flat.device,
        )
        clean = flat.isfinite()
        flat.add_(noise)
        most = torch.finfo(like.dtype).max
        torch.where(clean, flat.clamp(-most, most), flat, out=flat)
        return total.to(like.dtype)


def _columns(clients: Sequence[Any]) -> tuple[list[str], list[list[Any]]]:
    """What the clients send, sorted by entry, with a name for each."""
    if not len(clients):
        raise UserError("expected at least 1 client, got none")
    first = clients[0]
    if isinstance(first, Tensor):
        keys: list[Any] = []
    elif isinstance(first, Mapping):
        keys = list(first)
    elif isinstance(first, list | tuple):
        keys = list(range(len(first)))
    else:
        raise UserError(
            "expected a tensor, a list, a tuple or a dictionary of tensors from each client, "
            f"got {type(first).__name__}"
        )
    for n, client in enumerate(clients):
        alike = (
            isinstance(client, Tensor)
            if isinstance(first, Tensor)
            else (type(client) is type(first) and len(client) == len(keys))
        )
        if not alike or (isinstance(client, Mapping) and set(client) != set(keys)):
            raise UserError(f"expected client {n} to send entries as client 0 does")
    if isinstance(first, Tensor):
        return ["gradient"], [list(clients)]
    return [f"entry {k!r}" for k in keys], [[client[k] for client in clients] for k in keys]


def _check(name: str, column: Sequence[Any]) -> None:
    """Refuse what is not None or a dense floating tensor, the same for all clients."""
    like: Tensor | None = None
    for n, grad in enumerate(column):
        if grad is None:
            continue
        if not isinstance(grad, Tensor):
            raise UserError(
                f"expected a tensor for {name} of client {n}, got {type(grad).__name__}"
            )
        if grad.layout != torch.strided:
            raise UserError(f"expected dense gradients, got {name} of client {n} as {grad.layout}")
        if not (grad.is_floating_point() or grad.is_complex()):
            raise UserError(
                f"expected floating gradients, got {name} of client {n} as {grad.dtype}"
            )
        like = grad if like is None else like
        if grad.shape != like.shape or grad.dtype != like.dtype:
            raise UserError(
                f"expected {name} of client {n} as clients before it send it, {like.dtype} of "
                f"shape {tuple(like.shape)}, got {grad.dtype} of shape {tuple(grad.shape)}"
            )
