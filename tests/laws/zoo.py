"""Small networks, one coupling each, and how many units they have, worked out by hand.

A case is a factory, the shape(s) of its input, and `units`: the number of units with neurons (fixed ones included).
All take (N, 2, 8, 8, 8) unless they say otherwise. Every factory can be loaded by the command line: `tests/laws/zoo.py:residual`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ranp_cli.core.tensors import tensors_in

INPUT = (2, 2, 8, 8, 8)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    units: int
    shape: Any = INPUT  # of its input; a tuple or dict of shapes for several
    statistics: bool = False  # group or layer norm over pruned channels: law 1 holds for the rest
    fixed: tuple[str, ...] = ()  # why units stay, besides being input or output

    @property
    def name(self) -> str:
        return self.make.__name__


def cases() -> tuple[list[Case], Callable]:
    """An empty list of networks, and the decorator of those that join it."""
    found: list[Case] = []

    def case(units: int, **more: Any) -> Callable:
        def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
            found.append(Case(make, units, **more))
            return make

        return add

    return found, case


CASES, case = cases()


class Net(nn.Module):
    """A module whose forward is a function of (modules, x): networks of a few lines."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any], **modules: Any):
        super().__init__()
        self._run = forward
        for name, module in modules.items():
            if isinstance(module, torch.Tensor) and not isinstance(module, nn.Parameter):
                self.register_buffer(name, module)
            else:
                setattr(self, name, module)

    def forward(self, x: torch.Tensor) -> Any:
        return self._run(self, x)


def conv(i: int, o: int, k: int = 3, **kw: Any) -> nn.Conv3d:
    return nn.Conv3d(i, o, k, padding=kw.pop("padding", k // 2), **kw)


@case(units=6 + 8 + 3)
def chain() -> nn.Module:  # nothing is tied
    return nn.Sequential(
        conv(2, 6, bias=False), nn.BatchNorm3d(6), nn.ReLU(inplace=True), conv(6, 8), nn.LeakyReLU(), conv(8, 3, 1)
    )


@case(units=6 + 8 + 3)
def dilated_strided() -> nn.Module:
    return nn.Sequential(conv(2, 6, stride=2), nn.ELU(), conv(6, 8, dilation=2, padding=2), nn.SiLU(), conv(8, 3, 1))


@case(units=6 + 8 + 3)
def concatenation() -> nn.Module:  # ties nothing
    return Net(
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), torch.tanh(m.b(x))], 1)), a=conv(2, 6), b=conv(2, 8), c=conv(14, 3)
    )


@case(units=6 + 4 + 3)
def residual() -> nn.Module:  # a and c are one
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        y = y + m.c(F.relu(m.b(y)))
        return m.d(F.relu(y))

    return Net(run, a=conv(2, 6), b=conv(6, 4), c=conv(4, 6), d=conv(6, 3))


@case(units=5 + 1 + 3)
def residual_from_input() -> nn.Module:  # b is tied to the network's input: both of its neurons are one fixed unit
    return Net(lambda m, x: m.c(F.relu(x + m.b(F.relu(m.a(x))))), a=conv(2, 5), b=conv(5, 2), c=conv(2, 3))


@case(units=6 + 4 + 3 + 3)
def unet_skip() -> nn.Module:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        skip = F.relu(m.norm(m.a(x)), inplace=True)
        deep = F.relu(m.b(F.max_pool3d(skip, 2)))
        up = F.interpolate(deep, size=skip.shape[2:], mode="nearest")
        return m.out(F.relu(m.c(torch.cat([skip, up], 1))))

    return Net(run, a=conv(2, 6), norm=nn.BatchNorm3d(6), b=conv(6, 4), c=conv(10, 3), out=conv(3, 3, 1))


@case(units=6 + 4 + 3)
def transposed() -> nn.Module:
    return nn.Sequential(
        conv(2, 6, stride=2), nn.ReLU(), nn.ConvTranspose3d(6, 4, 2, 2), nn.InstanceNorm3d(4), nn.ReLU(), conv(4, 3, 1)
    )


