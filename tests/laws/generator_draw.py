"""A random network in the making: its lines so far, and the labels of its channels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

INPUT_LABEL = 0
Ids = list[int | None]  # one label a channel; None: a channel that nothing can remove, such as padding


class Value(NamedTuple):
    """A tensor (N, C, *S) of the forward: its name, its C labels, the edge of its cube S."""

    name: str
    ids: Ids
    size: int

    @property
    def width(self) -> int:
        return len(self.ids)


class Draw(random.Random):
    """A program in the making."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.dims = self.choice((2, 3, 3, 3))
        self.made: list[str] = []
        self.code: list[str] = []
        self.number = count(1)
        self.parent: list[int] = [INPUT_LABEL]
        self.layers: dict[str, Ids] = {}
        self.values: list[Value] = []
        self.statistics = False
        self.allowed = {"network output", "network input", "its only neuron", "no layer uses its output"}
        self.axes = tuple(range(2, 2 + self.dims))

    # -- labels

    def fresh(self, n: int) -> Ids:
        self.parent += range(len(self.parent), len(self.parent) + n)
        return list(range(len(self.parent) - n, len(self.parent)))

    def root(self, a: int) -> int:
        while self.parent[a] != a:
            a = self.parent[a]
        return a

    def tie(self, a: Sequence[int | None], b: Sequence[int | None]) -> Ids:
        """Channel by channel; returns the labels of the result."""
        for i, j in zip(a, b, strict=True):
            if i is not None and j is not None:
                low, high = sorted((self.root(i), self.root(j)))
                self.parent[high] = low
        return [j if i is None else i for i, j in zip(a, b, strict=True)]

    def lanes(self, ids: Ids, groups: int) -> Ids:
        """The same place of every group; returns the labels of the first."""
        width = len(ids) // groups
        for g in range(groups):
            self.tie(ids[g * width : (g + 1) * width], ids[:width])
        return ids[:width]

    # -- lines

    def own(self, expr: str) -> str:
        """A module, parameter or buffer of the network."""
        name = f"m{len(self.made)}"
        buffer = expr.startswith("torch.")
        self.made.append(f'self.register_buffer("{name}", {expr})' if buffer else f"self.{name} = {expr}")
        return f"self.{name}"

    def layer(self, expr: str, ids: Ids) -> str:
        name = self.own(expr)
        self.layers[name.removeprefix("self.")] = ids
        return name

    def say(self, expr: str, ids: Ids, size: int) -> Value:
        value = Value(f"v{next(self.number)}", ids, size)
        self.code.append(f"{value.name} = {expr}")
        return value

    def maybe(self, p: float) -> bool:
        return self.random() < p

    def width(self, of: int = 1) -> int:
        return of * self.choice([k for k in range(2, 13) if 4 <= k * of <= 12] or [2])

    # -- parts that steps are made of

    def conv(self, x: Value, out: int | None = None, kernel: int | None = None, groups: int = 1) -> Value:
        out, kernel = out or self.width(), kernel or self.choice((1, 3, 3))
        more, size = f"bias={self.maybe(0.6)}, groups={groups}", x.size
        if kernel == 3:
            spread = self.choice((1, 1, 2))
            more += f", padding={spread}, dilation={spread}"
        ids = self.fresh(out)
        if groups > 1 and groups == x.width:
            self.tie(ids, [i for i in x.ids for _ in range(out // groups)])
        elif groups > 1:
            self.lanes(x.ids, groups)
            self.lanes(ids, groups)
        kind = f"nn.Conv{'Transpose' if self.maybe(0.15) else ''}{self.dims}d"
        expr = f"{kind}({x.width}, {out}, {kernel}, {more})"
        if groups == 1 and self.maybe(0.05):
            expr = f"nn.utils.parametrizations.weight_norm({expr})"
        return self.say(f"{self.layer(expr, ids)}({x.name})", ids, size)

    def norm(self, x: Value) -> Value:
        c, d = x.width, self.dims
        kinds = [f"nn.BatchNorm{d}d({c})", f"nn.BatchNorm{d}d({c}, affine=False)", f"nn.GroupNorm({c}, {c})",
                 f"nn.BatchNorm{d}d({c}, track_running_stats=False)", f"nn.InstanceNorm{d}d({c})",
                 f"nn.InstanceNorm{d}d({c}, affine=True)", f"nn.InstanceNorm{d}d({c}, track_running_stats=True)"]  # fmt: skip
        expr = self.choice(kinds)
        if c % 2 == 0 and c > 2 and self.maybe(0.08):
            expr, self.statistics = f"nn.GroupNorm(2, {c})", True
            self.lanes(x.ids, 2)
        return self.say(f"{self.own(expr)}({x.name})", x.ids, x.size)

    def act(self, x: Value, fresh: bool = False) -> Value:
        """`fresh`: nothing else reads x, so it may be overwritten."""
        name, modules = x.name, "ReLU() SiLU() ELU() GELU() Softplus() Hardswish() PReLU() LeakyReLU(0.1)".split()
        calls = [f"F.relu({name})", f"torch.tanh({name})", f"F.relu6({name})", f"{name}.sigmoid()", f"{name} * 0.5 + 1"]
        calls += [f"{name} * torch.sigmoid({name})"]
        if fresh:
            calls += [f"F.relu({name}, inplace=True)", f"{name}.add_(0.1)", f"{name}.clamp_(-2, 2)"]
        modules += [f"PReLU({x.width})", "Dropout(0.3)", f"Dropout{self.dims}d(0.3)"]
        modules += ["ReLU(inplace=True)", "LeakyReLU(inplace=True)"] if fresh else []
        if self.maybe(0.5):
            return self.say(self.choice(calls), x.ids, x.size)
        return self.say(f"{self.own('nn.' + self.choice(modules))}({name})", x.ids, x.size)

    def block(self, x: Value, out: int | None = None, **how: int) -> Value:
        y = self.conv(x, out, **how)
        if self.maybe(0.5) and y.size > 1 and y.width > 1:
            y = self.norm(y)
        return self.act(y, fresh=True) if self.maybe(0.8) else y

    def other(self, x: Value, width: bool = False) -> Value:
        """Another value, brought to the size (and width) of x."""
        y = self.choice(self.values)
        if y.size != x.size:
            how = (
                "F.interpolate({}, size={}.shape[2:])"
                if self.maybe(0.6)
                else "F.adaptive_avg_pool%dd({}, {}.shape[2:])"
            )
            y = self.say(how.replace("%d", str(self.dims)).format(y.name, x.name), y.ids, x.size)
        return self.conv(y, x.width) if width and y.width != x.width else y
