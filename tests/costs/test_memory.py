"""What a forward and a training step hold: worked out by hand, and against what torch's CPU allocator reports."""

from __future__ import annotations

import io
from typing import Any

import packages
import pytest
import torch
import zoo
from allocator import Linears, allocated, peak_of, squares
from rich.console import Console
from torch import nn

import ranp_cli as ranp
import ranp_cli.costs.memory as memory_module
from ranp_cli.core.example import Example
from ranp_cli.costs.budget import gate, limit
from ranp_cli.costs.memory import forward_memory, training_memory
from ranp_cli.reporting.show import show_report

ROW = 4 * 8 * 10  # a tensor of (8, 10)


def step(model: nn.Module, optimizer: str = "sgd") -> Any:
    return training_memory(model, Example((torch.zeros(8, 10),)), optimizer, loss=lambda y: y.sum())


def test_a_training_step_by_hand():
    found = step(Linears())
    weights = 3 * 4 * 100
    assert (found.parameters, found.gradients, found.inputs, found.optimizer) == (weights, weights, ROW, 0)
    # alive at the end of the forward: a(x), relu, b, relu, c(...) but for a's and b's outputs, which no one saves
    assert found.saved == 3 * ROW
    assert found.peak == found.parameters + found.inputs + found.working
    # Adam's peak is in its own step: gradients, and two tensors like the largest weight
    assert step(Linears(), "adam").peak == weights + ROW + 2 * weights + weights + 2 * 400
    assert step(Linears(), "sgd-momentum").peak == found.peak + weights


def test_checkpointing_and_in_place_save_less():
    assert step(Linears(again=True)).saved < step(Linears()).saved
    first = forward_memory(Linears(), Example((torch.zeros(8, 10),)))
    assert first.working == 2 * ROW  # the input of an op and its output
    assert forward_memory(Linears(inplace=True), Example((torch.zeros(8, 10),))).working == 2 * ROW


def test_frozen_weights_have_no_gradients():
    model = Linears()
    model.a.weight.requires_grad_(False)
    assert step(model).gradients == 2 * 400


def test_memory_grows_with_the_batch():
    model = zoo.build(packages.CASES[0])
    peaks = [training_memory(model, Example((torch.zeros(n, 1, 16, 16, 16),))).working for n in (2, 4, 8)]
    assert 1.9 < (peaks[2] - peaks[1]) / (peaks[1] - peaks[0]) < 2.1


def test_the_model_is_as_it_was():
    model = zoo.build(packages.CASES[0])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    training_memory(model, Example((torch.zeros(2, 1, 16, 16, 16),)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


CLOSE = 0.15


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.fast else pytest.mark.slow) for c in packages.CASES]
)
def test_estimated_is_what_the_allocator_reports(case):
    """Within 15 % on every network of the zoo; the median is far closer (tests/benchmarks/memory.py)."""
    model, x = zoo.build(case), torch.randn(case.shape)
    ratios = [
        forward_memory(model, Example((x,))).working / allocated(model, x, False),
        training_memory(model, Example((x,)), loss=squares).working / allocated(model, x, True),
    ]
    assert all(abs(r - 1) <= CLOSE for r in ratios), ratios


def test_an_unknown_optimizer_is_told():
    with pytest.raises(ranp.BadInput, match="did you mean 'adam'"):
        step(Linears(), "adams")


def test_code_that_cannot_run_on_meta_tensors_is_told():
    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(10, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * float(self.a.weight.sum())

    memory = ranp.profile(Numbers(), (8, 10)).to_dict()["memory"]["before"]
    assert "a forward pass cannot be estimated" in memory["error"]
    assert "test_memory.py" in memory["error"]
    assert "a training step cannot be estimated" in memory["train_error"]


class Labels(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).argmax(1)


def one_value() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Labels(2, 4, 3), "no output of the model needs a gradient"),
        (lambda: nn.Conv2d(2, 4, 3).requires_grad_(False), "no output of the model needs a gradient"),
        (one_value, "give batch_size=2"),
    ],
)
def test_without_a_training_step_the_forward_pass_is_estimated(make, why):
    model, example = make(), Example((torch.empty(1, 2, 8, 8, device="meta"),))
    report = ranp.profile(model, (1, 2, 8, 8)).to_dict()
    memory = report["memory"]["before"]
    assert memory["forward_peak_bytes"] == forward_memory(model, example).peak
    assert why in memory["train_error"]
    assert not {"error", "train_peak_bytes"} & memory.keys()
    gate(report, [limit("forward-mem", "1GiB")])
    with pytest.raises(ranp.BadInput, match=f"`max_train_mem`: .*{why}"):
        gate(report, [limit("train-mem", "1GiB")])
    output = io.StringIO()
    show_report(report, Console(file=output, width=1000))
    assert output.getvalue().count("cannot be estimated") == 1


def test_a_batch_of_two_is_what_a_norm_over_one_value_needs():
    assert "train_error" not in ranp.profile(one_value(), (1, 2, 8, 8), batch_size=2).to_dict()["memory"]["before"]


