"""Random networks under every law, and the units that the generator knows.

A failure shows a script that reproduces it. `ranp` must find exactly the units of `generator.Program.layers`: neither
more ties (too little could be pruned) nor fewer (the slim network would not be the masked one).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import generator
import laws
import pytest
import torch
import zoo
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.core.tensors import tensors_in
from ranp_cli.graph.analyse import analyse


def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    return zoo.loss(tensors_in(output), target)


def hold(model: nn.Module, shape: tuple[int, ...], how: dict[str, Any], statistics: bool) -> ranp.Pruned:
    """All laws of ranp_cli/README.md on one network."""
    before = laws.snapshot(model)
    g = torch.Generator().manual_seed(3)
    batches = [(torch.randn(shape, generator=g), torch.zeros(shape[0])) for _ in range(2)]
    pruned = ranp.prune(model, batches, loss=loss, allow_less=True, **how)
    laws.unchanged(model, before)
    x = torch.randn(shape, generator=g)
    laws.slim_is_masked(model, pruned, x, statistics)
    laws.same_behaviour(model, pruned, x)
    laws.counts_agree(pruned, x)
    with tempfile.TemporaryDirectory() as folder:
        laws.survives_a_file(model, pruned, x, Path(folder) / "slim.safetensors")
    laws.attributes_are_true(pruned.model)
    laws.nothing_was_hard_coded(pruned)
    assert statistics or "not_comparable" not in pruned.report.to_dict()["verified"]
    return pruned


def units_agree(program: generator.Program, model: nn.Module) -> None:
    """The engine's units are the generator's, neuron by neuron, and nothing is fixed without a reason."""
    graph = analyse(model, Example((torch.zeros(program.shape),)))
    found = dict(zip((layer.name for layer in graph.layers), graph.by_layer(graph.unit), strict=True))
    assert found.keys() == program.layers.keys()
    pairs = {(int(u), v) for name, units in found.items() for u, v in zip(units, program.layers[name], strict=True)}
    tied = clashes(pairs, found)
    assert not tied, f"tied without need: {tied}"
    free = {(v, u) for u, v in pairs if graph.reasons[u] is None}  # what stays need not be tied to stay together
    loose = clashes(free, program.layers)
    assert not loose, f"not tied: {loose}"
    for traced in (graph.eval_run, graph.train_run):
        assert not traced.tracer.unruled, f"without a rule: {traced.tracer.unruled}"
        assert not traced.real, "meta tensors did not do"
    reasons = {str(r) for r in graph.reasons if r is not None and r.what not in program.allowed}
    assert not reasons, f"fixed without need: {reasons}"


def clashes(pairs: set[tuple[int, int]], layers: dict[str, Any]) -> list[str]:
    """The neurons, as layer[indices], of units on the left that belong to several on the right."""
    left = [u for u, _ in pairs]
    rows = [(u, name, [i for i, v in enumerate(units) if v == u]) for name, units in layers.items()
            for u in sorted(set(left)) if left.count(u) > 1]  # fmt: skip
    return [f"{name}{indices}" for _, name, indices in sorted(rows) if indices]


def check(seed: int, folder: Path) -> None:
    """All laws, and unit by unit what the generator says is tied, no more and no less."""
    program = generator.program(seed)
    try:
        model = program.build()
        units_agree(program, model)
        pruned = hold(model, program.shape, program.how, program.statistics)
        enough(program, pruned)
    except Exception as error:
        path = folder / f"random_{seed}.py"
        path.write_text(program.script())
        error.args = (f"seed {seed}, reproduced by {path}: {error}\n\n{program.script()}",)
        raise


def enough(program: generator.Program, pruned: Any) -> None:
    """Without floors and fixed units, at most one unit more than asked for stays (ties of scores apart)."""
    mask, sparsity = pruned.mask, program.how["sparsity"]
    if program.how["method"] == "random" and sparsity != "max" and not mask.floored and not mask.fixed:
        units = [u for row in program.layers.values() for u in row]
        assert mask.kept <= len(units) * (1 - sparsity) + max(units.count(u) for u in set(units))


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 15))])
def test_random(seed, tmp_path):
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(30))
def test_many(block, tmp_path):
    for seed in range(1000 + 10 * block, 1010 + 10 * block):
        check(seed, tmp_path)


@pytest.mark.slow
def test_script_runs(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(generator.program(1).script())
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    assert done.stdout == "held\n", done.stderr
