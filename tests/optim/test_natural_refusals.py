"""What RENG and RING refuse, each in one sentence."""

import pytest
import torch
from natural_helpers import batch, both, half_squares, network, vector
from torch import nn

from gradwise.errors import UserError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr"),
        ({"rho": -0.1}, "0 <= rho"),
        ({"damping": 0.0}, "damping > 0"),
        ({"momentum": -0.1}, "momentum"),
        ({"factor_decay": 1.0}, "factor_decay < 1"),
        ({"factor_every": 0}, "factor_every >= 1"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"fisher": "exact"}, "'empirical' or 'identity'"),
        ({"reduction": "none"}, "'mean' or 'sum'"),
        ({"max_dim": 0}, "max_dim"),
        ({"newton_tol": 0.0}, "newton_tol"),
        ({"newton_iterations": 0}, "newton_iterations"),
    ],
)
@both
def test_options_out_of_bounds(cls, options, words):
    model = nn.Linear(2, 2)
    if "'" not in words:  # words of a closed choice are the type checker's at run time
        with pytest.raises(UserError, match=words):
            cls(model, **options)
    with pytest.raises(UserError, match=words):
        cls([{"params": model.parameters(), **options}], model=model)


@both
def test_models_that_it_cannot_work_on(cls):
    linear = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"model= .* got none"):
        cls(linear.parameters())
    with pytest.raises(UserError, match="got Sequential"):
        cls(linear.parameters(), model=nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UserError, match="complex"):
        cls(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(UserError, match="DataParallel"):
        cls(nn.DataParallel(linear))
    optimizer = cls(linear.parameters(), model=linear)
    with pytest.raises(UserError, match="complex"):
        optimizer.add_param_group({"params": [torch.zeros(2, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1


@both
def test_closures_that_are_none(cls):
    model = network([3, 2])
    optimizer = cls(model)
    closure = half_squares(model, *batch(4, 3, 2))
    before = vector(list(model.parameters())).clone()
    for wrong, words in (
        (None, "closure=None"),
        (lambda: 1.0, "got 1.0"),
        (lambda: model(batch(4, 3, 2)[0]), r"shape \(4, 2\)"),
        (lambda: closure().detach(), "depends on no parameter"),
        (lambda: (closure().backward(), closure())[1], "wrote gradients"),
    ):
        with pytest.raises(UserError, match=words):
            optimizer.step(wrong)
    assert torch.equal(vector(list(model.parameters())), before)


@both
def test_sparse_gradients_are_refused(cls):
    model = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 1))
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        cls(model, rho=0.0).step(lambda: model(torch.tensor([1, 2])).sum())
