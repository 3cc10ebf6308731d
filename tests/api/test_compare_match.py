"""Tables of `compare` cut to one size, and the controls that keep the counts and not the neurons."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from compared_nets import ARGS, UNET, batch, net, parameters
from torch import nn

import ranp_cli as ranp
from ranp_cli.api.comparison.rows import shuffled
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.models.unet3d import unet3d
from ranp_cli.pruning.select import select


@pytest.mark.parametrize(
    ("match", "key"),
    [
        ("macs", "macs"),
        pytest.param("mem", "activation_bytes", marks=pytest.mark.slow),
        pytest.param("params", "params", marks=pytest.mark.slow),
    ],
)
def test_matched_rows_have_the_most_that_is_not_above_the_first(match, key):
    methods = ["full", "ranp-m", "random", "layerwise", "flat", "snip", "shuffle:random"]
    table = ranp.compare(net(4), batch(), sparsity=0.6, methods=methods, match=match)
    bound = table.rows[1]["after"][key]
    n = table.report.parts["neurons"]["total"]
    levels = [1 - (k + 0.5) / n for k in range(n)]
    every = at_every_size(tuple(levels))
    for row in table.rows[2:]:
        assert row["matched"] == {"to": "ranp-mem", "resource": match, "bound": bound}
        assert row["after"][key] <= bound
        rivals = [r["after"][key] for r in every if r["method"] == row["method"] and r["after"][key] <= bound]
        assert not rivals or row["after"][key] == max(rivals)
    assert "matched" not in table.rows[1]
    assert "of ranp-mem" in table.markdown()
    assert table.csv().splitlines()[2].split(",")[-3:] == ["", "", ""]
    assert table.csv().splitlines()[3].split(",")[-3:] == ["ranp-mem", match, str(bound)]
    plain = ranp.compare(net(4), batch(), sparsity=0.6, methods=methods)
    assert any(row["after"][key] > bound for row in plain.rows[2:])  # without it they are not


@cache
def at_every_size(levels):
    return ranp.compare(net(4), batch(), sparsity=levels, methods=["random", "layerwise", "flat"]).rows


def test_matched_per_seed():
    table = ranp.compare(
        UNET,
        batch(),
        model_args=ARGS,
        sparsity=0.5,
        methods=["ranp-f", "random"],
        match="macs",
        fit=parameters,
        seeds=2,
        min_neurons=1,
    )
    for first, second in zip(*(row["seeds"] for row in table.rows), strict=True):
        assert second["matched"]["bound"] == first["after"]["macs"] >= second["after"]["macs"]
    assert len({each["matched"]["bound"] for each in table.rows[1]["seeds"]}) == 2


def macs_of(width: int) -> int:
    return ranp.profile(unet3d(**{**ARGS, "width": width}), (1, 1, 8, 8, 8)).to_dict()["before"]["macs"]


@pytest.mark.parametrize("model", [UNET, unet3d])
def test_width_is_the_widest_that_is_not_above(model):
    table = ranp.compare(
        model, batch(), model_args={**ARGS, "width": 8}, sparsity=0.5, methods=["ranp-f", "width"], width_arg="width"
    )
    first, row = table.rows
    value = row["width"]["value"]
    assert row["width"] == {"argument": "width", "value": value, "of": 8}
    assert row["after"]["macs"] == macs_of(value) <= first["after"]["macs"] < macs_of(value + 1)
    assert row["kept"] == sum(row["layers_kept"])


def even(width: int = 8) -> nn.Module:
    if width % 2:
        raise ValueError("an even width is wanted")
    return unet3d(**{**ARGS, "width": width})


def test_widths_that_the_factory_does_not_take_are_passed_over():
    table = ranp.compare(
        even, batch(), sparsity=0.3, methods=["ranp-f", "width"], width_arg="width", fit=parameters, seeds=1
    )
    first, row = table.rows
    assert row["width"]["value"] % 2 == 0
    assert macs_of(row["width"]["value"]) <= first["after"]["macs"] < macs_of(row["width"]["value"] + 2)
    assert row["accuracy"]["mean"] == row["after"]["params"]


def test_width_wants_a_factory(tmp_path):
    with pytest.raises(ranp.BadInput, match="builds narrower networks; give MODEL as file"):
        ranp.compare(net(), batch(), sparsity=0.5, methods=["ranp-f", "width"], width_arg="width")
    torch.save(net().state_dict(), tmp_path / "w.pt")
    same = {"model_args": ARGS, "weights": str(tmp_path / "w.pt"), "sparsity": 0.5, "methods": ["ranp-f", "width"], "width_arg": "width", "seeds": 1}  # fmt: skip
    with pytest.raises(ranp.BadInput, match="would start from others than the rest"):
        ranp.compare(UNET, batch(), fit=parameters, **same)
    assert len(ranp.compare(UNET, batch(), fit=parameters, init="glorot", **same).rows) == 2


class Tied(nn.Module):
    """Two layers whose neurons are tied by a sum, one alone, and a fixed output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 12, 1), nn.Conv3d(12, 12, 1)
        self.c, self.head = nn.Conv3d(12, 20, 1), nn.Conv3d(20, 2, 1)

    def forward(self, x):
        y = self.a(x)
        return self.head(self.c(y + self.b(y)))


@pytest.mark.parametrize("model", [Tied, lambda: net(8)])
def test_a_shuffle_has_the_same_counts_and_other_neurons(model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = analyse(model(), Example((torch.zeros(1, 1, 8, 8, 8),)))
    scores = [np.random.default_rng(k).random(n) for k, n in enumerate(graph.sizes)]
    chosen = select(graph, scores, 0.5)
    other, third = shuffled(graph, chosen, 0), shuffled(graph, chosen, 1)
    counts = [[int(k.sum()) for k in graph.by_layer(c.keep[graph.unit])] for c in (chosen, other, third)]
    assert counts[0] == counts[1] == counts[2]
    assert not np.array_equal(chosen.keep, other.keep)
    assert not np.array_equal(other.keep, third.keep)
    assert np.array_equal(other.keep, shuffled(graph, chosen, 0).keep)
    assert all((c.keep & graph.fixed_units).sum() == graph.fixed_units.sum() for c in (other, third))


def test_a_shuffled_row_costs_the_same():
    table = ranp.compare(net(8), batch(), sparsity=[0.5, "max"], methods=["ranp-m", "shuffle:ranp-m"])
    assert [row["method"] for row in table.rows] == ["ranp-mem", "ranp-mem", "shuffle:ranp-mem", "shuffle:ranp-mem"]
    for own, other in zip(table.rows[:2], table.rows[2:], strict=True):
        assert own["layers_kept"] == other["layers_kept"]
        assert own["after"] == other["after"]
