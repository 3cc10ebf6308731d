"""How gradients are taken: precisions, layouts, recomputation, streams that stop and go on; the scores stay what they are."""

from __future__ import annotations

import gc
import itertools
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paths import SAMPLES
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

import ranp_cli as ranp
from ranp_cli.api.importances import gradient_setup
from ranp_cli.api.options import GradientOptions
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput, Infeasible, Interrupted
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.io.batches import Batch
from ranp_cli.models.unet3d import unet3d
from ranp_cli.scoring import layout, recompute, recompute_plan, scorer
from ranp_cli.scoring.compensated_sum import CompensatedSum
from ranp_cli.scoring.criteria import criterion

CONFIGS = SAMPLES


class Blocks(nn.Module):
    """Three blocks of convolution, norm and activation, the second residual, the third with random depth."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(i, o, 3, padding=1), nn.BatchNorm3d(o), nn.LeakyReLU(0.1, inplace), nn.Dropout3d(0.5)
            )
            for i, o in ((1, 6), (6, 6), (6, 8))
        )
        self.head = nn.Conv3d(8, 3, 1)

    def forward(self, x):
        x = self.blocks[0](x)
        x = x + self.blocks[1](x)
        x = F.dropout(self.blocks[2](x), 0.5, self.training)
        if self.training:
            x = x * torch.rand(x.shape[0], 1, 1, 1, 1, dtype=x.dtype, device=x.device)
        return self.head(x)


def blocks(inplace=False):
    torch.manual_seed(0)
    return Blocks(inplace)


def batches(n=3, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(2, 1, size, size, size, generator=g), torch.randint(3, (2, size, size, size), generator=g))
            for _ in range(n)]  # fmt: skip


def same(one, other):
    return all(np.array_equal(one.layers[name], other.layers[name]) for name in one.layers)


def close(one, other, tolerance):
    return all(np.allclose(one.layers[k], other.layers[k], rtol=tolerance, atol=tolerance * one.layers[k].max())
               for k in one.layers)  # fmt: skip


# -- sums


def test_a_sum_does_not_depend_on_the_order():
    g = torch.Generator().manual_seed(0)
    terms = [torch.randn(50, generator=g).double() * 10 ** random.Random(k).uniform(-8, 8) for k in range(60)]
    values = []
    for seed in range(5):
        order = random.Random(seed).sample(terms, len(terms))
        whole, parts = CompensatedSum.of(order[0]), [CompensatedSum.of(t) for t in order[1::2]]
        for t in order[2::2]:
            whole.add(t)
        for part in parts:
            whole.merge(part)
        values.append(whole.value)
    assert all(torch.equal(values[0], v) for v in values)
    plain = {tuple(sum(random.Random(seed).sample(terms, len(terms))).tolist()) for seed in range(5)}
    assert len(plain) > 1  # what it is for


def test_a_sum_keeps_what_rounding_would_lose():
    total = CompensatedSum.of(torch.tensor([1e16], dtype=torch.float64))
    for term in (1.0, 1.0, -1e16):
        total.add(torch.tensor([term], dtype=torch.float64))
    assert total.value.item() == 2.0


# -- precisions and layouts


@pytest.mark.parametrize("criterion", ["mpmg-sum", "mpmg-max", "mnmg-mean", "neuron", "taylor", "snip"])
def test_fp64_is_the_model_in_double(criterion):
    double = [(x.double(), y) for x, y in batches()]
    wanted = ranp.score(blocks().double(), double, criterion=criterion)
    found = ranp.score(blocks(), batches(), criterion=criterion, precision="fp64")
    assert close(wanted, found, 1e-6)
    assert found.about["precision"] == "fp64"


@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 0.2), ("fp16", 0.05), ("fp32", 0)])
def test_lower_precisions_are_near(name, tolerance):
    wanted = ranp.score(blocks(), batches())
    found = ranp.score(blocks(), batches(), precision=name)
    assert close(wanted, found, tolerance)
    assert same(wanted, found) == (name == "fp32")


def test_fp16_turns_its_scale_down_where_gradients_overflow():
    def steep(output, target):
        return 3e3 * F.cross_entropy(output, target, reduction="sum")

    wanted = ranp.score(blocks(), batches(), loss=steep)
    found = ranp.score(blocks(), batches(), loss=steep, precision="fp16")
    assert close(wanted, found, 0.05)


def test_auto_takes_bf16_when_the_mask_agrees(monkeypatch):
    monkeypatch.setattr(scorer, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(scorer, "AGREE", 0.0)
    scoring = ranp.score(blocks(), batches(), precision="auto").report.to_dict()["scoring"]
    assert scoring["precision"] == "bf16"
    assert 0.5 < scoring["agreement"] <= 1
    monkeypatch.setattr(scorer, "AGREE", 1.01)
    report = ranp.score(blocks(), batches(), precision="auto").report.to_dict()
    assert report["scoring"]["precision"] == "fp32"
    assert "bf16 keeps" in report["notes"][0]


def test_auto_is_fp32_where_bf16_would_not_be_faster(monkeypatch):
    monkeypatch.setattr(scorer, "has_fast_bf16", lambda device: False)
    wanted = ranp.score(blocks(), batches())
    found = ranp.score(blocks(), batches(), precision="auto")
    assert same(wanted, found)
    assert "no bf16 units" in found.report.to_dict()["notes"][0]


def test_auto_has_nothing_to_win_from_one_mini_batch():
    found = ranp.score(blocks(), batches(1), precision="auto")
    assert same(ranp.score(blocks(), batches(1)), found)
    assert "there was one mini-batch" in found.report.to_dict()["notes"][0]


def test_prune_records_the_precision(tmp_path):
    result = ranp.prune(blocks(), batches(), sparsity=0.5, precision="bf16")
    assert result.mask.method["precision"] == "bf16"
    assert "precision" not in ranp.prune(blocks(), batches(), sparsity=0.5).mask.method


def poison():
    """Freed memory that is full of NaN, for the next one who does not write before reading."""
    kept = [torch.full((n,), float("nan")) for n in (10**3, 10**4, 10**5, 10**6) for _ in range(2)]
    del kept


@pytest.mark.parametrize("low_memory", [False, True])
def test_half_precision_reads_nothing_that_nobody_wrote(low_memory):
    """oneDNN 3.12 (torch 2.13)'s bf16 gradient of a 3x3x3 weight over a depth of 2 does, on processors with bf16 units."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Conv3d(4, 48, 1), nn.BatchNorm3d(48), nn.Conv3d(48, 128, 3, padding=1)), nn.ReLU(),
                          nn.Conv3d(128, 3, 1))  # fmt: skip
    x, y = torch.randn(2, 4, 2, 8, 8), torch.randint(3, (2, 2, 8, 8))

    def loss(output, target):
        poison()
        return F.cross_entropy(output, target)

    wanted = ranp.score(model, [(x, y)])
    for _ in range(3):
        found = ranp.score(model, [(x, y)], loss=loss, precision="bf16", low_memory=low_memory)
        assert close(wanted, found, 0.1)


