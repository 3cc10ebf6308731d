"""Networks that keep something between forward passes, write their weights, or run parts of themselves again."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import ranp_cli as ranp
from ranp_cli.core.errors import Interrupted
from ranp_cli.scoring import weight_gradients
from ranp_cli.scoring.precision import reproducible


class Base(nn.Module):
    """Three convolutions of a volume; `middle` is for others to change."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1)
            self.head = nn.Conv3d(8, 3, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(x).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.a(x).relu()))


def batches(n: int = 2, size: int = 12) -> list[Any]:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(2, 1, size, size, size, generator=g), torch.randint(3, (2, size, size, size), generator=g))
        for _ in range(n)
    ]


def scored(model: nn.Module, given: Any = None, **how: Any) -> dict[str, np.ndarray]:
    return ranp.score(model, given or batches(), **how).layers


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], two[name]) for name in one)


# -- state


class Average(Base):
    """Writes to a parameter as codebooks and prototypes are written to: past autograd, by a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.proto = nn.Parameter(torch.ones(8), requires_grad=False)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        self.proto.data.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3, 4)))
        return self.b(x * self.proto.view(1, -1, 1, 1, 1)).relu()


class Counter(Base):
    """Keeps a count, a buffer that it replaces, and its last activation."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.last = 0, None
        self.register_buffer("scale", torch.ones(1))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.scale = self.scale * 2
        if self.last is not None:
            x = x + self.last
        self.last = x.detach()
        return self.b(x * self.scale / self.steps).relu()


def spectral() -> nn.Module:
    model = Base()
    torch.nn.utils.parametrizations.spectral_norm(model.b)
    return model


