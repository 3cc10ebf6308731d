"""What a training step costs and where: its FLOPs against torch's counter, its bytes by module, the optimiser's own."""

from __future__ import annotations

import copy
from typing import Any

import packages
import pytest
import torch
import zoo
from allocator import Linears, peak_of, squares
from layers_by_hand import MACS
from optimizers import OPTIMIZERS
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.core.flops import MENDED
from ranp_cli.costs.memory import STATES, training_memory
from ranp_cli.models.unet3d import unet3d


def told(model: nn.Module, x: torch.Tensor) -> int:
    return sum(training_memory(model, Example((x,)), loss=squares).flops.values())


def counted(model: nn.Module, x: torch.Tensor, mended: bool = False) -> int:
    """By torch's counter, over a real forward and backward; `mended`: with our line for convolutions."""
    formulas = {op: raw(formula) for op, formula in MENDED.items()} if mended else None
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        squares(copy.deepcopy(model).train()(x)).backward()
    return counter.get_total_flops()


def raw(formula: Any) -> Any:
    def on_tensors(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(*args, out_val=out_val, **kwargs)

    on_tensors._get_raw = True
    return on_tensors


# -- FLOPs


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.fast else pytest.mark.slow) for c in packages.CASES]
)
def test_flops_are_those_of_torchs_counter_over_a_real_step(case):
    """To the last one; where convolutions have groups torch's own formula is above ours, and the rest is the same."""
    model, x = zoo.build(case), torch.randn(case.shape)
    ours, theirs = told(model, x), counted(model, x)
    groups = any(getattr(m, "groups", 1) > 1 and hasattr(m, "kernel_size") for m in model.modules())
    assert ours == counted(model, x, mended=True) > 0
    assert (theirs > ours) if groups else (theirs == ours)


@pytest.mark.parametrize("name", MACS)
def test_macs_by_hand(name):
    """The gradient of the weight costs what the forward does, and so does that of an input that wants one."""
    module, shape, macs = MACS[name]
    before = ranp.profile(nn.Sequential(module), shape).to_dict()["before"]
    assert (before["train_macs"], before["train_flops"]) == (2 * macs, 4 * macs)
    first = nn.Parameter(torch.ones(()))  # no FLOPs, but the input of the module wants a gradient

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.module = first, module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x * self.first)

    assert ranp.profile(Behind(), shape).to_dict()["before"]["train_macs"] == 3 * macs
    module.weight.requires_grad_(False)
    assert ranp.profile(Behind(), shape).to_dict()["before"]["train_macs"] == 2 * macs
    module.weight.requires_grad_(True)


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_cost_what_their_parts_cost_apart(transposed):
    """The oracle for groups: as many convolutions, each on its part of the channels, by torch's own formula."""
    make = nn.ConvTranspose3d if transposed else nn.Conv3d

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(make(2, 4, 3, stride=2) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([part(y) for part, y in zip(self.parts, x.chunk(3, dim=1), strict=True)], dim=1)

    x = torch.randn(2, 6, 7, 7, 7)
    assert told(make(6, 12, 3, stride=2, groups=3), x) == told(Apart(), x) == counted(Apart(), x)
    assert counted(make(6, 12, 3, stride=2, groups=3), x) > counted(Apart(), x)  # torch 2.13


def test_a_checkpoint_computes_its_part_again():
    x, plain, again = torch.zeros(8, 10), Linears(), Linears(again=True)
    per = 2 * 8 * 100  # of one layer, forward
    assert told(plain, x) == (3 * 3 - 1) * per  # no gradient of the input
    assert told(again, x) == told(plain, x) + 2 * per
    assert told(again, x) == counted(again, x)


def test_one_sample_whatever_the_batch():
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU())
    found = [ranp.profile(net, (1, 1, 8, 8, 8), batch_size=n).to_dict()["before"]["train_macs"] for n in (1, 5)]
    assert found[0] == found[1] == 2 * ranp.profile(net, (1, 1, 8, 8, 8)).to_dict()["before"]["macs"]


