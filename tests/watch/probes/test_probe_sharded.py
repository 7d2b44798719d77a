"""No probe touches what a real DTensor keeps elsewhere, and all others are measured beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradwise.watch.probes import Directions, Histograms, Weights


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Tensor]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        yield distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch")
def test_sharded_tensors_are_left_alone(sharded: Tensor) -> None:
    tensors = [sharded, torch.ones(3)]
    weights = Weights(tensors, ["a.weight", "b.weight"], every=1)
    weights.before()
    tensors[1].add_(1.0)
    sums = weights.after()
    assert sums["update_sumsq"].isnan().tolist() == [True, False]
    assert sums["update_sumsq"][1].item() == pytest.approx(3.0)
    directions = Directions(every=1)
    directions.look(tensors)
    assert directions.look(tensors)["direction_dot"].isnan().tolist() == [True, False]
    assert Histograms().look(tensors).sum(1).tolist() == [0, 3]
