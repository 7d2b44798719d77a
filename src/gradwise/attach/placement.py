"""Where the parts of one sharded tensor are: what its DTensor says, in the terms that sums need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

from gradwise.errors import UserError


@dataclass(frozen=True)
class Ring:
    """Processes that add up together: those of a device mesh, or of a group that somebody named.

    Attributes:
        group: their process group.
        size: how many they are.
        name: what they hold, for messages.
        mesh: the device mesh, or None.
        ranks: their global ranks, where there is a mesh.
    """

    group: Any
    size: int = field(compare=False)
    name: str = field(compare=False)
    mesh: Any = field(default=None, compare=False)
    ranks: tuple[int, ...] = field(default=(), compare=False)

    def all_reduce(self, values: Tensor, op: Any) -> Tensor:
        """The values of all of them put together, on every one of them.

        Args:
            values: of the same shape everywhere; may be overwritten.
            op: how they are put together.

        Raises:
            UserError: where the processes cannot be reached any more.
        """
        if not dist.is_initialized():  # a group may outlive that, but not all its processes
            raise _gone(self.name)
        device = values.device
        if self.mesh is not None and self.mesh.device_type != device.type:
            # Gradients that were offloaded to the host: their group speaks by its own devices.
            values = values.to(self.mesh.device_type)
        values = values.contiguous()
        try:
            dist.all_reduce(values, op, group=self.group)
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the processes that hold {self.name} cannot be reached: {reason}"
            ) from error
        return values.to(device)


@dataclass(frozen=True)
class Placement:
    """What part of a tensor is here.

    Attributes:
        name: the tensor's.
        ring: who holds the other parts; None where the whole tensor is here.
        placements: as the DTensor has them, () for a plain tensor.
        first_row: the row of the whole at which the part here begins.
        counts: whether this process adds the part to the sums; of several that hold the same one
            only the first does.
    """

    name: str
    ring: Ring | None = None
    placements: tuple[Any, ...] = ()
    first_row: int = 0
    counts: bool = True

    @property
    def sharded(self) -> bool:
        """Whether parts of it are elsewhere."""
        return not all(one.is_replicate() for one in self.placements)

    def part(self, grad: Any) -> Tensor:
        """The part of a gradient that is here.

        Raises:
            UserError: where it is placed otherwise than its parameter.
        """
        if not hasattr(grad, "to_local"):
            if self.ring is not None:
                raise UserError(
                    f"expected gradient {self.name!r} to be a DTensor as its parameter is, got a "
                    "plain tensor"
                )
            whole: Tensor = grad
            return whole
        if self.ring is None:
            raise UserError(
                f"gradient {self.name!r} is a DTensor and its parameter is not: make the optimizer "
                "after fully_shard or parallelize_module"
            )
        if grad.placements != self.placements or grad.device_mesh != self.ring.mesh:
            raise UserError(
                f"expected gradient {self.name!r} to be placed as its parameter, "
                f"{_told(self.placements)} on {self.ring.mesh}, got {_told(grad.placements)} on "
                f"{grad.device_mesh}"
            )
        local: Tensor = grad.to_local()
        return local

    def first_row_within(self, rows: int) -> int:
        """`first_row`, or the last row where the part here is empty and begins behind the end."""
        return min(self.first_row, rows - 1)


def placement_of(param: Any, name: str) -> Placement:
    """Where the parts of a parameter are.

    Args:
        param: plain, or a DTensor.
        name: the parameter's.

    Raises:
        UserError: for a placement whose parts are no parts of the values.
    """
    if getattr(param, "_is_flat_param", False):
        raise UserError(
            f"parameter {name!r} is FullyShardedDataParallel's flat one, in which layers cannot be "
            "told apart: use torch.distributed.fsdp.fully_shard"
        )
    if not hasattr(param, "to_local"):
        return Placement(name)
    mesh, placements = param.device_mesh, tuple(param.placements)
    for one in placements:
        if one.is_partial():
            raise UserError(
                f"parameter {name!r} has the placement {one}: expected Shard or Replicate on "
                "every dimension of its mesh"
            )
    if not dist.is_initialized():
        raise _gone(repr(name))
    _check_strides(param, name)
    here = mesh.get_coordinate()
    if here is None:
        raise UserError(
            f"parameter {name!r} is on {mesh}, which this process is no part of: leave it out of "
            "this process's optimizer"
        )
    if all(one.is_replicate() for one in placements):
        return Placement(name, _ring(mesh, name), placements)
    counts = all(at == 0 for at, one in zip(here, placements, strict=True) if one.is_replicate())
    return Placement(name, _ring(mesh, name), placements, _first_row(param), counts)


def check_group(group: Any) -> None:
    """Refuse what is no group of this process and others.

    Args:
        group: a `process_group` that somebody gave.

    Raises:
        UserError: where it is none, was destroyed, or does not have this process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise UserError(
            "expected process_group of processes that can be reached, got one before "
            "torch.distributed.init_process_group or after destroy_process_group"
        )
    try:
        rank = dist.get_rank(group)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"expected process_group to be a torch.distributed process group, such as "
            f"mesh.get_group() gives, got {type(group).__name__}"
        ) from error
    if rank < 0:
        raise UserError(
            f"expected process_group to have this process in it, got one without rank "
            f"{dist.get_rank()}: pass the group of which it is a member"
        )


