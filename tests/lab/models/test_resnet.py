"""The residual networks: sizes known from the paper, option A, names, and that they learn."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwise.lab.models import build
from gradwise.lab.models.resnet import BasicBlock, ZeroPadShortcut


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def paper_count(n: int, num_classes: int, in_channels: int) -> int:
    """Weights of 6n + 2 layers of 16, 32, 64 channels, two numbers a batch-norm channel."""
    count = in_channels * 16 * 9 + 2 * 16
    before = 16
    for width in (16, 32, 64):
        for _ in range(n):
            count += before * width * 9 + width * width * 9 + 4 * width
            before = width
    return count + 64 * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "count"), [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)]
)
def test_parameter_counts_for_cifar10(name, count):
    depth = int(name.removeprefix("resnet"))
    assert count == paper_count((depth - 2) // 6, 10, 3)
    model = build(name, num_classes=10, in_shape=(3, 32, 32))
    assert parameters(model) == count
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth
    assert all(m.bias is None for m in weighted if isinstance(m, nn.Conv2d))


def test_other_classes_and_channels():
    model = build("resnet20", num_classes=100, in_shape=(1, 28, 28))
    assert parameters(model) == paper_count(3, 100, 1)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 100)


def test_shortcut_is_subsampling_and_zeros():
    x = torch.randn(2, 4, 6, 6)
    out = ZeroPadShortcut(4, 7, stride=2)(x)
    assert out.shape == (2, 7, 3, 3)
    for row, column in itertools.product(range(3), range(3)):
        assert torch.equal(out[:, 1:5, row, column], x[:, :, 2 * row, 2 * column])
    assert not out[:, :1].any()
    assert not out[:, 5:].any()
    assert not list(ZeroPadShortcut(4, 8, 2).parameters())


def test_block_is_the_papers_equation():
    block = BasicBlock(4, 8, stride=2)
    for bn in (block.bn1, block.bn2):
        nn.init.uniform_(bn.weight)
        nn.init.normal_(bn.bias)
    x = torch.randn(3, 4, 8, 8)
    y = F.conv2d(x, block.conv1.weight, stride=2, padding=1)
    y = F.batch_norm(y, None, None, block.bn1.weight, block.bn1.bias, training=True).clamp(min=0)
    y = F.conv2d(y, block.conv2.weight, padding=1)
    y = F.batch_norm(y, None, None, block.bn2.weight, block.bn2.bias, training=True)
    y = (y + block.shortcut(x)).clamp(min=0)
    torch.testing.assert_close(block(x), y)
    assert isinstance(BasicBlock(8, 8).shortcut, nn.Identity)


def test_names_and_resolutions():
    model = build("resnet20", num_classes=10, in_shape=(3, 32, 32))
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert names == [
        "conv1",
        *(f"stage{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)),
        "fc",
    ]
    shapes = {}
    for stage in ("stage1", "stage2", "stage3"):
        model.get_submodule(stage).register_forward_hook(
            lambda module, args, out, stage=stage: shapes.update({stage: tuple(out.shape)})
        )
    model(torch.zeros(2, 3, 32, 32))
    assert shapes == {
        "stage1": (2, 16, 32, 32),
        "stage2": (2, 32, 16, 16),
        "stage3": (2, 64, 8, 8),
    }


def test_initial_weights_follow_kaimings_law_and_the_seed():
    torch.manual_seed(0)
    model = build("resnet20", num_classes=10, in_shape=(3, 32, 32))
    weight = model.get_submodule("stage3.2.conv2").weight.detach()
    expected = (2 / (64 * 9)) ** 0.5
    # 36,864 draws: the deviation of the estimate is 0.4 %.
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    # Fan out, not fan in: they differ in the first layer of a wider stage.
    wider = model.get_submodule("stage2.0.conv1").weight.detach()
    assert wider.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    torch.manual_seed(0)
    again = build("resnet20", num_classes=10, in_shape=(3, 32, 32))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("name", ["resnet20", "digits-resnet"])
def test_memory_format_does_not_change_the_result(name):
    model = build(name, num_classes=10, in_shape=(3, 16, 16)).eval()
    x = torch.randn(4, 3, 16, 16)
    expected = model(x)
    out = model.to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_activations_stay_in_channels_last():
    model = build("resnet20", num_classes=10, in_shape=(3, 16, 16))
    model = model.to(memory_format=torch.channels_last)
    layouts = []
    for module in model.modules():
        if isinstance(module, BasicBlock | ZeroPadShortcut):
            module.register_forward_hook(
                lambda module, args, out: layouts.append(
                    out.is_contiguous(memory_format=torch.channels_last)
                )
            )
    model(torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last))
    assert len(layouts) == 9 + 2
    assert all(layouts)


def test_every_parameter_gets_a_gradient():
    model = build("digits-resnet", num_classes=10, in_shape=(1, 8, 8))
    F.cross_entropy(model(torch.randn(16, 1, 8, 8)), torch.randint(10, (16,))).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_digits_resnet_is_small():
    model = build("digits-resnet", num_classes=10, in_shape=(1, 8, 8))
    assert 20_000 <= parameters(model) <= 40_000
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 11


def test_digits_resnet_learns_the_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    x = (x - x.mean()) / x.std()
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    train, test = order[:1437], order[1437:]
    model = build("digits-resnet", num_classes=10, in_shape=(1, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    epochs, batches = 15, 1437 // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        shuffled = train[torch.randperm(len(train))]
        for batch in shuffled[: 64 * batches].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        accuracy = (model.eval()(x[test]).argmax(1) == y[test]).float().mean().item()
    assert accuracy >= 0.97
