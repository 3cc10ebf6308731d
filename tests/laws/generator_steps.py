"""The steps that a random network is made of.

A step is a function `(draw, x) -> value` under `@step`; to add one, write the line of the forward that it stands for with
`say`, and tie the labels of the channels that the line makes inseparable.
"""

from __future__ import annotations

from collections.abc import Callable

from generator_draw import Draw, Value

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
