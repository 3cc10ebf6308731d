"""Every network of the zoo under every law, and negative controls: a broken rule is noticed."""

from __future__ import annotations

import laws
import pytest
import torch
import zoo
import zoo_calls
from paths import SAMPLES

import ranp_cli as ranp
from ranp_cli import rules
from ranp_cli.core.errors import RanpError
from ranp_cli.graph.analyse import analyse
from ranp_cli.io.user_code import named
from ranp_cli.models.unet3d import unet3d


def sample_unet():
    return named(f"{SAMPLES / 'model.py'}:UNet3D", "model")(width=4, levels=3)


def paper_unet():
    return unet3d(layers=15, width=8, num_classes=5)


UNETS = [  # of concatenations only, so every neuron is a unit: the sum of all output channels
    zoo.Case(sample_unet, units=2 * (4 + 8 + 16) + 3 * (8 + 4) + 6, shape=(2, 1, 8, 8, 8)),
    zoo.Case(paper_unet, units=4 + 8 + 8 + 16 + 16 + 32 + 32 + 64 + 2 * (32 + 16 + 8) + 5, shape=(2, 1, 16, 16, 16)),
]
ALL = pytest.mark.parametrize("case", [*zoo.CASES, *zoo_calls.CASES, *UNETS], ids=lambda c: c.name)


@ALL
@pytest.mark.parametrize(("sparsity", "resource"), [(0.5, "flops"), pytest.param(0.9, "mem", marks=pytest.mark.slow)])
def test_laws(case, sparsity, resource, tmp_path):
    model = zoo.build(case)
    for p in list(model.parameters())[:2]:
        p.grad = torch.ones_like(p)
    list(model.parameters())[-1].requires_grad_(False)
    before = laws.snapshot(model)
    pruned = ranp.prune(model, zoo.batches(case), loss=zoo.loss, sparsity=sparsity, resource=resource, allow_less=True)
    laws.unchanged(model, before)
    x = zoo.inputs(case, torch.Generator().manual_seed(7))
    laws.slim_is_masked(model, pruned, x, case.statistics)
    for p in model.parameters():
        p.requires_grad_(True)
        p.grad = None
    for p in pruned.model.parameters():
        p.requires_grad_(True)
    laws.same_behaviour(model, pruned, x)
    laws.counts_agree(pruned, x)
    laws.survives_a_file(model, pruned, x, tmp_path / "slim.safetensors")
    laws.attributes_are_true(pruned.model)
    laws.nothing_was_hard_coded(pruned)
    report = pruned.report.to_dict()
    assert report["neurons"]["kept"] < report["neurons"]["total"]
    assert ("not_comparable" in report["verified"]) == case.statistics


@pytest.mark.parametrize(
    ("sparsity", "resource"), [(0.7824, "flops"), pytest.param(0.7817, "mem", marks=pytest.mark.slow)]
)
def test_laws_at_the_papers_sparsities(sparsity, resource, tmp_path):
    test_laws(UNETS[1], sparsity, resource, tmp_path)


@ALL
def test_units_by_hand(case):
    """Over-tying is a defect as much as under-tying."""
    graph = analyse(zoo.build(case), laws.example(zoo.inputs(case, torch.Generator())))
    assert len(graph.unit_roots) == case.units
    assert not graph.eval_run.tracer.unruled
    assert not graph.eval_run.real
    why = {r.what for r in graph.reasons if r is not None}
    assert why <= {"network output", "network input", "its only neuron", *case.fixed}


def passes_first(ties, x, *args, out, **options):
    """The commonest wrong rule: the output carries the labels of the first operand, and nothing is tied."""
    planes = x.planes if hasattr(x, "planes") else ()
    return [planes] if isinstance(out, list) else planes


def forgets(ties, *args, out, **options):
    """The other one: labels end here."""


def without_lanes(ties, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, *flags, out):
    neurons = ties.vector(weight, 0)
    ties.layer("conv3d", weight, neurons, groups=groups, kernel=tuple(weight.shape[2:]))
    ties.consume(ties.vector(weight, 1))
    return (neurons.view(1, -1, 1, 1, 1),)


def reversed_cat(ties, tensors, dim=0, *, out):
    return rules.find("test.cat")(ties, list(tensors)[::-1], dim, out=out)


CONTROLS = [
    ("aten.add", passes_first, "residual"),
    ("aten.add", forgets, "residual"),
    ("aten.mul", passes_first, "squeeze_excite"),
    ("aten.native_batch_norm", passes_first, "chain"),
    ("aten.native_group_norm", passes_first, "group_norm"),
    ("aten._prelu_kernel", passes_first, "gates"),
    ("aten.convolution", without_lanes, "grouped"),
    ("aten.convolution", without_lanes, "depthwise"),
    ("aten.cat", reversed_cat, "concatenation"),
    ("aten.cat", forgets, "unet_skip"),
    ("aten.relu", forgets, "concatenation"),
    ("aten.split", forgets, "chunk_gate"),
    ("aten.view", forgets, "flatten_linear"),
    ("aten.view", forgets, "linear_to_volume"),
    ("aten.max_pool3d_with_indices", forgets, "unet_skip"),
    ("aten.upsample_nearest3d", forgets, "unet_skip"),
    ("aten.copy", forgets, "cost_volume"),
    ("aten.t", forgets, "squeeze_excite"),
    ("aten.permute", forgets, "channels_last_block"),
    ("aten.mean", forgets, "linear_to_volume"),
]


@pytest.mark.parametrize(("op", "broken", "name"), CONTROLS, ids=lambda v: getattr(v, "__name__", v))
def test_a_broken_rule_is_noticed(op, broken, name, monkeypatch, tmp_path):
    case = next(c for c in (*zoo.CASES, *zoo_calls.CASES) if c.name == name)
    monkeypatch.setitem(rules._rules, "test.cat", rules._rules["aten.cat"])
    assert op in rules._rules
    monkeypatch.setitem(rules._rules, op, (broken, True))

    def held() -> None:
        test_laws(case, 0.5, "flops", tmp_path)
        test_units_by_hand(case)

    with pytest.raises((AssertionError, RanpError)):
        held()
