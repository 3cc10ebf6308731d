"""Activations that are computed twice: the same scores below the memory of a plain pass."""

from __future__ import annotations

import gc
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from scored_nets import Blocks, batches, blocks, same
from torch import nn
from torch.utils.checkpoint import checkpoint

import ranp_cli as ranp
from ranp_cli.core.errors import BadInput, Infeasible
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.io.batches import Batch
from ranp_cli.models.unet3d import unet3d
from ranp_cli.scoring import memory_format, recompute, recompute_plan, scorer
from ranp_cli.scoring.criteria import criterion


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


def unet():
    return unet3d(7, 16, 1, 4)


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
        (unet, "model", None, 1),
        (unet, "model", 0, 1),
        pytest.param(unet, "model", 4096, 2, marks=pytest.mark.slow),
        (unet, "bf16", 4096, 1),
        (Attends, "bf16", 0, 1),
        pytest.param(unet, "model", 512, 1, marks=pytest.mark.slow),
        pytest.param(unet, "fp64", 4096, 1, marks=pytest.mark.slow),
        *(
            pytest.param(cell, "model", most, 1, marks=pytest.mark.slow)
            for cell in (Recurrent, Attends)
            for most in (None, 0)
        ),
    ],
)
def test_the_estimated_peak_is_the_measured_one(build, precision, most, row):
    model = build().train()
    size = 16 if isinstance(model, Recurrent) else 32  # each step of a cell takes long on meta tensors
    p = planner(model, size, precision=precision)
    assert (p.ground is not None) == (precision == "bf16" or isinstance(model, Recurrent))
    plan = p.measure(most, row)
    there_before = sum(t.numel() * t.element_size() for t in p.held)
    found = measured(model, torch.randn(2, 1, size, size, size), plan, p.setting)
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
    monkeypatch.setattr(memory_format, "FEW", 1 << 40)
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


@pytest.mark.parametrize(
    ("most", "row"),
    [
        (0, 1),
        (128, 2),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((0, 2), (128, 1), (4096, 1), (4096, 2))),
    ],
)
def test_gradients_are_the_same_whatever_is_computed_twice(most, row, monkeypatch):
    monkeypatch.setattr(recompute_plan.Planner, "plan", lambda self, limit: self.measure(most, row))
    wanted = ranp.score(Zoo(), batches(size=16))
    assert same(wanted, ranp.score(Zoo(), batches(size=16), low_memory=True))
    torch.manual_seed(0)
    cell = Last()
    assert same(ranp.score(cell, batches(size=16)), ranp.score(cell, batches(size=16), low_memory=True))
    double = ranp.score(Zoo(), batches(size=16), precision="bf16", low_memory=True)
    assert same(ranp.score(Zoo(), batches(size=16), precision="bf16"), double)


def test_torchscript_is_served_alike():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit as a whole
        scripted = torch.jit.trace(unet3d(7, 4, 1, 3).eval(), batches()[0][0], check_trace=False)
    assert same(ranp.score(scripted, batches()), ranp.score(scripted, batches(), low_memory=True))