@case(units=6 + 3)
def depthwise() -> nn.Module:  # the depthwise layer is tied to what it reads
    return nn.Sequential(conv(2, 6, 1), nn.ReLU6(), conv(6, 6, groups=6), nn.BatchNorm3d(6), nn.ReLU6(), conv(6, 3, 1))


@case(units=4 + 3)
def depthwise_multiplier() -> nn.Module:
    return nn.Sequential(conv(2, 4, 1), nn.ReLU(), conv(4, 8, groups=4), nn.ReLU(), conv(8, 3, 1))


@case(units=4 + 3 + 3)
def grouped() -> nn.Module:  # 2 groups: lanes of 8/2 inputs and of 6/2 outputs
    return nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 6, groups=2), nn.ReLU(), conv(6, 3, 1))


@case(units=4 + 3 + 3)
def grouped_transposed() -> nn.Module:
    return nn.Sequential(
        conv(2, 8, stride=2), nn.ReLU(), nn.ConvTranspose3d(8, 6, 2, 2, groups=2), nn.ReLU(), conv(6, 3, 1)
    )


@case(units=4 + 1 + 3, fixed=("a single output a group",))
def grouped_transposed_to_one() -> nn.Module:  # one output a group, of four inputs: both outputs are one fixed unit
    return nn.Sequential(
        conv(2, 8, stride=2), nn.ReLU(), nn.ConvTranspose3d(8, 2, 2, 2, groups=2), nn.ReLU(), conv(2, 3, 1)
    )


@case(units=6 + 3)
def depthwise_transposed() -> nn.Module:
    return nn.Sequential(
        conv(2, 6, stride=2), nn.ReLU(), nn.ConvTranspose3d(6, 6, 2, 2, groups=6), nn.ReLU(), conv(6, 3, 1)
    )


@case(units=4 + 5 + 3)
def flatten_linear() -> nn.Module:
    return nn.Sequential(
        conv(2, 4), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3)
    )


@case(units=5 + 6 + 4 + 3)
def linear_to_volume() -> nn.Module:  # 6 channels of 2^3: the eight neurons of a channel go together
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        z = F.relu(m.a(x)).mean((2, 3, 4))
        y = F.relu(m.b(z)).view(len(x), -1, 2, 2, 2)
        return m.d(F.relu(m.c(y)))

    return Net(run, a=conv(2, 5), b=nn.Linear(5, 48), c=conv(6, 4), d=conv(4, 3))


@case(units=8 + 2 + 3)
def squeeze_excite() -> nn.Module:  # the gate's last layer is tied to the channels that it gates
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        s = F.adaptive_avg_pool3d(y, 1).flatten(1)
        s = torch.sigmoid(m.up(F.relu(m.down(s))))
        return m.b(y * s[:, :, None, None, None])

    return Net(run, a=conv(2, 8), down=nn.Linear(8, 2), up=nn.Linear(2, 8), b=conv(8, 3))


@case(units=4 + 4 + 3)
def chunk_gate() -> nn.Module:  # halves of 8: the same place of both
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = m.a(x).chunk(2, 1)
        return m.c(F.relu(m.b(a * torch.sigmoid(b))))

    return Net(run, a=conv(2, 8), b=conv(4, 4), c=conv(4, 3))