@pytest.mark.parametrize("make", [Average, Counter, spectral])
def test_every_mini_batch_meets_the_model_as_given(make):
    model = make().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = batches()
    both = scored(model, [first, second])
    assert same(both, scored(model, [second, first]))  # as it is for processes that share them out
    alone = [scored(model, [each]) for each in (first, second)]
    for name, values in both.items():
        np.testing.assert_allclose(values, (alone[0][name] + alone[1][name]) / 2, rtol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert getattr(model, "steps", 0) == 0
    ranp.prune(model, [first], sparsity=0.3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# -- a mini-batch counts whole or not at all


def test_ctrl_c_while_sums_are_added_waits(monkeypatch):
    whole = weight_gradients.GradientCollector.end_of_batch
    seen = []

    def interrupted(self: weight_gradients.GradientCollector) -> None:
        seen.append(0)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        whole(self)

    monkeypatch.setattr(weight_gradients.GradientCollector, "end_of_batch", interrupted)
    with pytest.raises(Interrupted) as stopped:
        ranp.score(Base(), batches(4))
    monkeypatch.undo()
    assert stopped.value.batches == 2
    assert same(stopped.value.scores.layers, scored(Base(), batches(2)))


# -- checkpointing


class Dropping(Base):
    """A checkpointed part with functional dropout, which scoring leaves out."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant

    def part(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.b(x), 0.5, self.training).relu()

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) if self.reentrant is None else checkpoint(self.part, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_checkpointed_runs_again_without_dropout(reentrant):
    wanted = scored(Dropping())
    assert same(scored(Dropping(reentrant)), wanted)
    assert same(scored(Dropping(reentrant), low_memory=True), wanted)
    with pytest.raises(ranp.BadInput, match="the model checkpoints them; use an mpmg or mnmg criterion"):
        scored(Dropping(reentrant), criterion="taylor")


# -- code of many kinds


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s * (1 + x * (1 - s)))


class Asking(Base):
    """Asks for numbers in its forward, and has an activation of its own."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return Swish.apply(self.b(x)) if x.mean().item() < 100 else x


@pytest.mark.parametrize("criterion", ["taylor", "neuron", "mpmg-sum"])
def test_activations_are_found_in_code_that_asks_for_numbers(criterion):
    found = scored(Asking(), criterion=criterion)
    assert all(v.any() for v in found.values())
    assert same(found, scored(Asking(), criterion=criterion, low_memory=True))


class Own(Base):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return Swish.apply(self.b(x))


@pytest.mark.parametrize("criterion", ["taylor", "neuron", "snip"])
def test_low_memory_does_not_count_as_calls_of_the_model(criterion):
    assert same(scored(Own(), criterion=criterion, low_memory=True), scored(Own(), criterion=criterion))


class Conjugates(Base):
    """Complex numbers that are conjugated when they are read."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.complex(self.b(x), x)
        return (z.conj() * z * z.conj()).imag + (z * z).real


def test_low_memory_keeps_conjugates_as_they_are():
    wanted = scored(Conjugates(), batches(size=16))
    assert same(scored(Conjugates(), batches(size=16), low_memory=True), wanted)


def test_auto_stays_in_fp32_where_bf16_does_not_run(monkeypatch):
    monkeypatch.setattr("ranp_cli.scoring.scorer.has_fast_bf16", lambda device: True)
    found = ranp.score(Conjugates(), batches(), precision="auto")
    assert same(found.layers, scored(Conjugates()))
    assert "the model does not run in bf16: fp32" in " ".join(found.report.to_dict()["notes"])
    double = ranp.score(Base().double(), [(x.double(), y) for x, y in batches()], precision="auto")
    assert "weights in torch.float64, which stay as they are" in " ".join(double.report.to_dict()["notes"])


@pytest.mark.parametrize("size", [(2, 8, 8), (2, 2, 2), (1, 6, 6)])
@pytest.mark.parametrize("groups", [1, 16])
def test_transposed_convolutions_wider_than_their_input_in_bf16(size, groups):
    """oneDNN's bf16 gradients are of memory that nobody has written there: NaN, or any number."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv3d(4, 64, 1), nn.BatchNorm3d(64), nn.ConvTranspose3d(64, 32, 3, 1, 1, groups=groups), nn.Conv3d(32, 3, 1)
        )  # fmt: skip
        given = [(torch.randn(2, 4, *size), torch.randint(3, (2, *size)))]
    wanted = scored(model, given)
    for _ in range(3):
        poison = [torch.full((n,), float("nan")) for n in (1 << 10, 1 << 14, 1 << 18)]
        del poison
        for name, values in scored(model, given, precision="bf16").items():
            np.testing.assert_allclose(values, wanted[name], rtol=0.5, atol=0.1 * wanted[name].max())


class Sixteen(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.bfloat16())


@pytest.mark.parametrize("criterion", ["snip", "mpmg-max", "mpmg-sum", "mnmg-mean"])
def test_weights_of_sixteen_bits_are_added_up_in_more(criterion):
    """16 mini-batches that are the same: in 16 bits the sum would stop to grow."""
    one, many = (
        scored(Sixteen(), batches(1, 6), criterion=criterion),
        scored(Sixteen(), batches(1, 6) * 16, criterion=criterion),
    )
    for name, values in one.items():
        np.testing.assert_allclose(many[name], values, rtol=1e-6)


# -- errors


class Overwriting(Base):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.sigmoid(self.b(x))
        twice = z * 2
        z.add_(1)
        return twice


class Unwritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        raise ValueError("not written yet")


class Unfinished(Base):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return Unwritten.apply(self.b(x))


@pytest.mark.parametrize(
    ("model", "says"), [(Overwriting, "modified by an inplace operation"), (Unfinished, "not written yet")]
)
def test_a_backward_pass_that_fails_is_the_users(model, says):
    with pytest.raises(ranp.BadInput, match=f"the backward pass of the model fails on mini-batch 0: .*{says}"):
        scored(model())


def test_a_mini_batch_that_fails_is_named():
    with pytest.raises(ranp.BadInput, match="the model fails on mini-batch 2, of shape"):
        scored(Base(), [*batches(2), (torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4).long())])


# -- memory


def test_a_larger_mini_batch_gets_a_plan_of_its_own():
    small, large = batches(1, 12), batches(1, 24)
    peaks = [
        ranp.score(Base(), given, low_memory=True).report.to_dict()["scoring"]["foretold_peak_bytes"]
        for given in (small, large, small + large, large + small)
    ]
    assert peaks[0] < peaks[1] == peaks[2] == peaks[3]


def test_the_least_that_is_named_is_enough():
    with pytest.raises(ranp.Infeasible) as error:
        ranp.score(Base(), batches(1, 24), memory_limit="1KiB")
    least = str(error.value).split("needs at least ")[1].split(";")[0].replace(" ", "")
    ranp.score(Base(), batches(1, 24), memory_limit=least)


@pytest.mark.parametrize("before", [False, True])
def test_cudnn_is_asked_for_the_same_bits_and_is_as_it_was_afterwards(before, monkeypatch):
    """By the last of the calls that run at once. On a CPU, where cuDNN has no part, the flag is not touched."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before, raising=True)
    first, second = reproducible(torch.device("cuda")), reproducible(torch.device("cuda"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.cudnn.deterministic
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.deterministic == before
    seen = []

    def loss(output, target):
        seen.append(torch.backends.cudnn.deterministic)
        return torch.nn.functional.cross_entropy(output, target)

    ranp.score(Base(), batches(1), loss=loss)
    assert seen == [before]
