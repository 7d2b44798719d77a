"""VGG-16-BN and the perceptron: sizes, order of layers, names."""

import itertools

import torch
from torch import nn

from gradwise.lab.models import build


def test_vgg_is_configuration_d():
    model = build("vgg16bn", num_classes=10, in_shape=(3, 32, 32))
    kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.MaxPool2d: "M", nn.Linear: "fc"}
    order = [
        f"{kinds[type(m)]}{getattr(m, 'out_channels', '')}"
        for m in model.modules()
        if type(m) in kinds
    ]
    expected = []
    for entry in (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"):
        expected += ["M"] if entry == "M" else [f"conv{entry}", "bn"]
    assert order == [*expected, "fc"]
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 13
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in convs)


def test_vgg_parameter_count():
    model = build("vgg16bn", num_classes=10, in_shape=(3, 32, 32))
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    convs = sum(9 * a * b for a, b in itertools.pairwise(widths))
    norms = 2 * sum(widths[1:])
    assert convs == 14_710_464
    assert sum(p.numel() for p in model.parameters()) == convs + norms + 512 * 10 + 10


def test_vgg_names_and_larger_images():
    model = build("vgg16bn", num_classes=7, in_shape=(1, 64, 48)).eval()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    depths = (2, 2, 3, 3, 3)
    assert names == [
        *(f"stage{s}.conv{c}" for s, d in enumerate(depths, 1) for c in range(1, d + 1)),
        "fc",
    ]
    assert model(torch.zeros(2, 1, 64, 48)).shape == (2, 7)


def test_mlp_is_two_hidden_layers_of_128():
    model = build("mlp", num_classes=10, in_shape=(1, 8, 8))
    assert [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight")] == [
        (128, 64),
        (128, 128),
        (10, 128),
    ]
    x = torch.randn(3, 1, 8, 8)
    h = x.reshape(3, 64)
    for layer in (model.hidden1, model.hidden2):
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model.fc.weight.T + model.fc.bias)


def test_mlp_does_not_mind_the_memory_format():
    model = build("mlp", num_classes=10, in_shape=(3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), model(x))