class Shared(list):
    """A list that a copied model goes on to write to."""

    def __deepcopy__(self, memo):
        return self


def layouts(model, x, y):
    """Which activations of convolutions lie channels last while the model is scored."""
    seen = Shared()
    handles = [m.register_forward_hook(lambda m, i, out: seen.append(out.is_contiguous(memory_format=torch.channels_last_3d)))
               for m in model.modules() if isinstance(m, nn.Conv3d)]  # fmt: skip
    ranp.score(model, [(x, y)])
    for handle in handles:
        handle.remove()
    return seen[-len(handles) :]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_lie_last_all_through_the_network(channels):
    model = nn.Sequential(
        nn.Conv3d(channels, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 5, 3), nn.Conv3d(5, 2, 3)
    )
    g = torch.Generator().manual_seed(0)
    seen = layouts(
        model, torch.randn(2, channels, 10, 10, 10, generator=g), torch.randint(2, (2, 4, 4, 4), generator=g)
    )
    assert seen[1:] == [True, True]


class Flat(nn.Module):
    """Its `view` takes tensors in the order of their axes only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv3d(2, 4, 3), nn.Linear(4 * 64, 3)

    def forward(self, x):
        return self.head(self.conv(x).view(x.shape[0], -1))


def test_code_that_needs_the_plain_layout_gets_it():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 6, 6, 6, generator=g), torch.tensor([0, 2])
    model = Flat()
    F.cross_entropy(model(x), y).backward()
    wanted = (model.conv.weight * model.conv.weight.grad).abs().sum((1, 2, 3, 4))
    found = ranp.score(Flat(), [(x, y)]).layers["conv"]
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norms_are_computed_another_way_with_the_same_numbers(affine):
    def scores(precision: str) -> list[np.ndarray]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(1, 6, 3), nn.InstanceNorm3d(6, affine=affine), nn.ReLU(), nn.Conv3d(6, 2, 1))
        g = torch.Generator().manual_seed(0)
        batch = torch.randn(2, 1, 10, 10, 10, generator=g) + 50, torch.randint(2, (2, 8, 8, 8), generator=g)
        return list(ranp.score(model, [batch], precision=precision).layers.values())

    for found, wanted in zip(scores("fp32"), scores("fp64"), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_an_instance_norm_with_statistics_of_its_own_keeps_them():
    norm, x = nn.InstanceNorm3d(2, track_running_stats=True).eval(), torch.randn(1, 2, 4, 4, 4)
    with layout.ConvolutionOverrides(True):
        assert torch.equal(norm(x), x / (1 + 1e-5) ** 0.5)
        with pytest.raises(ValueError, match="more than 1 spatial"):
            nn.InstanceNorm3d(2)(torch.ones(1, 2, 1, 1, 1))


GROUPED = {
    "depthwise": (F.conv3d, (32, 1, 5, 5, 5), {"groups": 32, "padding": 2}),
    "strided": (F.conv3d, (32, 1, 3, 3, 3), {"groups": 32, "padding": (1, 1, 0), "stride": (2, 1, 2)}),
    "dilated": (F.conv3d, (64, 8, 3, 3, 3), {"groups": 4, "padding": "same", "dilation": 2}),
    "valid": (F.conv3d, (32, 1, 3, 3, 3), {"groups": 32, "padding": "valid"}),
    "transposed": (F.conv_transpose3d, (32, 2, 4, 4, 4), {"groups": 16, "stride": 2, "padding": 1}),
}


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("near", [0.99, 1.01])  # of the places where it is the one or the other
def test_a_grouped_convolution_over_few_places_runs_in_the_order_of_its_axes(kind, near, monkeypatch):
    conv, shape, how = GROUPED[kind]
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 32, 6, 5, 6, generator=g), torch.randn(shape, generator=g)
    wanted = conv(x, weight, **how)
    side = x if conv is F.conv_transpose3d else wanted
    of_a_group = -(-shape[0] // how["groups"] // 16) * 16 * -(-shape[1] // 16) * 16
    blocks = how["groups"] * of_a_group * shape[2] * shape[3] * shape[4]
    monkeypatch.setattr(layout, "FEW", near * blocks / (side.numel() / side.shape[1]))
    seen, found = reads(conv, x, weight, **how)
    assert seen == [near < 1]
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "window", "plain"), [((6, 6, 6), 3, False), ((6, 6, 5), 3, True), ((6, 6, 5), 1, False)]
)
def test_a_convolution_whose_weight_is_larger_than_its_input_too(size, window, plain):
    x, weight = torch.rand(1, 8, *size), torch.rand(8, 8, window, window, window)
    seen, found = reads(F.conv3d, x, weight, padding="same")
    assert seen == [plain]
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


def reads(conv, x, weight, **how):
    """Whether convolutions of a channels-last input read it in the order of its axes; and the output."""
    seen = []

    class Sees(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default:
                seen.append(args[0].is_contiguous())
            return func(*args, **(kwargs or {}))

    with layout.ConvolutionOverrides(True), Sees():
        return seen, conv(layout.channels_last(x), weight, **how)


# -- recomputation


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("criterion", ["mpmg-sum", "mnmg-max", "snip", "neuron", "taylor"])
def test_low_memory_gives_the_same_scores(criterion, inplace):
    wanted = ranp.score(blocks(inplace), batches(), criterion=criterion)
    found = ranp.score(blocks(inplace), batches(), criterion=criterion, low_memory=True)
    assert same(wanted, found)
    assert "computed_twice" in found.report.to_dict()["scoring"]


def test_what_is_drawn_is_drawn_again():
    """Without the seed of each mini-batch, or with dropout in the second run only, the scores would differ."""
    wanted = ranp.score(blocks(), batches(), seed=3)
    assert not same(wanted, ranp.score(blocks(), batches(), seed=4))
    assert same(wanted, ranp.score(blocks(), batches(), seed=3, low_memory=True))


def planner(model, size=16, layout=True, precision="model"):
    example = Example((torch.empty(2, 1, size, size, size),))
    return recompute_plan.planner(
        model, analyse(model, example), example, recompute_plan.ScoringSetup(layout, precision)
    )


def test_the_plan_lowers_the_peak_and_keeps_to_the_limit():
    p = planner(unet3d(7, 16, 1, 4), 32)
    plain, lowest = p.measure(None), p.plan(None)
    assert lowest.peak < 0.75 * plain.peak
    assert lowest == p.measure(lowest.max_macs_per_element, lowest.max_costly_ops)
    assert 0 < lowest.again < 0.5
    assert p.plan(plain.peak) == plain
    least = p.measure(0)
    assert plain.peak > least.peak > lowest.peak
    assert p.plan(least.peak) == least  # no more than is needed
    with pytest.raises(Infeasible, match=r"a memory limit of 1 MiB cannot be kept.* at least \d"):
        p.plan(2**20)


def test_half_of_a_plain_pass_at_a_part_of_a_forward_pass():
    """nnU-Net's blocks: convolution, instance norm, an activation in place, twice a stage, and skips across two stages."""

    def block(a, b):
        return nn.Sequential(
            nn.Conv3d(a, b, 3, padding=1), nn.InstanceNorm3d(b, affine=True), nn.LeakyReLU(inplace=True)
        )

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.ModuleList(nn.Sequential(block(a, b), block(b, b)) for a, b in ((1, 16), (16, 32), (32, 64)))
            self.ups = nn.ModuleList(nn.ConvTranspose3d(a, a // 2, 2, 2) for a in (64, 32))
            self.decode = nn.ModuleList(nn.Sequential(block(a, a // 2), block(a // 2, a // 2)) for a in (64, 32))
            self.head = nn.Conv3d(16, 4, 1)

        def forward(self, x):
            first = self.down[0](x)
            second = self.down[1](F.max_pool3d(first, 2))
            x = self.down[2](F.max_pool3d(second, 2))
            for up, decode, skip in zip(self.ups, self.decode, (second, first), strict=True):
                x = decode(torch.cat((up(x), skip), 1))
            return self.head(x)

    plan = planner(Skips(), 32, layout=False).plan(None)
    assert plan.peak <= 0.5 * plan.plain
    assert plan.again < 1


class Recurrent(nn.Module):
    """A cell that is one op on a CPU, and many on meta tensors."""

    def __init__(self):
        super().__init__()
        self.conv, self.cell, self.head = (
            nn.Conv3d(1, 8, 3, padding=1),
            nn.LSTM(8, 64, batch_first=True),
            nn.Linear(64, 4),
        )

    def forward(self, x):
        y = F.max_pool3d(F.relu(self.conv(x)), 8).flatten(2).transpose(1, 2)
        return self.head(self.cell(y)[0]).transpose(1, 2)


class Attends(Recurrent):
    def forward(self, x):
        y = F.max_pool3d(F.relu(self.conv(x)), 8).flatten(2).transpose(1, 2)
        y = F.scaled_dot_product_attention(y, y, y)
        return self.head(self.cell(y)[0]).transpose(1, 2)


def measured(model, x, plan, setting):
    """The peak of torch's CPU allocator while a mini-batch is scored, beyond what was there."""
    graph = analyse(model, Example((x,)))
    at_work = scorer.Scorer(model, graph, lambda output, _: recompute_plan.plain_loss(output), [criterion("mpmg-sum")],
                               torch.device("cpu"), 0, scorer.GradientSetup(setting.precision))  # fmt: skip
    at_work.plan, at_work.layout = plan, setting.layout
    batch = Batch((x,), {}, torch.zeros(()))
    (collector,) = at_work.collectors
    with collector.watching():
        at_work.run(0, batch)
        collector.drop_batch()
        gc.collect()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            at_work.run(0, batch)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize(
    ("build", "precision", "most", "row"),
    [
        *((lambda: unet3d(7, 16, 1, 4), "model", most, row) for most, row in ((None, 1), (0, 1), (512, 1), (4096, 2))),
        *((lambda: unet3d(7, 16, 1, 4), precision, 4096, 1) for precision in ("bf16", "fp64")),
        *((cell, "model", most, 1) for cell in (Recurrent, Attends) for most in (None, 0)),
        (Attends, "bf16", 0, 1),
    ],
)
def test_the_estimated_peak_is_the_measured_one(build, precision, most, row):
    model = build().train()
    p = planner(model, 32, precision=precision)
    assert (p.ground is not None) == (precision == "bf16" or isinstance(model, Recurrent))
    plan = p.measure(most, row)
    there_before = sum(t.numel() * t.element_size() for t in p.held)
    found = measured(model, torch.randn(2, 1, 32, 32, 32), plan, p.setting)
    assert found == pytest.approx(plan.peak - there_before, rel=0.1)


class Doubled(nn.Conv3d):
    """Autograd keeps its input times two, not its input: it does not notice when that is overwritten."""

    def forward(self, x):
        return super().forward(2 * x)


class Overwrites(nn.Module):
    """A block that changes its input, and one whose input is changed after it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Tanh())
        self.changes = nn.Sequential(
            nn.LeakyReLU(0.1, inplace=True), nn.Conv3d(6, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Tanh()
        )
        self.before = nn.Sequential(Doubled(6, 6, 1), nn.BatchNorm3d(6), nn.Tanh())
        self.head = nn.Conv3d(6, 3, 1)

    def forward(self, x):
        x = self.changes(self.first(x) * 1)
        noise = torch.rand_like(x)
        y = self.before(noise)
        noise.mul_(0.5)
        return self.head(x + y + noise)


@pytest.mark.parametrize("layout", [True, False])
def test_what_is_overwritten_is_known_as_it_was(layout, monkeypatch):
    if not layout:
        monkeypatch.setattr(scorer, "channels_last", lambda value: value)
    wanted = ranp.score(Overwrites(), batches(size=16))
    assert same(wanted, ranp.score(Overwrites(), batches(size=16), low_memory=True))
    monkeypatch.setattr(recompute.Recompute, "_rescue", lambda self, key: None)
    assert not same(wanted, ranp.score(Overwrites(), batches(size=16), low_memory=True))


class Writes(nn.Module):
    """Noise that is written over behind autograd's back, after a recipe has taken it in."""

    def __init__(self, write):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = (
            nn.Conv3d(1, 8, 3, padding=1),
            nn.Conv3d(8, 8, 3, padding=1),
            nn.Conv3d(8, 3, 1),
        )
        self.write = write

    def forward(self, x):
        x = F.relu(self.first(x))
        noise = torch.rand_like(x)
        y = F.elu(x + noise)
        with torch.no_grad():
            self.write(noise)
        return self.head(F.elu(self.second(y) + noise))


@pytest.mark.parametrize("write", [lambda t: t.mul_(3), lambda t: torch.mul(t, 3, out=t), lambda t: torch._foreach_mul_([t], 3.0)],
                         ids=["in place", "out", "foreach"])  # fmt: skip
def test_all_ways_of_writing_are_seen(write):
    assert same(
        ranp.score(Writes(write), batches(size=16)), ranp.score(Writes(write), batches(size=16), low_memory=True)
    )


class Grids(Blocks):
    """Ops that call others which autocast casts, with and without a checkpoint, and a part without autocast."""

    def forward(self, x):
        y = self.blocks[0](x)
        turn = torch.eye(3, 4).expand(len(y), 3, 4) * 0.9 + y.mean((1, 2, 3, 4))[:, None, None]
        grid = F.affine_grid(turn, y.shape, align_corners=False)
        again = checkpoint(
            lambda turn: F.affine_grid(turn * 0.9, y.shape, align_corners=False), turn, use_reentrant=False
        )
        y = y + F.grid_sample(y.float(), grid.float(), align_corners=False) * again.float().sum()
        rows = y.flatten(2).mT
        near = torch.cdist(rows[:, :40], rows[:, -40:])
        with torch.autocast("cpu", enabled=False):
            y = self.blocks[1](y.float())
        return self.head(self.blocks[2](y)) + near.mean()


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_what_is_computed_twice_is_cast_as_before(precision):
    model = Grids()
    wanted = ranp.score(model, batches(size=16), precision=precision)
    assert same(wanted, ranp.score(model, batches(size=16), precision=precision, low_memory=True))


def test_large_depthwise_weights_over_few_places_take_no_more_than_a_plain_pass(monkeypatch):
    def parts(n):
        return nn.Conv3d(n, n, 5, padding=2, groups=n), nn.BatchNorm3d(n), nn.Conv3d(n, n, 1), nn.ReLU()

    model, x = (
        nn.Sequential(nn.Conv3d(1, 96, 3), *parts(96), *parts(96), nn.Conv3d(96, 2, 1)),
        torch.rand(1, 1, 6, 6, 6),
    )
    found = planner(model, 6)
    plan = found.measure(None)
    assert measured(model, x, plan, found.setting) < found.plain - found.always
    monkeypatch.setattr(layout, "FEW", 1 << 40)
    assert measured(model, x, plan, found.setting) > 2 * (found.plain - found.always)


class Numbers(Blocks):
    """Code that needs a number, which no tensor without memory has."""

    def forward(self, x):
        return super().forward(x) / (1 + float(x.abs().max().item()))


def test_low_memory_without_a_estimateing():
    model = Numbers()
    found = ranp.score(model, batches(size=16), low_memory=True)
    assert same(ranp.score(model, batches(size=16)), found)
    assert "cannot be estimated" in found.report.to_dict()["notes"][-1]
    with pytest.raises(BadInput, match=r"cannot be estimated .*leave `memory_limit` out"):
        ranp.score(model, batches(size=16), memory_limit="1GiB")


def test_nothing_is_computed_twice_where_that_takes_less():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 3, 1)

        def forward(self, x):
            return self.head(torch.stack([F.relu(part) for part in self.first(x).unbind(1)], 1))

    p = planner(Parts(), 16)
    plans = [*p.plans()]
    assert plans[0] == p.measure(None)
    assert p.least().peak == min(plan.peak for plan in plans)
    assert p.plan(None).peak <= plans[0].peak


class Zoo(nn.Module):
    """Residuals in place, instance and group norms, slices that are written, attention, an upsampling, random depth."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1, groups=4)
        self.norm, self.group, self.down = (
            nn.InstanceNorm3d(8, affine=True),
            nn.GroupNorm(2, 8),
            nn.Conv3d(8, 16, 2, stride=2),
        )
        self.attention, self.up = nn.MultiheadAttention(16, 2, batch_first=True), nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.head = nn.Conv3d(16, 3, 1)

    def forward(self, x):
        x = F.leaky_relu_(self.norm(self.first(x)), 0.1)
        x = x + F.silu(self.group(self.second(x)))
        x += torch.rand(x.shape[0], 1, 1, 1, 1, device=x.device)
        low = self.down(F.max_pool3d(x, 2))
        tokens = low.flatten(2).transpose(1, 2)
        low = (tokens + self.attention(tokens, tokens, tokens)[0]).transpose(1, 2).reshape(low.shape)
        up = F.interpolate(self.up(F.gelu(low)), scale_factor=2)
        volume = x.new_zeros(x.shape[0], 16, *x.shape[2:])
        volume[:, :8] = x
        volume[:, 8:] = torch.sigmoid(up) * x
        return self.head(F.relu(volume))


class Last(Recurrent):
    def forward(self, x):
        return super().forward(x)[:, :3, :1, None, None].expand(-1, -1, *x.shape[2:])


class Viewed(Blocks):
    """Code that wants its tensors in the order of their axes."""

    def forward(self, x):
        y = self.blocks[0](x)
        return self.head(self.blocks[2](y.view(-1).view(y.shape)))


@pytest.mark.parametrize("build", [Last, Viewed])
def test_low_memory_serves_what_it_takes_fake_tensors_or_another_layout_for(build):
    model = build()
    wanted = ranp.score(model, batches(size=16))
    assert same(wanted, ranp.score(model, batches(size=16), low_memory=True))


@pytest.mark.parametrize("row", [1, 2])
@pytest.mark.parametrize("most", [0, 128, 4096])
def test_gradients_are_the_same_whatever_is_computed_twice(most, row, monkeypatch):
    monkeypatch.setattr(recompute_plan.Planner, "plan", lambda self, limit: self.measure(most, row))
    wanted = ranp.score(Zoo(), batches(size=16))
    assert same(wanted, ranp.score(Zoo(), batches(size=16), low_memory=True))
    torch.manual_seed(0)
    cell = Last()
    assert same(ranp.score(cell, batches(size=16)), ranp.score(cell, batches(size=16), low_memory=True))
    double = ranp.score(Zoo(), batches(size=16), precision="bf16", low_memory=True)
    assert same(ranp.score(Zoo(), batches(size=16), precision="bf16"), double)


def test_what_is_kept_for_a_while_is_not_written_over(monkeypatch):
    """An activation in place, right behind a convolution that is dear enough to be kept while it is asked for."""
    monkeypatch.setattr(recompute_plan.Planner, "plan", lambda self, limit: self.measure(4096))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.ELU(1.0, True), nn.Conv3d(16, 16, 3, padding=1),
                          nn.ELU(1.0, True), nn.Conv3d(16, 3, 1))  # fmt: skip
    assert same(ranp.score(model, batches(size=16)), ranp.score(model, batches(size=16), low_memory=True))


def test_torchscript_is_served_alike():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit as a whole
        scripted = torch.jit.trace(unet3d(7, 4, 1, 3).eval(), batches()[0][0], check_trace=False)
    assert same(ranp.score(scripted, batches()), ranp.score(scripted, batches(), low_memory=True))


class Full(nn.Module):
    """A device that holds the activations of one block, not of all."""

    def __init__(self, limit):
        super().__init__()
        self.net, self.limit = blocks(), limit

    def forward(self, x):
        if x.device.type != "meta" and not isinstance(_get_current_dispatch_mode(), recompute.Recompute) and self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.net(x)


def test_out_of_memory_goes_on_with_recomputation():
    wanted, found = ranp.score(Full(False), batches()), ranp.score(Full(True), batches())
    assert same(wanted, found)
    report = found.report.to_dict()
    assert "ran out of memory" in report["notes"][0]
    assert "computed_twice" in report["scoring"]


class Tight(Full):
    """A device for which even half is too much, but not the least."""

    def forward(self, x):
        mode = _get_current_dispatch_mode()
        if x.device.type != "meta" and not (isinstance(mode, recompute.Recompute) and mode.max_macs_per_element > 100):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.net(x)


def test_out_of_memory_goes_down_to_the_least():
    found = ranp.score(Tight(True), batches())
    assert same(ranp.score(Full(False), batches()), found)
    first, _, second, _ = found.report.to_dict()["notes"]
    assert first.endswith("scoring goes on as with low_memory=True")
    assert second.endswith("scoring goes on computing more of it twice")


class NeverFits(nn.Conv3d):
    def forward(self, x):
        if x.device.type != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def test_what_does_not_fit_even_so_is_said():
    with pytest.raises(BadInput, match=r"too little memory for a mini-batch \(CUDA out of memory\); give smaller"):
        ranp.score(nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), NeverFits(4, 3, 1)), batches())


def test_what_cannot_be_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit as a whole
        scripted = torch.jit.trace(blocks().eval(), batches()[0][0], check_trace=False)
    with pytest.raises(BadInput, match="precision='bf16' needs the Python model on a CPU"):
        ranp.score(scripted, batches(), precision="bf16")
    with pytest.raises(BadInput, match="memory_limit='6 GB!': give a size such as 6GiB"):
        gradient_setup(GradientOptions(memory_limit="6 GB!"))
    with pytest.raises(BadInput, match="memory_limit='1e400GiB': give a size such as 6GiB"):
        gradient_setup(GradientOptions(memory_limit="1e400GiB"))
    with pytest.raises(BadInput, match="unknown precision 'bf17'; did you mean 'bf16'"):
        ranp.score(blocks(), batches(), precision="bf17")


# -- streams


def test_no_gradient_of_the_whole_model_is_alive():
    """A hook frees each gradient before the next layer's comes."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    alive, most = [], 0
    take = scorer.WeightGradientCollector._take

    def watching(self, p, ks):
        nonlocal most
        alive.append(p)
        most = max(most, sum(q.grad is not None for q in alive))
        take(self, p, ks)

    scorer.WeightGradientCollector._take = watching
    try:
        ranp.score(model, [(torch.randn(2, 64), torch.randn(2, 64))], loss="mse")
    finally:
        scorer.WeightGradientCollector._take = take
    assert (len(alive), most) == (8, 1)


def stream(n):
    for k in range(n):
        yield torch.full((1, 2), float(k % 7)), torch.tensor([[0.0]])


@pytest.mark.parametrize("n", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_stream_takes_no_memory_and_gives_the_mean(n):
    """y = w1 x + w2 x with both 0.5, loss y^2: |w dL/dw| = 0.5 * 2 y x = x^2 for each of the two, 2 x^2 for the neuron."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 0.5)
    nn.init.constant_(model[1].weight, 1.0)
    sizes = []

    def watched():
        for k, batch in enumerate(stream(n)):
            if k in (n // 4, n - 1):
                gc.collect()
                sizes.append(len(gc.get_objects()))
            yield batch

    found = ranp.score(model, watched(), loss="mse")
    assert found.about["batches"] == n
    assert sizes[1] - sizes[0] < 200
    assert found.layers["0"][0] == pytest.approx(sum(2.0 * (k % 7) ** 2 for k in range(n)) / n, rel=1e-12)


@pytest.mark.parametrize("criterion", ["mpmg-sum", "mpmg-max", "mnmg-sum", "neuron", "snip"])
def test_going_on_gives_what_one_run_gives(criterion, tmp_path):
    whole = ranp.score(blocks(), batches(5), criterion=criterion)
    path, end = tmp_path / "some.safetensors", tmp_path / "all.safetensors"
    ranp.score(blocks(), batches(5), criterion=criterion, batch_limit=2).save(path)
    resumed = ranp.score(blocks(), batches(5), criterion=criterion, resume=path)
    assert resumed.about["batches"] == 5
    assert same(whole, resumed)
    resumed.save(end)
    whole.save(path)
    assert end.read_bytes() == path.read_bytes()


def test_one_goes_on_with_the_same_only(tmp_path):
    path = tmp_path / "scores.safetensors"
    ranp.score(blocks(), batches(2), loss="cross_entropy").save(path)
    with pytest.raises(BadInput, match="criterion 'neuron' was asked, the scores are of 'mpmg-sum'"):
        ranp.score(blocks(), batches(), criterion="neuron", resume=path)
    with pytest.raises(BadInput, match="taken with seed=0, not with seed=1; go on with seed=0"):
        ranp.score(blocks(), batches(), seed=1, resume=path)
    with pytest.raises(BadInput, match="taken with loss='cross_entropy', not with loss='dice'"):
        ranp.score(blocks(), batches(), loss="dice", resume=path)
    with pytest.raises(BadInput, match="of another network"):
        ranp.score(unet3d(7, 4, 1, 3), batches(), resume=path)
    with pytest.raises(BadInput, match="of other weights"):
        ranp.score(Blocks(), batches(), resume=path)


def own_loss(output, target):
    return F.cross_entropy(output, target)


HOW = [{}, {"loss": "dice"}, {"loss": own_loss}, {"precision": "fp64"}, {"ignore_index": 0}, {"score_init": "glorot"}]


@pytest.mark.parametrize("then", HOW, ids=["nothing", "loss", "own-loss", "precision", "ignore-index", "score-init"])
def test_sums_of_two_kinds_are_never_mixed(then, tmp_path):
    path = tmp_path / "scores.safetensors"
    ranp.score(blocks(), batches(1), **then).save(path)
    assert ranp.score(blocks(), batches(2), resume=path, **then).about["batches"] == 2
    for now in HOW:
        if now != then:
            with pytest.raises(BadInput, match=r"these scores were taken with(out)? .*; go on with(out)? "):
                ranp.score(blocks(), batches(2), resume=path, **now)


def test_the_default_loss_by_its_name_is_the_same():
    some = ranp.score(blocks(), batches(1))
    assert same(ranp.score(blocks(), batches(2), loss="cross_entropy", resume=some), ranp.score(blocks(), batches(2)))


def test_scores_of_an_older_ranp_are_gone_on_from():
    some = ranp.score(blocks(), batches(1))
    some.about = {**some.about, "loss": None}
    del some.about["precision"], some.about["ignore_index"]
    assert same(ranp.score(blocks(), batches(2), resume=some), ranp.score(blocks(), batches(2)))
    with pytest.raises(BadInput, match="taken with precision='model', not with precision='bf16'"):
        ranp.score(blocks(), batches(2), precision="bf16", resume=some)


def test_scores_by_auto_are_not_gone_on_from():
    some = ranp.score(blocks(), batches(1), precision="auto")
    with pytest.raises(BadInput, match="taken with precision='auto', which decides once"):
        ranp.score(blocks(), batches(2), precision="bf16", resume=some)


def test_there_are_no_fewer_mini_batches_than_before():
    some = ranp.score(blocks(), batches(2))
    assert same(ranp.score(blocks(), batches(2), resume=some), some)
    for source, limit in ((batches(3), 1), (lambda: iter(batches(3)), 1), (batches(1), None)):
        with pytest.raises(BadInput, match="these are the scores of 2 mini-batches, and `batches` gives 1"):
            ranp.score(blocks(), source, batch_limit=limit, resume=some)


def stopping(after):
    yield from batches(after)
    raise KeyboardInterrupt


def test_ctrl_c_leaves_what_is_there():
    with pytest.raises(Interrupted) as stopped:
        ranp.score(blocks(), stopping(2))
    assert stopped.value.batches == 2
    assert same(stopped.value.scores, ranp.score(blocks(), batches(2)))
    whole = ranp.score(blocks(), batches(4))
    for _ in range(2):  # what one goes on from stays what it is
        assert same(whole, ranp.score(blocks(), batches(4), resume=stopped.value.scores))


def test_ctrl_c_before_the_first_mini_batch_leaves_nothing():
    with pytest.raises(KeyboardInterrupt) as stopped:
        ranp.score(blocks(), stopping(0))
    assert not isinstance(stopped.value, Interrupted)


def test_ctrl_c_in_a_pass_does_not_count_half_of_it():
    calls = []

    def loss(output, target):
        calls.append(1)
        value = F.cross_entropy(output, target)
        if len(calls) == 3:
            value.register_hook(lambda g: (_ for _ in ()).throw(KeyboardInterrupt))
        return value

    with pytest.raises(Interrupted) as stopped:
        ranp.score(blocks(), batches(), loss=loss)
    assert same(stopped.value.scores, ranp.score(blocks(), batches(2)))


LOADER = """
import torch

def loader():
    g = torch.Generator().manual_seed(0)
    for k in range({n}):
        {before}
        yield torch.rand(2, 1, 8, 8, 8, generator=g), torch.randint(6, (2, 8, 8, 8), generator=g)
"""


def test_ctrl_c_on_the_command_line_writes_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loader.py").write_text(LOADER.format(n=3, before="pass"))
    (tmp_path / "stops.py").write_text(LOADER.format(n=3, before="if k == 2: raise KeyboardInterrupt"))
    model = f"{CONFIGS / 'model.py'}:UNet3D"
    assert run(["score", model, "--batch", "stops.py:loader", "-o", "scores.safetensors", "-q"]) == 130
    assert (
        "the scores of 2 mini-batches were written to scores.safetensors: go on with --resume"
        in capsys.readouterr().err
    )
    more = ["--resume", "scores.safetensors", "-o", "scores.safetensors", "-q"]
    assert run(["score", model, "--batch", "loader.py:loader", *more]) == 0
    assert run(["score", model, "--batch", "loader.py:loader", "-o", "whole.safetensors", "-q"]) == 0
    assert Path("scores.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_the_command_line_takes_the_options(tmp_path, capsys):
    model = f"{CONFIGS / 'model.py'}:UNet3D"
    batch = f"{CONFIGS / 'calib.pt'}"
    out = str(tmp_path / "scores.safetensors")
    assert run(["score", model, "--batch", batch, "--batches", "1", "--memory-limit", "1MiB", "-o", out]) == 3
    assert "a memory limit of 1 MiB cannot be kept" in capsys.readouterr().err
    assert not Path(out).exists()
    assert run(["score", model, "--batch", batch, "--precision", "half", "-o", out]) == 2
    assert "unknown precision 'half'" in capsys.readouterr().err