def test_a_budget_on_the_forward_pass_needs_no_training_step():
    model, batch = one_value(), (torch.randn(4, 2, 8, 8), torch.zeros(4, dtype=torch.int64))
    same = {"batch_size": 1, "inputs": (1, 2, 8, 8)}
    result = ranp.prune(model, batch, budget={"forward-mem": "95%"}, method="random", **same)
    assert 2 < result.mask.kept < 10
    with pytest.raises(ranp.BadInput, match=r"`budget` train-mem: .* give batch_size=2"):
        ranp.prune(model, batch, budget={"train-mem": "90%"}, method="random", **same)


class Mixed(nn.Module):
    """Element-wise ops over two dtypes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half, counts = x.bfloat16(), x.long()
        return torch.where(x > 0, half * x, (x > 1) * x) + counts / 3 + half[0, 0] * torch.tensor(2.0)


def test_operands_of_other_dtypes_are_copied_into_the_common_one():
    x = torch.randn(100, 100)
    assert forward_memory(Mixed(), Example((x,))).working == pytest.approx(allocated(Mixed(), x, False), rel=0.001)
    # `x * half`: the half in 32 bits, and the product, beside x in 16 bits
    product = forward_memory(nn.Sequential(Product()), Example((x,)))
    assert product.working == (2 + 4 + 4) * x.numel()


class Product(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.bfloat16()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_depthwise_weight_is_filled_up_in_channels_last(dims: int, half: bool):
    """oneDNN fills each group up to a block of 16 x 16: the gradient of a depthwise weight takes 256 times its size."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims](32, 32, 5, padding=2, groups=32, bias=False)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    x = torch.randn(2, 32, *[8] * dims).to(memory_format=layout).requires_grad_()
    told = training_memory(conv, Example((x,)), loss=squares, amp=half).working
    assert told > 250 * conv.weight.numel() * 4
    assert told == pytest.approx(allocated(conv, x, True, half), rel=0.15)


def test_a_weight_larger_than_its_volumes_is_copied_once():
    conv = nn.Conv3d(64, 64, 5, padding=2, bias=False)
    x = torch.randn(4, 64, 4, 4, 4)
    told = training_memory(conv, Example((x,)), loss=squares).working
    assert told == pytest.approx(allocated(conv, x, True), rel=0.05)


class Attention(nn.Module):
    """A patch embedding, and attention between the patches."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.patches = nn.Conv3d(1, 16, 4, 4)
        self.kind = kind
        self.heads = nn.MultiheadAttention(16, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.kind in ("product", "strided"):
            q = x.unflatten(2, (2, 8)).transpose(1, 2)
            q = q.contiguous() if self.kind == "product" else q
            return nn.functional.scaled_dot_product_attention(q, q, q)
        return self.layer(x) if self.kind == "layer" else self.heads(x, x, x)[0]


@pytest.mark.parametrize(
    "kind",
    [
        "product",
        pytest.param("strided", marks=pytest.mark.slow),
        "heads",
        pytest.param("layer", marks=pytest.mark.slow),
    ],
)
def test_attention_as_a_cpu_computes_it(kind):
    """Meta tensors take it apart into scores of all places, which flash attention never holds."""
    model, x = Attention(kind), torch.randn(1, 1, 32, 32, 32)
    forward, step = forward_memory(model, Example((x,))), training_memory(model, Example((x,)), loss=squares)
    assert forward.working == pytest.approx(allocated(model, x, False), rel=0.05)
    assert step.working == pytest.approx(allocated(model, x, True), rel=0.05)
    if kind == "product":
        assert forward_memory(model, Example((x,)), fake=False).working > 2 * forward.working  # a control
        assert sum(step.flops.values()) > 2.5 * sum(forward.flops.values())


class Timed(nn.Module):
    """Takes steps of whole numbers, and constants that its forward makes: code that meta tensors do not suit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv3d(1, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, step: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rates = torch.exp(-torch.arange(8) / 8.0)
        scale = self.embed((step[:, None] * rates).sin())
        return (self.conv(x) * scale[:, :, None, None, None]).masked_fill(mask, 0.0)


def test_whole_numbers_and_masks_among_the_inputs():
    x, step, mask = torch.randn(2, 1, 16, 16, 16), torch.tensor([3, 7]), torch.rand(2, 1, 16, 16, 16) > 0.5
    found = ranp.profile(Timed(), Example((x, step, mask))).to_dict()["memory"]["before"]
    assert "error" not in found
    assert "train_error" not in found
    told = training_memory(Timed(), Example((x, step, mask)), loss=squares).working
    seen = peak_of(lambda: squares(Timed()(x, step, mask)).backward()) - sum(
        4 * p.numel() for p in Timed().parameters()
    )
    assert told == pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize("matrices", [False, True])
def test_fake_tensors_are_asked_only_where_matrices_are_multiplied(matrices: bool, monkeypatch: pytest.MonkeyPatch):
    asked = []

    class Noted(memory_module.Autocast):
        def __init__(self, *given):
            asked.append(given)
            super().__init__(*given)

    monkeypatch.setattr(memory_module, "Autocast", Noted)
    head = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)] if matrices else [nn.Conv3d(4, 2, 1)]
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), *head)
    assert training_memory(net, Example((torch.empty(2, 1, 8, 8, 8),))).peak > 0
    assert bool(asked) == matrices
