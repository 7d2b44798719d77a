"""The state of transforms that processes have in common, where not all of them have loaded it.

A map that mixes layers is right on shards only where all processes decide the same. A checkpoint
that rank 0 alone has read (`full_state_dict` with `broadcast_from_rank0`) brings what torch knows
of to all of them, and what others than torch have added to rank 0 alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gradwise.attach.placement import Ring


def agree(rings: Iterable[Ring], known: bool, values: Sequence[Tensor]) -> list[Tensor]:
    """The values of the first process that knows any, on all of them; a collective call.

    It waits for the device, so it is for the first step together and no later one.

    Args:
        rings: the processes, the same on each of them.
        known: whether this process's values are more than a beginning.
        values: as many on each, all on one device, 0-d, or 1-d of lengths that may differ.

    Raises:
        UserError: where the processes cannot be reached.
    """
    values = list(values)
    for ring in rings:
        rank = dist.get_rank(ring.group)
        claim = torch.tensor(-rank if known else -ring.size, device=values[0].device)
        source = -int(ring.all_reduce(claim, dist.ReduceOp.MAX))
        if source == ring.size:
            continue  # nobody knows anything, and all begin alike
        mine = source == rank
        sizes = torch.tensor([v.numel() if mine else 0 for v in values], device=claim.device)
        lengths = ring.all_reduce(sizes, dist.ReduceOp.SUM).tolist()
        flat = torch.cat([v.reshape(-1).double() for v in values])
        flat = flat if mine else flat.new_zeros(sum(lengths))
        parts = torch.split(ring.all_reduce(flat, dist.ReduceOp.SUM), lengths)
        values = [
            (part if v.dim() else part.reshape(())).to(v.dtype)
            for v, part in zip(values, parts, strict=True)
        ]
        known = True
    return values