def _gone(name: str) -> UserError:
    return UserError(
        f"the processes that hold {name} cannot be reached: the process group was destroyed"
    )


def _check_strides(param: Any, name: str) -> None:
    """Refuse parts whose rows are not next to each other in the whole.

    FSDP2 over tensor parallel says by a stride that the later dimensions of the mesh cut first;
    then they are.
    """
    sizes, placements = param.device_mesh.shape, param.placements
    for i, one in enumerate(placements):
        stride = getattr(one, "split_factor", None)
        if stride is None or one.dim != 0:
            continue
        later = [n for n, p in zip(sizes[i + 1 :], placements[i + 1 :], strict=True)
                 if getattr(p, "dim", None) == 0]  # fmt: skip
        if stride != math.prod(later):
            raise UserError(
                f"parameter {name!r} has the placement {one}, which deals its rows out in turns: "
                "expected Shard or Replicate, so that each process has rows in a row"
            )


def _first_row(param: Any) -> int:
    """The row of the whole tensor at which the part here begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if param.dim() == 0:
        return 0
    shape, offset = compute_local_shape_and_global_offset(
        param.shape, param.device_mesh, param.placements
    )
    local = tuple(param.to_local().shape)
    if tuple(shape) != local:
        raise UserError(f"expected a part of shape {tuple(shape)} of a DTensor, got {local}")
    return int(offset[0])


_GROUPS: dict[tuple[Any, ...], Any] = {}  # a process group is dear, and parameters are many


def _ring(mesh: Any, name: str) -> Ring:
    """The processes of a mesh."""
    ranks = tuple(mesh.mesh.flatten().tolist())
    try:
        group = _group(mesh, ranks)
    except (RuntimeError, ValueError) as error:  # of a mesh that is older than the processes' group
        raise _gone(repr(name)) from error
    return Ring(group, len(ranks), repr(name), mesh, ranks)


def _group(mesh: Any, ranks: tuple[int, ...]) -> Any:
    """One group of all processes of a mesh, made once."""
    if mesh.ndim == 1:
        return mesh.get_group()
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    # The world is part of the key: after init_process_group anew, old groups are of no use.
    key = (id(dist.group.WORLD), ranks)
    if key not in _GROUPS:
        _GROUPS[key] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _GROUPS[key]


def _told(placements: Any) -> str:
    return ", ".join(map(str, placements))


def spread_over_processes(params: list[Tensor]) -> bool:
    """Whether any of them is sharded, or another kind of tensor that says where its parts are."""
    return any(hasattr(p, "to_local") or getattr(p, "_is_flat_param", False) for p in params)
