"""Modules as a user writes them: a regression with a loader, a language model, and mistakes."""

REGRESSION = """
import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def tensors():
    torch.manual_seed(3)
    x = torch.randn(96, 5)
    return x, x @ torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0]) + 0.1 * torch.randn(96)

def arrays():
    x, y = tensors()
    return x.numpy().astype("float64"), y.numpy().astype("float64")

def loader():
    print("loading", end="")
    return DataLoader(TensorDataset(*tensors()), batch_size=16, shuffle=True,
                      generator=torch.Generator().manual_seed(0))

def rows():
    return [(x, y) for x, y in zip(*tensors())]

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 96
    def __getitem__(self, at):
        x, y = tensors()
        return x[at], y[at]

def four():
    x, y = tensors()
    return x[:64], y[:64], x[64:], y[64:]

def classes():
    x, y = tensors()
    return x[:64], (y[:64] > 0).long(), x[64:], (y[64:] > 0).long()

def net():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))

class Shaped(nn.Module):
    def __init__(self, in_shape, width=4):
        super().__init__()
        self.inner = nn.Linear(in_shape[0], 1)
    def forward(self, x):
        print("forward")
        return self.inner(x).squeeze(1)

def huber(outputs, targets):
    return nn.functional.huber_loss(outputs.squeeze(-1), targets)
"""

TOKENS = """
import torch
from torch import nn

class Decoder(nn.Module):
    def __init__(self, vocabulary=11, width=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.block = nn.TransformerEncoderLayer(
            width, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, vocabulary)
    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.block(self.embed(tokens), src_mask=mask, is_causal=True))

def text():
    tokens = torch.randint(11, (40, 9), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]

def batches():
    x, y = text()
    return [({"tokens": x[:20]}, y[:20]), ({"tokens": x[20:]}, y[20:])]

class Named(Decoder):
    def forward(self, batch):
        return super().forward(batch["tokens"])
"""

MISTAKES = """
import torch
from torch import nn

def broken():
    raise RuntimeError("the disk is\\nelsewhere")

def nothing():
    return None

def once():
    return iter([(torch.ones(2, 3), torch.ones(2))])

def three():
    return [(torch.ones(2, 3), torch.ones(2), torch.ones(2))]

def empty():
    return []

def ragged():
    return torch.ones(4, 3), torch.ones(3)

def nan():
    return torch.full((4, 3), float("nan")), torch.ones(4)

def late():
    class Loader:
        def __iter__(self):
            yield torch.ones(2, 3), torch.ones(2)
            raise OSError("a file has gone")
    return Loader()

def fine():
    return torch.randn(8, 3), torch.randn(8)

def words():
    return torch.tensor([[1.0]]).numpy().astype(str), torch.ones(1)

def needs(width):
    return nn.Linear(3, width)

def frozen():
    return nn.Linear(3, 1).requires_grad_(False)

def narrow():
    return nn.Linear(2, 1)

def wide():
    return nn.Linear(3, 4)

def net():
    return nn.Linear(3, 1)

class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls > 2:
            raise ValueError("enough of it")
        return self.inner(x)

def vector(outputs, targets):
    return (outputs.squeeze(1) - targets) ** 2

def number(outputs, targets):
    return 3.0
"""
