"""Networks with scales or weights at zero."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from zoo import Net

HERE = Path(__file__)


def conv(i: int, o: int, k: int = 3) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2)


def batches(n: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(2, 1, 6, 6, generator=g), torch.randint(0, 3, (2, 6, 6), generator=g)) for _ in range(n)]


def residual(scale=None, norm=None, **more) -> nn.Module:
    """stem, then x + scale(norm(b(relu(a(x))))), then head; 8 + 8 + 8 + 3 neurons, those of stem and b tied."""
    torch.manual_seed(0)

    def forward(m, x):
        x = m.stem(x).relu()
        y = m.b(m.a(x).relu())
        y = y if norm is None else m.norm(y)
        return m.head(x + (y if scale is None else scale(m, y)))

    return Net(forward, stem=conv(1, 8), a=conv(8, 8), b=conv(8, 8), head=conv(8, 3, 1), **more,
               **({} if norm is None else {"norm": norm}))  # fmt: skip


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def zero(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def zeroed(norm: nn.Module) -> nn.Module:
    nn.init.zeros_(norm.weight)
    return norm


def rms(m, y):
    return y * torch.rsqrt((y * y).mean((2, 3), keepdim=True) + 1e-5) * m.g.view(1, -1, 1, 1)


SCALED = {  # the name of the scale, and a network with it
    "batch norm": ("norm.weight", lambda: residual(norm=zeroed(nn.BatchNorm2d(8)))),
    "instance norm": ("norm.weight", lambda: residual(norm=zeroed(nn.InstanceNorm2d(8, affine=True)))),
    "group norm": ("norm.weight", lambda: residual(norm=zeroed(nn.GroupNorm(2, 8)))),
    "layer norm": ("norm.weight", lambda: residual(norm=zeroed(ChannelsLast(8)))),
    "rms norm": ("g", lambda: residual(rms, g=zero(8))),
    "rezero": ("g", lambda: residual(lambda m, y: m.g * y, g=zero(1))),
    "scalar": ("g", lambda: residual(lambda m, y: y * m.g, g=nn.Parameter(torch.tensor(0.0)))),
    "layer scale": ("g", lambda: residual(lambda m, y: y * m.g[:, None, None], g=zero(8))),
    "in place": ("g", lambda: residual(lambda m, y: y.clone().mul_(m.g), g=zero(1, 8, 1, 1))),
    "addcmul": ("g", lambda: residual(lambda m, y: torch.addcmul(y - y, y, m.g), g=zero(1))),
    "tanh gate": ("g", lambda: residual(lambda m, y: y * torch.tanh(m.g), g=zero(1))),
    "scaled gate": ("g", lambda: residual(lambda m, y: y * (2 * m.g).expand(8).view(1, 8, 1, 1), g=zero(1))),
    "moved gate": ("g", lambda: residual(lambda m, y: y * m.g.to(y.device, y.dtype), g=zero(1))),
}


def with_ones(model: nn.Module, *names: str) -> nn.Module:
    one = copy.deepcopy(model)
    for name, p in one.named_parameters():
        if name in names:
            p.data.fill_(1)
    return one


def without_b(model: nn.Module) -> nn.Module:
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.b.bias)
    return model


def scaled() -> nn.Module:
    return SCALED["batch norm"][1]()


def two_parts(between, **more) -> nn.Module:
    """e0, e1, then `between`, then b and head: 8 + 8 + 16 + 3 neurons."""
    torch.manual_seed(0)
    return Net(lambda m, x: m.head(m.b(between(m, x)).relu()), e0=conv(1, 8), e1=conv(8, 8), b=conv(8, 16), head=conv(16, 3, 1),
               **more)  # fmt: skip


def encoded(m, x):
    return m.e1(m.e0(x).relu()).relu()


def under_no_grad(m, x):
    with torch.no_grad():
        return encoded(m, x)


def last_zero() -> nn.Module:
    model = residual()
    nn.init.zeros_(model.head.weight)
    return model
