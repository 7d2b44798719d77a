"""Sparse gradients beside dense ones: scaled like them, never shifted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradwise as gw
from attach.loops import SGD, TRANSFORMS, Feed, close, same, values
from gradwise.transforms import Center, ClipNorm, Transform, chain


def embed(sparse: bool, *transforms: Transform) -> tuple[gw.Attachment, list[Tensor], list[Tensor]]:
    """One step of an embedding and a linear layer: the attachment, parameters before and after."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    attachment = gw.attach(optimizer, *transforms, model=model)
    before = values(model)
    model(torch.tensor([[0, 3, 3], [8, 0, 1]])).square().sum().backward()
    assert model[0].weight.grad.is_sparse == sparse
    optimizer.step()
    assert model[0].weight.grad.is_sparse == sparse
    return attachment, before, values(model)


@pytest.mark.parametrize("key", ["none", "autoscale", "center", "znorm", "clip", "zclip"])
def test_what_is_measured_does_not_depend_on_how_a_gradient_is_stored(key: str) -> None:
    sparse, _, _ = embed(True, TRANSFORMS[key]())
    dense, _, _ = embed(False, TRANSFORMS[key]())
    assert sparse.moments is not None
    assert dense.moments is not None
    assert sparse.moments.count.tolist() == dense.moments.count.tolist() == [36, 12, 3]
    torch.testing.assert_close(sparse.moments.m2, dense.moments.m2, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(sparse.moments.mean, dense.moments.mean, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("key", ["none", "clip", "zclip", "autoclip"])
def test_scales_reach_sparse_gradients(key: str) -> None:
    _, _, sparse = embed(True, TRANSFORMS[key]())
    _, _, dense = embed(False, TRANSFORMS[key]())
    assert close(sparse, dense)


@pytest.mark.parametrize("key", ["autoscale", "center", "center-row", "znorm"])
def test_shifts_leave_sparse_gradients_out(key: str) -> None:
    _, before, sparse = embed(True, TRANSFORMS[key]())
    _, _, plain = embed(True)
    assert same(sparse[:1], plain[:1])
    assert not same(sparse[1:2], plain[1:2])
    assert not same(sparse[:1], before[:1])


def test_a_chain_shifts_the_dense_and_scales_all() -> None:
    attachment, before, after = embed(True, Center(), ClipNorm(0.5))
    assert attachment.affine.scale is not None
    _, _, plain = embed(True)
    moved, step = after[0] - before[0], plain[0] - before[0]
    torch.testing.assert_close(moved, step * attachment.affine.scale.float())


@pytest.mark.parametrize("key", ["autoscale", "center-row", "clip", "center+clip"])
def test_a_gradient_that_is_sparse_at_times(key: str) -> None:
    def run(by_function: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
        optimizer = SGD(model.parameters(), lr=0.1)
        feed = Feed(model, chain(TRANSFORMS[key]()))
        if not by_function:
            gw.attach(optimizer, TRANSFORMS[key]())
        for sparse in (False, True, False, True):
            model.zero_grad()
            model[0].sparse = sparse
            model(torch.tensor([[0, 3, 3], [8, 0, 1]])).square().sum().backward()
            assert model[0].weight.grad.is_sparse == sparse
            if by_function:
                feed()
            optimizer.step()
        return values(model)

    assert same(run(by_function=False), run(by_function=True))