class Numbers(nn.Module):
    """Its forward runs on meta tensors, its backward does not: it wants to know a number."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * float(grad.sum())

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.Scale.apply(self.a(x))


def test_a_backward_that_cannot_run_is_told_and_leaves_the_counts_out():
    report = ranp.profile(Numbers(), (8, 10)).to_dict()
    assert "train_macs" not in report["before"]
    assert report["before"]["macs"] == 100
    assert "a training step cannot be estimated" in report["memory"]["before"]["train_error"]
    assert "test_training_memory.py" in report["memory"]["before"]["train_error"]
    assert "error" not in report["memory"]["before"]


# -- where the memory goes


def step(model: nn.Module, shape: tuple[int, ...] = (8, 10), optimizer: str = "sgd") -> Any:
    return training_memory(model, Example((torch.zeros(shape),)), optimizer, loss=lambda y: y.sum())


def test_saved_bytes_by_module_by_hand():
    row = 4 * 8 * 10
    # what a relu gives is saved by it and by the next layer; what c gives is the output
    assert step(Linears()).by_module == {"relu": 2 * row, "c": row}
    assert step(Linears(inplace=True)).by_module == {"a": row, "b": row, "c": row}  # where the storage was born


@pytest.mark.parametrize("case", [c for c in packages.CASES if c.fast], ids=lambda c: c.name)
def test_saved_bytes_by_module_add_up_and_are_of_modules(case):
    model = zoo.build(case)
    found = training_memory(model, Example((torch.zeros(case.shape),)))
    assert sum(found.by_module.values()) == found.saved
    assert set(found.by_module) <= {name for name, _ in model.named_modules()}
    assert list(found.by_module.values()) == sorted(found.by_module.values(), reverse=True)


class Fork(nn.Module):
    """Of three equal branches one is far larger: the peak of the backward pass is in it."""

    def __init__(self, large: str, again: bool = False) -> None:
        super().__init__()
        self.again = again
        for name in ("left", "middle", "right"):
            size = 400 if name == large else 10
            setattr(self, name, nn.Sequential(nn.Linear(10, size), nn.Tanh(), nn.Linear(size, 10)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for branch in (self.left, self.middle, self.right):
            x = x + (checkpoint(branch, x, use_reentrant=False) if self.again else branch(x))
        return x


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("large", ["left", "middle", "right"])
def test_the_peak_of_the_backward_pass_is_in_the_module_that_has_it(large, again):
    assert f" in {large}." in step(Fork(large, again), (500, 10)).at


def test_the_loss_has_its_own_place():
    model = nn.Conv3d(1, 40, 1)
    found = training_memory(model, Example((torch.zeros(1, 1, 16, 16, 16),)))
    assert found.at.endswith("in the loss")
    maps = 40 * 16**3 * 4
    # logits (held by the caller), log-softmax, its gradient, that of the logits; besides what is of the size of a map
    assert 3 * maps <= found.fixed < 4 * maps + 10 * maps // 40


MANY = {"layers": 7, "width": 4, "num_classes": 60}


@pytest.mark.parametrize(("args", "said"), [(MANY, True), ({**MANY, "width": 16, "num_classes": 3}, False)])
def test_it_is_said_when_the_volume_itself_is_what_hurts(args, said):
    report = ranp.profile(unet3d(**args), (2, 1, 32, 32, 32)).to_dict()
    about = report["memory"]["before"]
    assert (about["unprunable_bytes"] > 0.5 * about["train_peak_bytes"]) == said
    notes = [note for note in report.get("notes", []) if "pruning does not shrink them" in note]
    assert len(notes) == said
    assert all("told above 50%" in note for note in notes)
    # and it is true: with next to nothing left between input and output it is still there
    least = unet3d(**{**args, "width": 2})
    bound = ranp.profile(least, (2, 1, 32, 32, 32)).to_dict()["memory"]["before"]["train_peak_bytes"]
    assert about["unprunable_bytes"] <= bound
    assert (bound > 0.5 * about["train_peak_bytes"]) == said


# -- the optimiser's own step


@pytest.mark.parametrize("name", STATES)
def test_the_peak_with_an_optimiser_is_what_the_allocator_reports(name):
    """Few samples and many weights: with Adam the peak is in its own step, two tensors like the largest parameter."""
    net, x = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 200)), torch.randn(4, 1000)
    model = copy.deepcopy(net)
    optimizer = OPTIMIZERS[name](model.parameters())

    def run() -> None:
        squares(model(x)).backward()
        optimizer.step()
        optimizer.zero_grad()

    run()  # its state is there from the second step on
    found = training_memory(net, Example((x,)), name, loss=squares)
    assert abs(found.working - peak_of(run)) <= 64
    assert (found.at == "optimizer.step()") == ("adam" in name)
    assert found.stepping == (2 * 4_000_000 if "adam" in name else 0)
