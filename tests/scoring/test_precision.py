"""Precisions of the gradients, and the order in which tensors lie in memory: the scores stay what they are."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scored_nets import batches, blocks, same
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.tensors import channels_last
from ranp_cli.scoring import memory_format, scorer
from ranp_cli.scoring.compensated_sum import CompensatedSum


def close(one, other, tolerance):
    return all(np.allclose(one.layers[k], other.layers[k], rtol=tolerance, atol=tolerance * one.layers[k].max())
               for k in one.layers)  # fmt: skip


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
    with memory_format.ConvolutionOverrides(True):
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
    monkeypatch.setattr(memory_format, "FEW", near * blocks / (side.numel() / side.shape[1]))
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

    with memory_format.ConvolutionOverrides(True), Sees():
        return seen, conv(channels_last(x), weight, **how)


def test_a_defect_of_ours_is_not_taken_for_one_of_the_model(monkeypatch):
    """It would only choose another layout, and so other bytes, without a word."""
    monkeypatch.delattr(memory_format, "is_channels_last")
    net = nn.Sequential(nn.Conv3d(2, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 1))
    data = torch.randn(2, 2, 6, 6, 6), torch.randint(2, (2, 4, 4, 4))
    with pytest.raises(NameError, match="'is_channels_last' is not defined"):
        ranp.score(net, data)
