"""The checksums notice whatever would make a comparison unfair."""

import copy

import pytest
import torch
from torch import nn

from gradwise.lab.fairness import BatchChecksum, model_checksum
from gradwise.lab.seeding import MAX_SEED, derived_seed, seed_everything

CPU = torch.device("cpu")


def checksum(*batches):
    total = BatchChecksum(CPU)
    for inputs, targets in batches:
        total.add(inputs, targets)
    return total.value


@pytest.fixture
def batch():
    return torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 1])


def changes(x, y):
    order = [1, 0, 2, 3, 4, 5]
    one_bit = x.clone()
    one_bit.view(torch.int32)[3, 1, 2, 2] ^= 1
    return {
        "rows swapped": (x[order], y[order]),
        "targets swapped": (x, y[order]),
        "inputs swapped": (x[order], y),
        "a target changed": (x, y + (torch.arange(6) == 4)),
        "mirrored": (x.flip(3), y),
        "one row mirrored": (torch.cat([x[:1].flip(3), x[1:]]), y),
        "shifted": (x.roll(1, 3), y),
        "one bit": (one_bit, y),
        "scaled": (x * 1.0001, y),
        "one row less": (x[:-1], y[:-1]),
    }


@pytest.mark.parametrize("change", changes(torch.zeros(6, 3, 4, 4), torch.zeros(6)))
def test_a_change_is_noticed(batch, change):
    assert checksum(batch) != checksum(changes(*batch)[change])


def test_soft_targets_count(batch):
    x, y = batch
    soft = nn.functional.one_hot(y, 3).float()
    mixed = torch.lerp(soft, soft.flip(0), 0.25)
    sums = {checksum((x, t)) for t in (y, soft, mixed, mixed.flip(1), mixed.flip(0))}
    assert len(sums) == 5


def test_the_order_of_batches_counts(batch):
    other = (batch[0] + 1, batch[1])
    assert checksum(batch, other) != checksum(other, batch)
    assert checksum(batch, batch) != checksum(batch)


def test_memory_format_and_strides_do_not_count(batch):
    x, y = batch
    assert checksum((x.contiguous(memory_format=torch.channels_last), y)) == checksum(batch)
    wide = torch.randn(6, 3, 4, 8)
    assert checksum((wide[..., ::2], y)) == checksum((wide[..., ::2].contiguous(), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 5), (6, 2, 5, 5)])
def test_any_float_and_shape(dtype, shape):
    x, y = torch.randn(shape).to(dtype), torch.arange(6)
    assert checksum((x, y)) == checksum((x.clone(), y))
    assert checksum((x, y)) != checksum((x + 1, y))


def test_goes_on_from_a_value(batch):
    total = BatchChecksum(CPU)
    total.add(*batch)
    later = BatchChecksum(CPU, total.value)
    for one in (total, later):
        one.add(batch[0] * 2, batch[1])
    assert later.value == total.value == checksum(batch, (batch[0] * 2, batch[1]))
    assert -(2**63) <= total.value < 2**63


def test_values_that_wrap_around_do_not_fail():
    x = torch.full((4, 8), torch.finfo(torch.float32).max)
    assert checksum(*[(x, torch.arange(4))] * 50) != 0


def test_model_checksum_notices_weights_buffers_names_and_types():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    base = make()
    assert model_checksum(base) == model_checksum(make())
    other = copy.deepcopy(base)
    with torch.no_grad():
        other[0].bias[2] += 1e-7
    buffer = copy.deepcopy(base)
    buffer[1].running_mean[0] = 1.0
    renamed = nn.Sequential(nn.Identity(), *make())
    wide = make().double()
    sums = {model_checksum(m) for m in (base, other, buffer, renamed, wide)}
    assert len(sums) == 5


def test_model_checksum_takes_what_is_no_tensor_and_empty_ones():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.none = nn.Parameter(torch.empty(0))
            self.flag = nn.Buffer(torch.tensor(True))
            self.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64))

        def get_extra_state(self):
            return {"text": 1}

    assert len(model_checksum(Odd())) == 64


def test_derived_seeds_are_unrelated_and_fit_the_generator():
    seeds = {
        derived_seed(purpose, seed, epoch)
        for purpose in ("order", "augment", "model")
        for seed in range(20)
        for epoch in range(50)
    }
    assert len(seeds) == 3000
    assert max(seeds) <= MAX_SEED
    # The bound is real: torch's generator on the CPU reads 32 bits.
    first, second = (
        torch.rand(3, generator=torch.Generator().manual_seed(s)) for s in (1, 1 + MAX_SEED + 1)
    )
    assert torch.equal(first, second)


def test_seed_everything_seeds_all_three():
    import random

    import numpy as np

    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
