"""Random networks from a seed, and which of their neurons belong together, known from how they were put together.

A network is a `Program`: the lines of its `__init__` and of its `forward`. It is run by executing the very script that a
failure prints. The generator keeps labels of its own while it draws (plain lists and a ten-line union-find, nothing of
`ranp_cli`), so the units that the engine finds can be held against `Program.layers`: neuron by neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from generator_draw import INPUT_LABEL, Draw, Value
from generator_steps import STEPS
from torch import nn


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