@case(units=4 + 4 + 3)
def channel_shuffle() -> nn.Module:  # a: 4 lanes of 2 groups; b: 4 lanes, and the depthwise c follows it
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.b(F.relu(m.a(x))))
        n, c, d, h, w = y.shape
        y = y.view(n, 2, c // 2, d, h, w).transpose(1, 2).reshape(n, c, d, h, w)
        return m.d(F.relu(m.c(y)))

    return Net(run, a=conv(2, 8), b=conv(8, 8, groups=2), c=conv(8, 8, groups=8), d=conv(8, 3))


@case(units=3 + 3)
def pixel_shuffle() -> nn.Module:  # 24 = 3 channels of 2^3
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        n, c, d, h, w = y.shape
        y = (
            y.reshape(n, c // 8, 2, 2, 2, d, h, w)
            .permute(0, 1, 5, 2, 6, 3, 7, 4)
            .reshape(n, c // 8, 2 * d, 2 * h, 2 * w)
        )
        return m.b(F.relu(y))

    return Net(run, a=conv(2, 24), b=conv(3, 3))


@case(units=6 + 5 + 3)
def siamese() -> nn.Module:  # one weight used twice
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = (F.relu(m.a(t)) for t in (x, x.flip(2)))
        return m.c(F.relu(m.b(torch.cat([a, b], 1))))

    return Net(run, a=conv(2, 6), b=conv(12, 5), c=conv(5, 3))


@case(units=6 + 4 + 3)
def cost_volume() -> nn.Module:  # written slice by slice into zeros
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        left, right = F.relu(m.a(x)).unbind(2)[:2]
        cost = left.new_zeros(len(x), 2 * left.shape[1], 3, *left.shape[2:])
        for i in range(3):
            cost[:, : left.shape[1], i, :, i:] = left[..., i:]
            cost[:, left.shape[1] :, i, :, i:] = right[..., : right.shape[-1] - i]
        return m.c(F.relu(m.b(cost)))

    return Net(run, a=conv(2, 6), b=conv(12, 4), c=conv(4, 3))


@case(units=6 + 5 + 3)
def gates() -> nn.Module:  # a parameter, a buffer and C slopes follow the channels
    return Net(
        lambda m, x: m.c(F.relu(m.b(m.slope(m.a(x) * m.scale + m.shift)))),
        a=conv(2, 6), b=conv(6, 5), c=conv(5, 3), slope=nn.PReLU(6),
        scale=nn.Parameter(torch.rand(1, 6, 1, 1, 1)), shift=torch.rand(6, 1, 1, 1),
    )  # fmt: skip


@case(units=4 + 5 + 3, statistics=True)
def group_norm() -> nn.Module:  # 2 groups of 4 lanes
    return nn.Sequential(conv(2, 8), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 5), nn.ReLU(), conv(5, 3))


@case(units=8 + 3)
def instance_as_group_norm() -> nn.Module:  # one group a channel: exact
    return nn.Sequential(conv(2, 8), nn.GroupNorm(8, 8), nn.ReLU(), conv(8, 3))


@case(units=6 + 4 + 3)
def instance_norm() -> nn.Module:
    return nn.Sequential(
        conv(2, 6), nn.InstanceNorm3d(6, affine=True), nn.ReLU(), conv(6, 4), nn.InstanceNorm3d(4), conv(4, 3)
    )


@case(units=6 + 12 + 3, statistics=True)
def channels_last_block() -> nn.Module:  # ConvNeXt: layer norm and linear over the last axis, a residual
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.stem(x)
        z = m.norm(m.dw(y).permute(0, 2, 3, 4, 1))
        z = m.scale * m.down(F.gelu(m.up(z)))
        return m.head(y + z.permute(0, 4, 1, 2, 3))

    return Net(run, stem=conv(2, 6), dw=conv(6, 6, groups=6), norm=nn.LayerNorm(6), up=nn.Linear(6, 12), down=nn.Linear(12, 6),
               scale=nn.Parameter(torch.rand(6)), head=conv(6, 3))  # fmt: skip


@case(units=4 + 3 + 3 + 3)
def auxiliary_head() -> nn.Module:  # runs in training mode only
    def run(m: Any, x: torch.Tensor) -> Any:
        y = F.relu(m.a(x))
        main = m.out(F.relu(m.b(y)))
        return [main, m.aux(y)] if m.training else main

    return Net(run, a=conv(2, 4), b=conv(4, 3), out=conv(3, 3), aux=conv(4, 3))


@case(units=4 + 3)
def zero_padding() -> (
    nn.Module
):  # ResNet shortcut A: a's four and the first four of b's seven are tied; the others are free
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        z = m.b(y)
        y = torch.cat([y, y.new_zeros(len(y), z.shape[1] - y.shape[1], *y.shape[2:])], 1)
        return m.c(F.relu(y + z))

    return Net(run, a=conv(2, 4), b=conv(4, 4), c=conv(4, 3))


@case(units=6 + 4 + 3)
def read_as_bytes() -> nn.Module:  # the last axis becomes longer
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.b(F.relu(m.a(x))))
        weight = (y > 0.3).int().view(torch.uint8).double().mean((2, 3, 4), keepdim=True)
        return m.c(y * weight.to(y.dtype))

    return Net(run, a=conv(2, 6), b=conv(6, 4), c=conv(4, 3))


@case(units=6 + 4 + 3)
def dropout() -> nn.Module:
    return nn.Sequential(conv(2, 6), nn.Dropout3d(0.5), nn.ReLU(), conv(6, 4), nn.Dropout(0.5), nn.ReLU(), conv(4, 3))


@case(units=6 + 4 + 3)
def functional_dropout() -> nn.Module:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout3d(F.relu(m.a(x)), 0.5, m.training)
        return m.c(F.dropout(F.relu(m.b(y)), 0.5, m.training))

    return Net(run, a=conv(2, 6), b=conv(6, 4), c=conv(4, 3))


@case(units=6 + 5 + 4 + 3)
def unequal_parts_written() -> nn.Module:  # into a preallocated tensor, one part after the other
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = F.relu(m.a(x)), F.relu(m.b(x))
        y = a.new_zeros(len(x), a.shape[1] + b.shape[1], *x.shape[2:])
        y[:, : a.shape[1]] = a
        y[:, a.shape[1] :] = b
        return m.d(F.relu(m.c(y)))

    return Net(run, a=conv(2, 6), b=conv(2, 5), c=conv(11, 4), d=conv(4, 3))


@case(units=6 + 4 + 3)
def weight_norm() -> nn.Module:
    from torch.nn.utils.parametrizations import weight_norm as norm

    return nn.Sequential(norm(conv(2, 6)), nn.ReLU(), norm(nn.ConvTranspose3d(6, 4, 2, 2)), nn.ReLU(), conv(4, 3, 1))


@case(units=6 + 4 + 3)
def spectral_norm() -> nn.Module:
    from torch.nn.utils.parametrizations import spectral_norm as norm

    return nn.Sequential(norm(conv(2, 6)), nn.ReLU(), norm(conv(6, 4)), nn.ReLU(), conv(4, 3, 1))


@case(units=6 + 3, shape=(2, 2, 8, 8))
def two_dimensional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 3, 1))


def inputs(case: Any, g: torch.Generator) -> Any:
    """Noise of the shape(s) that a network takes."""
    if isinstance(case.shape, dict):
        return {name: torch.randn(shape, generator=g) for name, shape in case.shape.items()}
    if isinstance(case.shape[0], tuple):
        return tuple(torch.randn(shape, generator=g) for shape in case.shape)
    return torch.randn(case.shape, generator=g)


def batches(case: Any, seed: int = 0) -> list[tuple[Any, torch.Tensor]]:
    """Two mini-batches of noise; the target is not looked at by `loss`."""
    g = torch.Generator().manual_seed(seed)
    return [(inputs(case, g), torch.zeros(2)) for _ in range(2)]


def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    """Any output will do: a fixed projection of each tensor, squared."""
    outs = tensors_in(output)
    return sum(
        ((o * torch.linspace(-1, 1, o.numel(), device=o.device).view_as(o)).mean() - 0.3) ** 2 + o.square().mean()
        for o in outs
    )


def build(case: Any, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return case.make()
