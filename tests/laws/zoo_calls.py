"""More of the zoo: what a forward does besides convolving, how it is called and what it returns.

As in zoo.py, one thing a network, and its units worked out by hand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import Net, cases, conv

TWO = (2, 2, 8, 8, 8)
CASES, case = cases()


@case(units=4 + 4 + 4 + 3)
def dense_blocks() -> nn.Module:  # each reads all before it, and concatenations are concatenated again: nothing is tied
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(m.a(x))
        b = torch.cat([x, F.relu(m.b(torch.cat([x, a], 1)))], 1)
        return m.d(torch.cat([b, F.relu(m.c(torch.cat([a, b], 1)))], 1))

    return Net(run, a=conv(2, 4), b=conv(6, 4), c=conv(10, 4), d=conv(10, 3))


@case(units=4 + 5 + 3)
def channel_slices() -> nn.Module:  # halves by their index: the same place of both
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        half = y.shape[1] // 2
        return m.c(F.relu(m.b(y[:, :half] - y[:, half:])))

    return Net(run, a=conv(2, 8), b=conv(4, 5), c=conv(5, 3))


@case(units=6 + 4 + 3)
def in_place() -> nn.Module:  # activations and sums that overwrite
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu_(m.a(x))
        z = m.c(F.elu_(m.b(y)))
        z += y
        return m.d(z.relu_())

    return Net(run, a=conv(2, 6), b=conv(6, 4), c=conv(4, 6), d=conv(6, 3))


@case(units=6 + 3)
def detached() -> nn.Module:  # autograd does not see that the gate is tied
    return Net(lambda m, x: m.b(F.relu(m.a(x)) * torch.sigmoid(m.g(x.detach()).detach())), a=conv(2, 6), g=conv(2, 6),
               b=conv(6, 3))  # fmt: skip


@case(units=6 + 4 + 3)
def checkpointed() -> nn.Module:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        y = y + checkpoint(lambda t: m.c(F.relu(m.b(t))), y, use_reentrant=False)
        return m.d(F.relu(y))

    return Net(run, a=conv(2, 6), b=conv(6, 4), c=conv(4, 6), d=conv(6, 3))


@case(units=6 + 8 + 5 + 3)
def recurrent() -> nn.Module:  # a GRU over frames: the same place of its three gates and of its state
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        frames = F.relu(m.cnn(x)).mean((3, 4)).transpose(1, 2)
        return m.head(F.relu(m.hidden(m.gru(frames)[0][:, -1])))

    return Net(run, cnn=conv(2, 6), gru=nn.GRU(6, 8, batch_first=True), hidden=nn.Linear(8, 5), head=nn.Linear(5, 3))


@case(units=6 + 6 + 12 + 3, fixed=("contracted with computed values (attention)",))
def attention() -> nn.Module:  # one head over voxels: queries and keys are contracted and stay, values follow the stem
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool3d(F.relu(m.stem(x)), 4)
        t = y.flatten(2).transpose(1, 2)
        q, k, v = m.q(t), m.k(t), m.v(t)
        t = t + torch.softmax(q @ k.transpose(1, 2), -1) @ v
        t = t + m.down(F.gelu(m.up(t)))
        return m.head(t.mean(1))

    return Net(run, stem=conv(2, 6), q=nn.Linear(6, 6), k=nn.Linear(6, 6), v=nn.Linear(6, 6), up=nn.Linear(6, 12),
               down=nn.Linear(12, 6), head=nn.Linear(6, 3))  # fmt: skip


class Positions(nn.Module):
    """MViT's relative positions: a table of vectors, looked up by the distance of every pair of voxels along an axis."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * size - 1, width))
        self.register_buffer("distance", torch.arange(size)[:, None] - torch.arange(size) + size - 1)

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bhwc,hkc->bhwk", q, self.table[self.distance])


@case(units=6 + 6 + 3, fixed=("contracted with computed values (attention)",))
def relative_positions() -> nn.Module:  # the table is no layer: none of its axes is that of the pairs
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool3d(F.relu(m.stem(x)), (8, 1, 1))[:, :, 0].permute(0, 2, 3, 1)
        q = m.q(y)
        weights = torch.softmax(torch.einsum("bhwc,bkwc->bhwk", q, q) + m.positions(q), -1)
        return m.head(torch.einsum("bhwk,bkwc->bhwc", weights, y).mean((1, 2)))

    return Net(run, stem=conv(2, 6), q=nn.Linear(6, 6), positions=Positions(8, 6), head=nn.Linear(6, 3))


@case(units=6 + 4 + 3 + 2)
def returns_a_dict() -> nn.Module:  # and a list with None in it
    def run(m: Any, x: torch.Tensor) -> Any:
        y = F.relu(m.b(F.relu(m.a(x))))
        return {"out": m.c(y), "aux": [None, m.d(y)]}

    return Net(run, a=conv(2, 6), b=conv(6, 4), c=conv(4, 3), d=conv(4, 2))


class Two(nn.Module):
    """Two inputs, one body."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(2, 6), conv(2, 5), conv(11, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([F.relu(self.a(left)), F.relu(self.b(right))], 1))


@case(units=6 + 5 + 3, shape=(TWO, TWO))
def two_inputs() -> nn.Module:
    return Two()


@case(units=6 + 5 + 3, shape={"right": TWO, "left": TWO})
def inputs_by_name() -> nn.Module:
    return Two()


@case(units=6 + 5 + 3, shape=(2, 2, 8, 8))
def unpooled() -> nn.Module:  # SegNet: the places of the maxima belong to the channels
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y, where = F.max_pool2d(F.relu(m.a(x)), 2, return_indices=True)
        return m.c(F.relu(m.b(F.max_unpool2d(y, where, 2))))

    return Net(run, a=nn.Conv2d(2, 6, 3, padding=1), b=nn.Conv2d(6, 5, 3, padding=1), c=nn.Conv2d(5, 3, 1))


@case(units=6 + 5 + 3, shape=(2, 2, 8, 8))
def unfolded() -> nn.Module:  # windows as channels: C * 3 * 3, channel first
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.unfold(F.relu(m.a(x)), 2, stride=2) * 0.5
        return m.c(F.relu(m.b(F.fold(y, (8, 8), 2, stride=2))))

    return Net(run, a=nn.Conv2d(2, 6, 3, padding=1), b=nn.Conv2d(6, 5, 3, padding=1), c=nn.Conv2d(5, 3, 1))


@case(units=6 + 5 + 3)
def transposed_in_place() -> nn.Module:  # as recurrent layers do it; as many channels as slices
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(m.a(x)[:, :, :6].contiguous().transpose_(1, 2))
        return m.c((F.relu(m.b(y.transpose(1, 2))) * 1).unsqueeze_(1).squeeze_(1))

    return Net(run, a=conv(2, 6), b=conv(6, 5), c=conv(5, 3))


@case(units=8 + 6 + 3, shape=(2, 3, 4))
def recurrent_alone() -> nn.Module:  # a GRU with its batch first turns its output in place
    return Net(lambda m, x: m.b(m.gru(F.relu(m.a(x)))[0]), a=nn.Linear(4, 8), gru=nn.GRU(8, 6, batch_first=True),
               b=nn.Linear(6, 3))  # fmt: skip
