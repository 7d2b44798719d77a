"""gradwise's optimizers with sharded parameters: what they do with whole ones."""

import pytest
import spread_models as spread
import torch
import torch.distributed as dist
from torch import nn

import gradwise as gw
from gradwise.errors import UserError

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

OPTIM = gw.optim
CASES = [
    (OPTIM.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (OPTIM.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (OPTIM.AdamW, {"lr": 0.01}),
    (OPTIM.SGDF, {"lr": 0.1}),
    (OPTIM.AdaMomentum, {"lr": 0.01}),
    (OPTIM.AdaGradOTA, {"lr": 0.01}),
    (OPTIM.AdamOTA, {"lr": 0.01}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.AdamW, {"lr": 0.01, "foreach": False}),
]


def every_optimizer(rank, world, kind):
    transforms = spread.TRANSFORMS["autoscale"]
    for make, options in CASES:
        ways = (
            ({}, {"foreach": True}, {"foreach": False}) if make.__module__[:5] != "torch" else ({},)
        )
        for way in ways:
            expected = spread.model()
            reference, _ = spread.train(expected, transforms, make, **options, **way)
            net = spread.spread(kind, world, spread.model())
            attachment, optimizer = spread.train(net, transforms, make, **options, **way)
            spread.compare(attachment, net, reference, expected, 5e-6)
            for param, state in optimizer.state.items():
                for key, value in state.items():
                    if value.dim():  # sharded as the parameter is, for distributed checkpoints
                        assert type(value) is type(param.data), (make, key)


@pytest.mark.parametrize(("kind", "world"), [("fsdp", 2), ("both", 4)])
def test_as_with_whole_parameters(kind, world, tmp_path):
    spread.run(world, every_optimizer, kind, folder=tmp_path)


def whole_ones_only(rank, world):
    for make in (OPTIM.HGM, OPTIM.AdaRem, OPTIM.ImplicitSGD):
        net = spread.spread("fsdp", world, spread.model())
        with pytest.raises(UserError, match=rf"got sharded ones .*: {make.__name__} relates"):
            make(net.parameters())
        plain = nn.Linear(2, 2)
        optimizer = make(plain.parameters())
        with pytest.raises(UserError, match="got sharded ones"):
            optimizer.add_param_group({"params": list(net.parameters())})
        assert len(optimizer.param_groups) == 1


def test_methods_that_relate_values_need_whole_parameters(tmp_path):
    spread.run(2, whole_ones_only, folder=tmp_path)
