"""Random networks from a seed, and which of their neurons belong together, known from how they were put together.

A network is a `Program`: the lines of its `__init__` and of its `forward`. It is run by executing the very script that a
failure prints. The generator keeps labels of its own while it draws (plain lists and a ten-line union-find, nothing of
`ranp_cli`), so the units that the engine finds can be held against `Program.layers`: neuron by neuron.

A step is a function `(draw, x) -> value` under `@step`; to add one, write the line of the forward that it stands for with
`say`, and tie the labels of the channels that the line makes inseparable.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

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


@dataclass(frozen=True)
class Program:
    seed: int
    shape: tuple[int, ...]
    made: tuple[str, ...]
    code: tuple[str, ...]
    layers: dict[str, list[int]]  # layer -> the unit of each neuron
    statistics: bool  # group or layer norm: law 1 holds for the rest
    allowed: frozenset[str]  # why neurons may be fixed
    how: dict[str, object]  # keywords of ranp.prune

    def script(self) -> str:
        """The network and the call, as Python that runs by itself."""
        here = str(Path(__file__).parent)
        body = ["        " + line for line in self.made], ["        " + line for line in self.code]
        return "\n".join([
            f'"""Random network {self.seed}."""', "import sys", "", "import torch", "import torch.nn.functional as F",
            "from torch import nn", "", "", "class Net(nn.Module):", "    def __init__(self):",
            "        super().__init__()", *body[0], "", "    def forward(self, x):", *body[1], "", "",
            f"SHAPE, HOW, STATISTICS = {self.shape}, {self.how}, {self.statistics}", "", 'if __name__ == "__main__":',
            f"    sys.path.insert(0, {here!r})", "    import generator", "    import test_random", "",
            "    test_random.hold(generator.weighted(Net), SHAPE, HOW, STATISTICS)", '    print("held")', "",
        ])  # fmt: skip

    def build(self) -> nn.Module:
        space: dict = {"__name__": "random_network"}
        exec(compile(self.script(), f"random_{self.seed}.py", "exec"), space)
        return weighted(space["Net"])


def weighted(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network with weights from a seed; norms, slopes and buffers are told apart channel by channel."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = make()
        for t in (*net.parameters(), *net.buffers()):
            if t.is_floating_point() and max(t.shape, default=1) == t.numel():
                t.uniform_(0.5, 1.5)
    return net


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


STEPS: list[Callable[[Draw, Value], Value]] = []


def step(fn: Callable[[Draw, Value], Value]) -> Callable[[Draw, Value], Value]:
    STEPS.append(fn)
    return fn


@step
def plain(d: Draw, x: Value) -> Value:
    return d.block(x)


@step
def grouped(d: Draw, x: Value) -> Value:
    g = d.choice([g for g in (2, 3, 4) if x.width % g == 0] or [1])
    return d.block(x, d.width(g), groups=g)


@step
def depthwise(d: Draw, x: Value) -> Value:
    return d.block(x, x.width * d.choice((1, 1, 2)), groups=x.width)


@step
def resized(d: Draw, x: Value) -> Value:
    n, c = d.dims, x.width
    if x.size >= 4:
        strided = d.fresh(k := d.width())
        calls = [(f"F.max_pool{n}d({x.name}, 2)", x.ids), (f"F.avg_pool{n}d({x.name}, 2)", x.ids),
                 (f"F.adaptive_max_pool{n}d({x.name}, {x.size // 2})", x.ids)]  # fmt: skip
        if d.maybe(0.4):
            return d.say(f"{d.layer(f'nn.Conv{n}d({c}, {k}, 3, 2, 1)', strided)}({x.name})", strided, x.size // 2)
        return d.say(*d.choice(calls), x.size // 2)
    if d.maybe(0.4):
        g = d.choice((1, 1, c))
        up = d.fresh(k := c if g > 1 else d.width())
        d.tie(up, x.ids if g > 1 else up)
        return d.say(f"{d.layer(f'nn.ConvTranspose{n}d({c}, {k}, 2, 2, groups={g})', up)}({x.name})", up, x.size * 2)
    mode = d.choice(("nearest", "trilinear" if n == 3 else "bilinear"))
    return d.say(f"F.interpolate({x.name}, scale_factor=2, mode='{mode}')", x.ids, x.size * 2)


@step
def residual(d: Draw, x: Value) -> Value:
    y = d.block(d.block(x), x.width)
    form = d.choice(("{0} + {1}", "{1}.clone().add_({0})", "torch.maximum({0}, {1})", "torch.lerp({0}, {1}, 0.3)",
                     "torch.stack([{0}, {1}], 1).mean(1)", "0.5 * {0} - {1}"))  # fmt: skip
    return d.say(form.format(x.name, y.name), d.tie(x.ids, y.ids), x.size)


@step
def joined(d: Draw, x: Value) -> Value:
    y = d.other(x, width=True)
    return d.say(f"{x.name} + {y.name}", d.tie(x.ids, y.ids), x.size)


@step
def concatenated(d: Draw, x: Value) -> Value:
    parts = d.sample([x, d.block(x), d.other(x)], 3)
    return d.say(f"torch.cat([{', '.join(p.name for p in parts)}], 1)", [i for p in parts for i in p.ids], x.size)


@step
def gated(d: Draw, x: Value) -> Value:
    y = d.conv(x, d.width(2))
    form = d.choice(("{0}.chunk(2, 1)", "{0}.split({0}.shape[1] // 2, 1)", "torch.tensor_split({0}, 2, 1)",
                     "({0}[:, : {0}.shape[1] // 2], {0}[:, {0}.shape[1] // 2 :])",
                     "{0}.unflatten(1, (2, -1)).unbind(1)"))  # fmt: skip
    if d.maybe(0.2):
        return d.say(f"F.glu({y.name}, 1)", d.lanes(y.ids, 2), y.size)
    halves = d.say(form.format(y.name), [], 0).name
    return d.say(f"{halves}[0] * torch.sigmoid({halves}[1])", d.lanes(y.ids, 2), y.size)


@step
def half_worked(d: Draw, x: Value) -> Value:  # ShuffleNetV2: one half passes, the other is convolved
    if x.width % 2 or x.width < 4:
        return x
    k = x.width // 2
    halves = d.say(f"{x.name}.chunk(2, 1)", [], 0).name
    y = d.block(d.say(f"{halves}[1]", d.lanes(x.ids, 2), x.size), k)
    return d.say(f"torch.cat([{halves}[0], {y.name}], 1)", [*x.ids[:k], *y.ids], x.size)


@step
def shuffled(d: Draw, x: Value) -> Value:
    g = d.choice([g for g in (2, 3, 4) if x.width % g == 0 and g * g <= x.width] or [1])
    k = x.width // g
    ids = (d.lanes(x.ids, g), [x.ids[j * k + i] for i in range(k) for j in range(g)])[1] if g > 1 else x.ids
    if d.dims == 2 and d.maybe(0.3):
        return d.say(f"{d.own(f'nn.ChannelShuffle({g})')}({x.name})", ids, x.size)
    form = "{0}.view(len({0}), {1}, {0}.shape[1] // {1}, *{0}.shape[2:]).transpose(1, 2).flatten(1, 2)"
    y = d.say(f"{x.name}.contiguous()", x.ids, x.size)
    return d.say(form.format(y.name, g), ids, x.size)


@step
def squeezed(d: Draw, x: Value) -> Value:
    k, c, conv = d.choice((1, 2, 4)), x.width, f"nn.Conv{d.dims}d"
    down, up = d.fresh(k), d.fresh(c)
    pooled = d.say(f"{x.name}.mean({d.axes}, keepdim=True)", x.ids, 1)
    flat = d.maybe(0.5)
    make, z = ("nn.Linear({}, {})", f"{pooled.name}.flatten(1)") if flat else (conv + "({}, {}, 1)", pooled.name)
    gate = f"{d.layer(make.format(c, k), down)}({z})"
    gate = f"torch.sigmoid({d.layer(make.format(k, c), up)}(F.relu({gate})))"
    gate += f"[(...,) + (None,) * {d.dims}]" if flat else ""
    return d.say(f"{x.name} * {gate}", d.tie(x.ids, up), x.size)


@step
def spatially_gated(d: Draw, x: Value) -> Value:
    gate = d.conv(x, 1)
    return d.say(f"{x.name} * torch.sigmoid({gate.name})", x.ids, x.size)


@step
def pixels_shuffled(d: Draw, x: Value) -> Value:
    if x.size > 4:
        return x
    n, r = d.dims, 2**d.dims
    y = d.conv(x, r * d.choice((2, 3)))
    ids = [y.ids[i] for i in range(0, y.width, r)]
    d.tie(y.ids, [i for i in ids for _ in range(r)])
    if n == 2 and d.maybe(0.5):
        return d.block(d.say(f"F.pixel_shuffle({y.name}, 2)", ids, 2 * x.size))
    order = [0, 1, *(k for a in range(n) for k in (2 + n + a, 2 + a))]
    cut = f"{y.name}.reshape(len({y.name}), -1, {'2, ' * n}*{y.name}.shape[2:]).permute({order})"
    return d.block(d.say(f"{cut}.reshape(len({y.name}), -1, {', '.join([str(2 * x.size)] * n)})", ids, 2 * x.size))


@step
def scaled(d: Draw, x: Value) -> Value:
    shape = f"{d.choice(('1, ', ''))}{x.width}, {'1, ' * d.dims}".rstrip(", ")
    a = d.own(f"nn.Parameter(torch.rand({shape}) + 0.5)")
    b = d.own(f"torch.rand({shape})" if d.maybe(0.5) else f"nn.Parameter(torch.rand({shape}))")
    return d.say(f"{x.name} * {a} + {b}", x.ids, x.size)


@step
def channel_vector(d: Draw, x: Value) -> Value:
    a = d.own(f"nn.Parameter(torch.rand({x.width}))")
    shape = "1, -1" + ", 1" * d.dims
    return d.say(f"{x.name} * {a}.view({shape}) + F.softplus({a}).reshape({shape})", x.ids, x.size)


@step
def siamese(d: Draw, x: Value) -> Value:
    y = d.conv(x)
    call = d.code[-1].split(" = ")[1].partition("(")[0]
    z = d.other(x)
    if z.width == x.width:
        d.tie(x.ids, z.ids)
    else:
        z = d.say(f"{x.name}.flip(2)", x.ids, x.size)
    z = d.say(f"{call}({z.name})", y.ids, y.size)
    if d.maybe(0.5):
        return d.say(f"torch.cat([{y.name}, {z.name}], 1)", [*y.ids, *y.ids], y.size)
    return d.say(f"{y.name} + {z.name}.sigmoid()", y.ids, y.size)


@step
def written(d: Draw, x: Value) -> Value:  # PSMNet: into zeros, part by part
    y = d.block(x)
    out = d.say(f"{x.name}.new_zeros(len(x), {x.name}.shape[1] + {y.name}.shape[1], *{x.name}.shape[2:])", [], 0).name
    d.code.append(f"{out}[:, : {x.name}.shape[1]] = {x.name}")
    shift = d.choice(("", ", 1:"))
    d.code.append(f"{out}[:, {x.name}.shape[1] :{shift}] = {y.name}[:, :{shift}]")
    return d.say(f"{out} * 1", [*x.ids, *y.ids], x.size)


@step
def overwritten(d: Draw, x: Value) -> Value:
    y = d.block(x, x.width)
    out = d.say(f"torch.zeros_like({x.name})", [], 0).name
    d.code += [f"{out}[..., ::2] = {x.name}[..., ::2]", f"{out}[..., 1::2].copy_({y.name}[..., 1::2])"]
    return d.say(f"{out} + 0", d.tie(x.ids, y.ids), x.size)


@step
def channels_last(d: Draw, x: Value) -> Value:
    k, c = d.width(), x.width
    up, down = d.fresh(k), d.fresh(c)
    y = f"{x.name}.movedim(1, -1)"
    if d.maybe(0.3):
        y, d.statistics = f"{d.own(f'nn.LayerNorm({c})')}({y})", True
    y = f"{d.layer(f'nn.Linear({k}, {c})', down)}(F.gelu({d.layer(f'nn.Linear({c}, {k}, bias=False)', up)}({y})))"
    y = d.say(f"{y}.movedim(-1, 1)", down, x.size)
    return d.say(f"{x.name} + {y.name}", d.tie(x.ids, down), x.size) if d.maybe(0.5) else y


@step
def tokens(d: Draw, x: Value) -> Value:
    ids = d.fresh(k := d.width())
    y = d.say(f"{d.layer(f'nn.Linear({x.width}, {k})', ids)}({x.name}.flatten(2).transpose(1, 2))", [], 0).name
    return d.say(f"{y}.transpose(1, 2).reshape(len({y}), -1, *{x.name}.shape[2:])", ids, x.size)


@step
def frames(d: Draw, x: Value) -> Value:  # (2+1)D: a 2D convolution of every frame
    if d.dims == 2:
        return x
    ids = d.fresh(k := d.width())
    fold = f"{x.name}.transpose(1, 2).flatten(0, 1)"
    y = d.say(f"F.relu({d.layer(f'nn.Conv2d({x.width}, {k}, 3, padding=1)', ids)}({fold}))", ids, x.size).name
    return d.say(f"{y}.view(len(x), -1, *{y}.shape[1:]).transpose(1, 2)", ids, x.size)


@step
def functional(d: Draw, x: Value) -> Value:
    ids = d.fresh(k := d.width())
    weight = d.layer(f"nn.Parameter(torch.randn({k}, {x.width}{', 1' * d.dims}) / 3)", ids)
    letters = "xyz"[: d.dims]
    if d.maybe(0.5):
        flat = f"{weight}.flatten(1)"
        return d.say(f"torch.einsum('nc{letters},kc->nk{letters}', {x.name}, {flat})", ids, x.size)
    return d.say(f"F.conv{d.dims}d({x.name}, {weight})", ids, x.size)


@step
def repeated(d: Draw, x: Value) -> Value:
    if x.width > 8:
        return x
    if d.maybe(0.5):
        return d.say(f"{x.name}.repeat(1, 2{', 1' * d.dims})", [*x.ids, *x.ids], x.size)
    return d.say(f"{x.name}.repeat_interleave(2, 1)", [i for i in x.ids for _ in range(2)], x.size)


@step
def contextual(d: Draw, x: Value) -> Value:
    mean = d.say(f"{x.name}.amax({d.axes}, keepdim=True)", x.ids, 1).name
    if d.maybe(0.5):
        return d.say(f"{x.name} - {mean}", x.ids, x.size)
    return d.say(f"torch.cat([{x.name}, {mean}.expand_as({x.name})], 1)", [*x.ids, *x.ids], x.size)


@step
def widened(d: Draw, x: Value) -> Value:  # ResNet's shortcut A: padded with zeros
    y = d.conv(x, x.width + d.choice((1, 2)))
    zeros = f"{x.name}.new_zeros(len(x), {y.name}.shape[1] - {x.name}.shape[1], *{x.name}.shape[2:])"
    z = d.say(f"torch.cat([{x.name}, {zeros}], 1)", [*x.ids, *[None] * (y.width - x.width)], x.size)
    return d.say(f"{z.name} + {y.name}", d.tie(z.ids, y.ids), x.size)


@step
def flipped(d: Draw, x: Value) -> Value:
    return d.say(f"{x.name}.flip(1)", x.ids[::-1], x.size) if d.maybe(0.5) else d.say(f"{x.name}.roll(1, 2)", *x[1:])


@step
def from_vector(d: Draw, x: Value) -> Value:  # a linear layer makes a volume of edge 2
    n, k = 2**d.dims, d.choice((2, 4))
    ids = d.fresh(n * k)
    first = [ids[i * n] for i in range(k)]
    d.tie(ids, [i for i in first for _ in range(n)])
    y = d.say(f"F.relu({d.layer(f'nn.Linear({x.width}, {n * k})', ids)}({x.name}.mean({d.axes})))", [], 0).name
    return d.block(d.say(f"{y}.view(len({y}), -1{', 2' * d.dims})", first, 2))


# -- a whole network


def head(d: Draw, x: Value) -> str:
    """An output: a volume of 3 classes, or a vector."""
    if d.maybe(0.6):
        return d.conv(x, 3, kernel=1).name
    hidden, out, edge = d.fresh(5), d.fresh(3), d.choice((1, 2))
    flat = f"F.adaptive_avg_pool{d.dims}d({x.name}, {edge}).flatten(1)"
    y = f"{d.layer(f'nn.Linear({x.width * edge**d.dims}, 5)', hidden)}({flat})"
    return d.say(f"{d.layer('nn.Linear(5, 3)', out)}(F.relu({y}))", [], 0).name


def program(seed: int) -> Program:
    """The random network of a seed, and how to prune it."""
    d = Draw(seed)
    channels, size = d.choice((1, 2, 2, 3)), d.choice((4, 8))
    x = Value("x", [INPUT_LABEL if channels > 1 else None] * channels, size)
    d.values.append(x)
    for _ in range(d.randint(2, 8)):
        x = d.choice([*d.values, *[d.values[-1]] * 3])
        x = d.choice(STEPS)(d, x) if x.width > 1 else d.block(x)
        x = d.conv(x, d.width(), kernel=1) if x.width > 32 else x
        d.values.append(x)
    if x.ids.count(INPUT_LABEL) == x.width:
        d.values.append(d.block(x))
    heads = [head(d, d.values[-1])]
    if d.maybe(0.2):
        heads.append(head(d, d.choice(d.values)))
    shown = d.choice(("[{}]", "({},)", "{{'a': [{}]}}")).format(", ".join(heads)) if len(heads) > 1 else heads[0]
    if d.maybe(0.15):
        before = len(d.code)
        aux = head(d, d.choice([v for v in d.values if v.width > 1]))
        d.code[before:] = ["if self.training:", *("    " + line for line in d.code[before:])]
        d.code.append(f"    return [{shown}, {aux}]")
    d.code.append(f"return {shown}")
    how = {"sparsity": round(d.uniform(0.2, 0.95), 2), "resource": d.choice(("none", "flops", "mem", "params")),
           "method": d.choice(("ranp", "ranp", "weighted", "vanilla", "random", "layerwise")),
           "criterion": d.choice(("mpmg-sum", "mpmg-max", "mnmg-sum", "neuron")), "min_neurons": d.choice((1, 1, 2))}  # fmt: skip
    if how["method"] != "layerwise" and d.maybe(0.1):
        how["sparsity"] = "max"
    shape = (2, channels, *[size] * d.dims)
    units = {name: [d.root(i) for i in ids] for name, ids in d.layers.items()}
    return Program(seed, shape, tuple(d.made), tuple(d.code), units, d.statistics, frozenset(d.allowed), how)
