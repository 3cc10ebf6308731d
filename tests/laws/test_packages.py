"""Networks of MONAI, nnU-Net, timm and video papers under the laws, and: half of what can go does go."""

from __future__ import annotations

import laws
import packages
import pytest
import torch
import zoo

import ranp_cli as ranp
from ranp_cli.api import ranking
from ranp_cli.api.results import Pruned
from ranp_cli.core.copies import replicate
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.graph.graph import Graph
from ranp_cli.pruning.select import select
from ranp_cli.pruning.verify import masked_model

SETTINGS = [(0.5, "flops"), (0.5, "mem"), (0.9, "flops"), (0.9, "mem")]
ENOUGH = 0.45  # of what may go, at a sparsity of 0.5


def cells() -> list:
    """Every network at every setting; all but the first of the fast networks are slow."""
    out = []
    for case in packages.CASES:
        for setting in SETTINGS:
            first = case.fast and setting == SETTINGS[0]
            name = f"{case.name}-{setting[0]}-{setting[1]}"
            out.append(pytest.param(case, *setting, id=name, marks=() if first else pytest.mark.slow))
    return out


def build(case: packages.Case) -> torch.nn.Module:
    """The network with running statistics, and affine parameters of norms, that are not those of a fresh one."""
    model = zoo.build(case)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for m in model.modules():
            if getattr(m, "running_mean", None) is not None:
                m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * 0.1)
                m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + 0.5)
            if hasattr(m, "normalized_shape") or hasattr(m, "num_features") or isinstance(m, torch.nn.GroupNorm):
                for p in m.parameters(False):
                    p.add_(torch.rand(p.shape, generator=g) * 0.2 - 0.1)
    return model


def allow_for_rounding(model: torch.nn.Module, pruned: Pruned, x: torch.Tensor, statistics: bool, patch) -> None:
    """Widen the bounds of law 1 to ten times what one rounding of the input does to the masked network itself.

    Deep networks with batch norms over few values lose more digits than the bound has, whoever computes them.
    """
    graph = analyse(model, Example((x,)))
    alive = laws.stays(graph, pruned)
    for dtype, bound in list(laws.LIMIT.items()):
        masked = laws.cast(masked_model(model, graph, alive), dtype)
        y = x.to(dtype)
        moved = y * (
            1 + torch.finfo(dtype).eps * torch.sign(torch.randn(y.shape, generator=torch.Generator().manual_seed(5)))
        )
        for training in (False, True):
            a, b = (
                laws.run(replicate(masked, lambda _, t: t), z, training, not statistics) for z in (y, moved.to(dtype))
            )
            patch.setitem(laws.LIMIT, dtype, max(laws.LIMIT[dtype], min(10 * laws.distance(a, b), 100 * bound)))


@pytest.mark.parametrize(("case", "sparsity", "resource"), cells())
def test_laws(case, sparsity, resource, tmp_path, monkeypatch):
    model = build(case)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = laws.snapshot(model)
    options = {"loss": zoo.loss, "sparsity": sparsity, "resource": resource, "allow_less": True}
    graphs: list[Graph] = []  # the one at work: with what refining found to be fixed in the code
    monkeypatch.setattr(ranking, "select", lambda graph, *a, **k: graphs.append(graph) or select(graph, *a, **k))
    pruned = ranp.prune(model, zoo.batches(case), **options)
    laws.unchanged(model, before)
    model.zero_grad()
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(7))
    allow_for_rounding(model, pruned, x, case.statistics, monkeypatch)
    laws.slim_is_masked(model, pruned, x, case.statistics)
    laws.same_behaviour(model, pruned, x)
    laws.counts_agree(pruned, x)
    laws.survives_a_file(model, pruned, x, tmp_path / "slim.safetensors")
    laws.attributes_are_true(pruned.model)
    report = pruned.report.to_dict()
    assert ("not_comparable" in report["verified"]) == case.statistics
    assert not report.get("unruled_ops")
    if sparsity == 0.5:
        half_is_gone(case, pruned, graphs[-1])


def half_is_gone(case: packages.Case, pruned: Pruned, graph: Graph) -> None:
    """At least ENOUGH of the neurons are gone, or of those that are free where the report names those that are not."""
    report = pruned.report.to_dict()
    gone = report["neurons"]["total"] - report["neurons"]["kept"]
    fixed = int(graph.fixed_units[graph.unit].sum())
    print(f"{case.name}: {gone} gone of {graph.n}, {fixed} fixed: {sorted({str(r) for r in graph.reasons if r})}")
    assert gone >= ENOUGH * (graph.n - fixed)
    named = {row["name"] for row in report["layers"] if row.get("fixed")}
    holding = zip(graph.layers, graph.by_layer(graph.unit), strict=True)
    assert named == {layer.name for layer, units in holding if graph.fixed_units[units].any()}, "each has its reason"
