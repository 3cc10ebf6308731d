"""The table of measured times, and the search that goes by it. Times are given by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from small_nets import batch, net, weights
from torch import nn

import ranp_cli as ranp
from ranp_cli.api.time_search import fitted
from ranp_cli.cli import run
from ranp_cli.costs.latency_table import LatencyTable, OpTime, cache_file, described, knots, read_table
from ranp_cli.costs.timing import Ground, LayerOp

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = Ground(torch.device("cpu"))


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def convolution(groups: int = 1, width: int = 8) -> tuple:
    """A call of aten.convolution on meta tensors, with its sizes and the axes that shrink together."""
    x, w = torch.empty(1, width, 4, 4, 4, device="meta"), torch.empty(width, width // groups, 3, 3, 3, device="meta")
    call = (torch.ops.aten.convolution.default, (x, w, None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, groups), {})
    sizes = (*x.shape, *w.shape, *x.shape)
    return call, sizes, [[1, 5, 11]] if groups == width else [[1, 6], [5, 11]]


def op_time(table: LatencyTable, groups: int = 1, width: int = 8, share: float = 1.0) -> OpTime:
    call, sizes, together = convolution(groups, width)
    return OpTime(table, "conv", call, sizes, together, share, lambda at: float(np.prod(at[5:10])))


def at(op: OpTime, *widths: int) -> float:
    sizes = list(op.sizes)
    for group, width in zip(op.groups, widths, strict=True):
        for place in group:
            sizes[place] = width
    return op(tuple(sizes))


# -- the table


def test_knots_by_hand():
    assert knots(1) == [1]
    assert knots(8) == [1, 2, 3, 4, 6, 8]
    assert knots(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert knots(32)[-4:] == [12, 16, 24, 32]


def test_between_knots_times_are_interpolated(clock):
    """On a machine that counts weights the interpolation in two widths is exact."""
    clock(weights)
    op = op_time(LatencyTable(CPU), share=0.5)
    for a, b in ((8, 8), (4, 6), (5, 7), (1, 3), (7, 1)):
        assert at(op, a, b) == pytest.approx(0.5 * a * b * 27e-6)


def test_what_is_known_is_not_measured_again(clock):
    seen: list[str] = []
    clock(lambda work: (seen.append(work.key), weights(work))[1])
    table = LatencyTable(CPU)
    op = op_time(table)
    at(op, 5, 8)
    asked = len(seen)
    assert len(set(seen)) == len(table.known) == 2  # 4 and 6 of the first width
    at(op, 5, 8)
    at(op, 4, 8)
    assert len(seen) == asked


def test_a_depthwise_convolution_shrinks_with_its_groups(clock):
    clock(weights)
    table = LatencyTable(CPU)
    op = op_time(table, groups=8)
    assert not op.by_macs
    assert at(op, 4) == pytest.approx(4 * 27e-6)
    assert op.resized((4,))[1][8] == 4
    func, args, kwargs = op.resized((4,))
    assert func(*args, **kwargs).shape == (1, 4, 4, 4, 4)


def test_other_groups_are_estimated_by_multiply_adds(clock):
    clock(weights)
    call, sizes, _ = convolution(groups=2)
    op = OpTime(LatencyTable(CPU), "conv", call, sizes, [[5, 11]], 1.0, lambda at: float(np.prod(at[5:10])))
    assert op.by_macs
    assert at(op, 4) == pytest.approx(at(op, 8) / 2)


def test_layouts_are_those_of_the_call():
    x = torch.empty(1, 8, 4, 4, 4, device="meta").to(memory_format=torch.channels_last_3d)
    call, sizes, together = convolution()
    func, args, kwargs = call
    op = OpTime(LatencyTable(CPU), "conv", (func, (x, *args[1:]), kwargs), sizes, together, 1.0, lambda at: 1.0)
    small = op.resized((4, 8))[1][0]
    assert small.shape == (1, 4, 4, 4, 4)
    assert small.is_contiguous(memory_format=torch.channels_last_3d)


def test_it_is_kept_and_found_again(clock):
    clock(weights)
    table = LatencyTable.open(CPU)
    at(op_time(table), 5, 8)
    table.write()
    file = cache_file(described(CPU))
    assert file.parent == Path(file.parent.parent / "ranp")
    document = read_table(file)
    assert document["ground"]["threads"] == 1
    clock(lambda work: 1 / 0)  # nothing is measured
    again = LatencyTable.open(CPU)
    assert at(op_time(again), 5, 8) == pytest.approx(40 * 27e-6)
    assert (len(again.used), len(again.fresh)) == (2, 0)
    more = LatencyTable(CPU, {}, {"x": 1.0})  # another run adds to it
    more.write()
    assert set(read_table(file)["seconds"]) == {*document["seconds"], "x"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is no table of latencies"),
        ('{"format": "ranp-mask", "version": 1, "ground": {}, "seconds": {}}', "'format' is 'ranp-mask'"),
        ('{"format": "ranp-latencies", "version": 2, "ground": {}, "seconds": {}}', "version 2 of the format is not 1"),
        ('{"format": "ranp-latencies", "version": 1, "ground": {}, "seconds": {"a": 0}}', "a time that is not above 0"),
        ('{"format": "ranp-latencies", "version": 1, "ground": {}, "seconds": {"a": "1"}}', "wants a number"),
    ],
)
def test_a_damaged_table(text, says, tmp_path):
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(ranp.BadInput, match=says):
        read_table(file)


def test_factors_by_hand():
    """Ops take 3 and 1 second, outputs have 10 and 5 elements: 7 and 3 seconds are 1 of ops and 0.4 an element."""
    assert fitted((3, 1), (10, 5), (7, 3)) == pytest.approx((1, 0.4, 0))
    assert fitted((3, 1), (10, 5), (9, 2)) == (2, 0, 0)  # an element would take less than nothing
    assert fitted((3, 1), (10, 5), (6, 4)) == (1, 0, 3)  # ops would: 3 seconds are there in any case
    assert fitted((3, 1), (10, 5), (3, 3)) == (3, 0, 0)


# -- the search


def steps_of_four(work) -> float:
    """A machine on which widths count as the next multiple of 4."""
    if isinstance(work, LayerOp):
        w = work.call[1][1]
        return float(np.prod([-(-n // 4) * 4 for n in w.shape[:2]])) * w[0, 0].numel() * 1e-6
    return sum(
        float(np.prod([-(-n // 4) * 4 for n in p.shape[:2]])) * p[0, 0].numel() * 1e-6
        for p in work.module.parameters()
        if p.ndim > 1
    )


SLOW = pytest.mark.slow
KINDS = [
    (20, "latency"),
    (40, "step-time"),
    pytest.param(20, "step-time", marks=SLOW),
    pytest.param(40, "latency", marks=SLOW),
]


@pytest.mark.parametrize(("share", "kind"), KINDS)
def test_more_importance_in_no_more_time(kind, share, clock):
    clock(steps_of_four)
    report = ranp.prune(net(), batch(), budget=f"{kind}={share}%").report.to_dict()
    found = report["time_search"]
    first, taken = found["tried"][0], found["tried"][found["taken"]]
    assert (first["by"], taken["by"]) == ("sparsity", "exchange")
    assert taken["importance"] > 1.05 * first["importance"]
    line = report["budget"][0]
    assert taken["seconds"] == line["after"] <= line["bound"]
    assert (taken["kept"], taken["macs"]) == (report["neurons"]["kept"], report["after"]["macs"])
    assert found["table"]["times"] >= found["table"]["measured"] > 0
    again = ranp.prune(net(), batch(), budget=f"{kind}={share}%").report.to_dict()
    assert again["time_search"]["table"]["measured"] == 0
    assert again["neurons"]["kept"] == taken["kept"]


def test_never_worse_than_the_best_sparsity(clock):
    """A table that is all wrong: ops take the same time at all widths. Whatever is raced then, the limit and the importance hold."""
    clock(lambda work: 1e-3 if isinstance(work, LayerOp) else weights(work))
    report = ranp.prune(net(), batch(), budget="latency=30%").report.to_dict()
    found = report["time_search"]
    assert found["tried"][found["taken"]]["importance"] >= found["tried"][0]["importance"]
    assert report["budget"][0]["after"] <= report["budget"][0]["bound"]


@pytest.mark.parametrize(
    "options",
    [{"method": "layerwise"}, {"method": "random"}, {"round_to": 4}, {"resource_term": "unit"}],
    ids=lambda options: next(iter(options)) + "=" + str(next(iter(options.values()))),
)
def test_where_importance_does_not_add_up_the_best_sparsity_is_taken(options, clock):
    clock(weights)
    report = ranp.prune(net(), batch(), budget="latency=50%", **options).report.to_dict()
    assert "time_search" not in report


def test_other_limits_are_kept_too(clock):
    clock(weights)
    report = ranp.prune(net(), batch(), budget=["latency=50%", "macs=25%"]).report.to_dict()
    assert all(line["after"] <= line["bound"] for line in report["budget"])


@pytest.mark.slow
def test_a_table_can_be_carried(clock, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clock(steps_of_four)
    torch.save(batch(), "calib.pt")
    words = "prune ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3 --batch calib.pt --budget latency=40% --threads 1 -o slim.safetensors".split()
    assert run(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "exchanged: units exchanged by importance per millisecond keep " in out
    (file,) = Path("cache/ranp").iterdir()
    file.rename("table.json")
    assert run([*words, "--latencies", "table.json", "--json", "report.json"]) == 0
    assert json.loads(Path("report.json").read_text())["time_search"]["table"]["measured"] == 0
    assert not list(Path("cache/ranp").iterdir())
    capsys.readouterr()
    assert run([*words[:-4], "--threads", "2", "-o", "slim.safetensors", "--latencies", "table.json"]) == 2
    assert "the table is of threads 1, and this run has 2; give --threads 1, or another table" in " ".join(
        capsys.readouterr().err.split()
    )
    assert run([*words[:-6], "--sparsity", "0.5", "-o", "slim.safetensors", "--latencies", "table.json"]) == 2
    says = (
        "a table of times goes with one limit of time, such as --budget latency=20ms, and a --method that ranks neurons"
    )
    assert says in " ".join(capsys.readouterr().err.split())
    assert run([*words, "--method", "layerwise", "--latencies", "table.json"]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_cache_folder_that_cannot_be_written_is_said(clock, tmp_path, monkeypatch):
    clock(steps_of_four)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    report = ranp.prune(net(), batch(), budget="latency=40%").report.to_dict()
    assert any("the table of latencies is not kept for the next run" in note for note in report["notes"])
    assert report["time_search"]["taken"] > 0


def test_an_op_of_a_matrix_keeps_its_layout():
    """The weight of a linear layer comes transposed."""
    linear = nn.Linear(8, 6)
    call = (
        torch.ops.aten.addmm.default,
        (linear.bias.to("meta"), torch.empty(3, 8, device="meta"), linear.weight.to("meta").t()),
        {},
    )
    op = OpTime(LatencyTable(CPU), "fc", call, (6, 3, 8, 8, 6, 3, 6), [[0, 4, 6], [2, 3]], 1.0, lambda at: 1.0)
    assert not op.by_macs
    weight = op.resized((3, 4))[1][2]
    assert (weight.shape, weight.stride()) == ((4, 3), (1, 4))


def test_a_damaged_table_in_the_cache_is_said_and_measured_anew(clock):
    clock(steps_of_four)
    ranp.prune(net(), batch(), budget="latency=40%")
    (file,) = Path(cache_file(described(CPU))).parent.iterdir()
    good = json.loads(file.read_text())
    file.write_text("{")
    report = ranp.prune(net(), batch(), budget="latency=40%").report.to_dict()
    assert any("the table of latencies in the cache folder is not used: " in note for note in report["notes"])
    assert report["time_search"]["table"]["measured"] > 0
    assert json.loads(file.read_text()) == good


@pytest.mark.slow
def test_a_table_of_another_processor_is_said(clock):
    clock(steps_of_four)
    ranp.prune(net(), batch(), budget="step-time=40%")
    table = read_table(cache_file(described(CPU)))
    table["ground"]["processor"] = "Z80"
    report = ranp.prune(net(), batch(), budget="step-time=40%", latencies=table, threads=1).report.to_dict()
    assert report["time_search"]["table"]["measured"] == 0
    assert any("the table of latencies is of Z80, and whole networks are timed here, on " in n for n in report["notes"])


def test_the_report_is_of_the_network_that_is_taken(clock):
    """Of exchanged units no sparsity was asked, and the floor that is named is the one that they have."""
    clock(steps_of_four)
    pruned = ranp.prune(net(), batch(), budget="latency=25%", min_neurons=3)
    report = pruned.report.to_dict()
    assert report["time_search"]["taken"] > 0
    assert report["sparsity"]["requested"] == pytest.approx(report["sparsity"]["achieved"], abs=1e-6)
    sizes = {name: (len(layer["kept"]), layer["neurons"]) for name, layer in pruned.mask.layers.items()}
    assert set(pruned.mask.floored) == {name for name, (kept, whole) in sizes.items() if kept == 3 < whole}
    assert "floor" not in report
    assert not any("was asked" in note for note in report.get("notes", ()))


@pytest.mark.slow
def test_with_a_rounding_that_is_taken_nothing_is_said_of_another_network(clock):
    """A machine that likes networks of multiples of 8, and layers of all other widths: those the exchange keeps away from."""

    def seconds(work) -> float:
        if isinstance(work, LayerOp):
            return weights(work) * (100 if work.call[1][1].shape[0] % 8 == 0 else 1)
        widths = [p.shape[0] for p in work.module.parameters() if p.ndim == 5 and p.shape[2] == 3]
        return weights(work) / (20 if np.gcd.reduce(widths) % 8 == 0 else 1)

    clock(seconds)
    report = ranp.prune(net(32), batch(), round_to="auto", budget="latency=20%").report.to_dict()
    assert report["rounding"]["chosen"] > 1
    assert "time_search" not in report


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if k % 3 == 0 else pytest.mark.slow)
        for k, case in enumerate(zoo.CASES)
    ],
)
def test_every_network_keeps_the_limit_and_the_laws(case, clock):
    """Whatever its ops are: the slim network is verified, and keeps no less importance than the best sparsity."""
    clock(weights)
    model, batches = zoo.build(case), zoo.batches(case)
    options = {"loss": zoo.loss, "min_neurons": 1}
    smallest = ranp.prune(model, batches, sparsity=0.99, allow_less=True, **options).report.to_dict()
    share = (1 + smallest["after"]["params"] / smallest["before"]["params"]) / 2  # half way between both
    report = ranp.prune(model, batches, budget=f"latency={100 * share}%", **options).report.to_dict()
    assert report["budget"][0]["after"] <= report["budget"][0]["bound"]
    if found := report.get("time_search"):
        assert found["tried"][found["taken"]]["importance"] >= found["tried"][0]["importance"]
