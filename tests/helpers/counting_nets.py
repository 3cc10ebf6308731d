"""Networks whose modules keep counts of channels in attributes of their own, as those of papers and libraries do."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

LABELS = [
    (torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 8, 8, 8, dtype=torch.long))
]
CLASSES = [(LABELS[0][0], torch.tensor([0, 1]))]
CLIPS = [(torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]))]


class Cell(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.input_dim = i
        self.hidden_dim = h
        self.conv = nn.Conv2d(i + h, 4 * h, 3, padding=1)

    def forward(self, x, st):
        h, c = st
        cc = self.conv(torch.cat([x, h], 1))
        i, f, o, g = torch.split(cc, self.hidden_dim, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h, c)

    def init_hidden(self, b, hw):
        return (torch.zeros(b, self.hidden_dim, *hw), torch.zeros(b, self.hidden_dim, *hw))


class ConvLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.pre = nn.Conv2d(1, 16, 3, padding=1)
        self.cells = nn.ModuleList([Cell(16, 16), Cell(16, 24)])
        self.fc = nn.Linear(24, 4)

    def forward(self, x):
        B, T = x.shape[:2]
        seq = [self.pre(x[:, t]).relu() for t in range(T)]
        for c in self.cells:
            st = c.init_hidden(B, seq[0].shape[-2:])
            out = []
            for z in seq:
                st = c(z, st)
                out.append(st[0])
            seq = out
        return self.fc(seq[-1].mean((2, 3)))


class TSM(nn.Module):
    def __init__(self, div=8):
        super().__init__()
        self.c0 = nn.Conv3d(1, 32, 3, padding=1)
        self.c1 = nn.Conv3d(32, 32, 3, padding=1)
        self.c2 = nn.Conv3d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 4)
        self.div = div

    def shift(self, x):
        fold = x.shape[1] // self.div
        out = torch.zeros_like(x)
        out[:, :fold, :-1] = x[:, :fold, 1:]
        out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return out

    def forward(self, x):
        x = self.c0(x).relu()
        x = x + self.c1(self.shift(x)).relu()
        x = x + self.c2(self.shift(x)).relu()
        return self.fc(x.mean((2, 3, 4)))


class PConv(nn.Module):
    def __init__(self, dim, div=4, how="split"):
        super().__init__()
        self.dim_conv3 = dim // div
        self.dim_untouched = dim - self.dim_conv3
        self.partial_conv3 = nn.Conv3d(self.dim_conv3, self.dim_conv3, 3, padding=1, bias=False)
        self.how = how

    def forward(self, x):
        if self.how == "slice":
            x = x.clone()
            x[:, : self.dim_conv3] = self.partial_conv3(x[:, : self.dim_conv3])
            return x
        a, b = torch.split(x, [self.dim_conv3, self.dim_untouched], dim=1)
        return torch.cat((self.partial_conv3(a), b), 1)


class FBlock(nn.Module):
    def __init__(self, d, how):
        super().__init__()
        self.mix = PConv(d, how=how)
        self.mlp = nn.Sequential(
            nn.Conv3d(d, 2 * d, 1, bias=False), nn.BatchNorm3d(2 * d), nn.ReLU(), nn.Conv3d(2 * d, d, 1, bias=False)
        )

    def forward(self, x):
        return x + self.mlp(self.mix(x))


class FasterNet(nn.Module):
    def __init__(self, how="split"):
        super().__init__()
        self.e = nn.Conv3d(1, 32, 3, padding=1)
        self.b = nn.Sequential(FBlock(32, how), FBlock(32, how), nn.Conv3d(32, 64, 2, 2), FBlock(64, how))
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        return self.fc(self.b(self.e(x)).mean((2, 3, 4)))


class R2(nn.Module):
    def __init__(self, i, w, scale=4):
        super().__init__()
        self.width = w
        self.nums = scale - 1
        self.conv1 = nn.Conv3d(i, w * scale, 1)
        self.convs = nn.ModuleList([nn.Conv3d(w, w, 3, padding=1) for _ in range(self.nums)])
        self.conv3 = nn.Conv3d(w * scale, i, 1)

    def forward(self, x):
        out = self.conv1(x).relu()
        spx = torch.split(out, self.width, 1)
        sp = spx[0]
        for i in range(self.nums):
            sp = sp if i == 0 else sp + spx[i]
            sp = self.convs[i](sp).relu()
            out = sp if i == 0 else torch.cat((out, sp), 1)
        out = torch.cat((out, spx[self.nums]), 1)
        return (x + self.conv3(out)).relu()


class Res2Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Conv3d(1, 32, 3, padding=1)
        self.b = nn.Sequential(R2(32, 8), R2(32, 8))
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        return self.fc(self.b(self.e(x)).mean((2, 3, 4)))


class ResB(nn.Module):
    def __init__(self, i, o, st):
        super().__init__()
        self.i, self.o, self.st = (i, o, st)
        self.c1, self.c2 = (nn.Conv3d(i, o, 3, st, 1), nn.Conv3d(o, o, 3, 1, 1))

    def forward(self, x):
        y = self.c2(F.relu(self.c1(x)))
        if self.i != self.o:
            x = F.pad(x[:, :, :: self.st, :: self.st, :: self.st], (0, 0, 0, 0, 0, 0, 0, self.o - self.i))
        return F.relu(x + y)


class ResAEnd(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 3, 1, 1)
        self.l = nn.Sequential(ResB(8, 8, 1), ResB(8, 16, 2), ResB(16, 16, 1), ResB(16, 32, 2))
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        return self.fc(self.l(self.stem(x)).mean((2, 3, 4)))


class ResZ(ResB):
    def forward(self, x):
        y = self.c2(F.relu(self.c1(x)))
        if self.i != self.o:
            out = F.avg_pool3d(x, 1, self.st)
            z = torch.zeros(out.shape[0], self.o - out.shape[1], *out.shape[2:])
            x = torch.cat([out, z], 1)
        return F.relu(x + y)


class MedicalNetA(ResAEnd):
    def __init__(self):
        super().__init__()
        self.l = nn.Sequential(ResZ(8, 8, 1), ResZ(8, 16, 2), ResZ(16, 16, 1), ResZ(16, 32, 2))


class HighPad(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.c = nn.Sequential(
            nn.BatchNorm3d(i),
            nn.ReLU(),
            nn.Conv3d(i, o, 3, padding=1),
            nn.BatchNorm3d(o),
            nn.ReLU(),
            nn.Conv3d(o, o, 3, padding=1),
        )
        p = (o - i) // 2
        self.pad = (0, 0, 0, 0, 0, 0, p, o - i - p)
        self.i, self.o = (i, o)

    def forward(self, x):
        y = self.c(x)
        return y + (F.pad(x, self.pad) if self.i != self.o else x)


class HighRes(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Conv3d(1, 16, 3, padding=1)
        self.b = nn.Sequential(HighPad(16, 16), HighPad(16, 16), HighPad(16, 32), HighPad(32, 32), HighPad(32, 64))
        self.h = nn.Conv3d(64, 2, 1)

    def forward(self, x):
        return self.h(self.b(self.e(x)))


class Ghost(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.oup = o
        init = (o + 1) // 2
        self.p = nn.Conv3d(i, init, 1)
        self.cheap = nn.Conv3d(init, init, 3, padding=1, groups=init)

    def forward(self, x):
        a = self.p(x).relu()
        b = self.cheap(a).relu()
        return torch.cat([a, b], 1)[:, : self.oup]


class GhostNet(nn.Module):
    def __init__(self, o=16):
        super().__init__()
        self.e = nn.Conv3d(1, 16, 3, padding=1)
        self.b = nn.Sequential(Ghost(16, o), Ghost(o, o + 1))
        self.h = nn.Conv3d(o + 1, 2, 1)

    def forward(self, x):
        return self.h(self.b(self.e(x)))


class Cfg:
    pass


class ConfigNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.cfg = Cfg()
        self.cfg.hidden = 16
        self.a = nn.Conv3d(1, 16, 3, padding=1)
        self.b = nn.Conv3d(16, 2 * 16, 1)
        self.h = nn.Conv3d(16, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu())
        return self.h(y[:, : self.cfg.hidden] * y[:, self.cfg.hidden :].sigmoid())


class ViewNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 32
        self.a = nn.Conv3d(1, 32, 3, padding=1)
        self.b = nn.Conv3d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        y = self.b(self.a(x).relu()).relu()
        y = y.view(y.shape[0], self.width, -1).mean(2)
        return self.fc(y)


class FlatNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.nflat = 8 * 4 * 4 * 4
        self.a = nn.Conv3d(1, 32, 3, padding=1, stride=2)
        self.b = nn.Conv3d(32, 8, 3, padding=1)
        self.fc = nn.Linear(self.nflat, 16)
        self.g = nn.Linear(16, 4)

    def forward(self, x):
        y = self.b(self.a(x).relu()).relu()
        return self.g(self.fc(y.view(-1, self.nflat)).relu())


class Shortcut(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.i, self.o, self.st = i, o, stride
        self.c1, self.c2 = nn.Conv3d(i, o, 3, stride, 1), nn.Conv3d(o, o, 3, 1, 1)

    def forward(self, x):
        y = self.c2(F.relu(self.c1(x)))
        if self.i != self.o:
            k = (self.o - self.i) // 2
            x = F.pad(x[:, :, :: self.st, :: self.st, :: self.st], (0, 0, 0, 0, 0, 0, k, k))
        return F.relu(x + y)


class ResNetA(ResAEnd):
    def __init__(self):
        super().__init__()
        self.l = nn.Sequential(Shortcut(8, 8, 1), Shortcut(8, 16, 2), Shortcut(16, 16, 1), Shortcut(16, 32, 2))


def padded(x, planes, stride=1):
    x = F.avg_pool3d(x, 1, stride)
    return torch.cat([x, x.new_zeros(x.shape[0], planes - x.shape[1], *x.shape[2:])], 1)


class Kept(nn.Module):
    """The count is an argument of a partially applied function, by name or by position, or an entry of a dict."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 16, 3, padding=1), nn.Conv3d(16, 2, 1)
        self.count = {
            "by name": partial(padded, planes=16),
            "by position": partial(padded_to, 16, 1),
            "in a dict": {"planes": 16},
        }[how]

    def forward(self, x):
        x = self.a(x).relu()
        short = padded(x, self.count["planes"]) if isinstance(self.count, dict) else self.count(x)
        return self.c(self.b(x).relu() + short)


def padded_to(planes, stride, x):
    return padded(x, planes, stride)


NETS = {
    "ConvLSTM": (ConvLSTM, CLIPS),
    "TSM": (TSM, CLASSES),
    "FasterNet": (FasterNet, CLASSES),
    "Res2Net": (Res2Net, CLASSES),
    "shortcut padded at the end": (ResAEnd, CLASSES),
    "shortcut padded on both sides": (ResNetA, CLASSES),
    "shortcut of zeros": (MedicalNetA, CLASSES),
    "HighResNet": (HighRes, LABELS),
    **{f"count {how}": (partial(Kept, how), LABELS) for how in ("by name", "by position", "in a dict")},
    "GhostNet": (GhostNet, LABELS),
    "GhostNet, odd": (lambda: GhostNet(17), LABELS),
    "count in a config object": (ConfigNet, LABELS),
    "count in a view": (ViewNet, CLASSES),
    "count of a flattened volume": (FlatNet, CLASSES),
}


def made(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
