"""A device that is full, a limit that cannot be kept: scoring goes on with less, or says why it cannot."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from scored_nets import batches, blocks, same
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import ranp_cli as ranp
from ranp_cli.api.importances import gradient_setup
from ranp_cli.api.options import GradientOptions
from ranp_cli.core.errors import BadInput
from ranp_cli.scoring import recompute, recompute_plan


def test_what_is_kept_for_a_while_is_not_written_over(monkeypatch):
    """An activation in place, right behind a convolution that is dear enough to be kept while it is asked for."""
    monkeypatch.setattr(recompute_plan.Planner, "plan", lambda self, limit: self.measure(4096))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.ELU(1.0, True), nn.Conv3d(16, 16, 3, padding=1),
                          nn.ELU(1.0, True), nn.Conv3d(16, 3, 1))  # fmt: skip
    assert same(ranp.score(model, batches(size=16)), ranp.score(model, batches(size=16), low_memory=True))


def recomputing() -> recompute.Recompute | None:
    """The mode that computes activations twice, where it is on; others may lie over it."""
    return next((mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, recompute.Recompute)), None)


class Full(nn.Module):
    """A device that holds the activations of one block, not of all."""

    def __init__(self, limit):
        super().__init__()
        self.net, self.limit = blocks(), limit

    def forward(self, x):
        if x.device.type != "meta" and not recomputing() and self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.net(x)


def test_out_of_memory_goes_on_with_recomputation():
    wanted, found = ranp.score(Full(False), batches()), ranp.score(Full(True), batches())
    assert same(wanted, found)
    report = found.report.to_dict()
    assert "ran out of memory" in report["notes"][0]
    assert "computed_twice" in report["scoring"]


def test_what_a_pass_held_that_did_not_fit_is_free_before_the_next():
    """Frames of the error hold the tensors of the pass: as long as it is held, the device stays full."""
    held = []

    def loss(output, target):
        if not held:
            held.append(weakref.ref(output))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        held.append(held[0]())
        return output.square().mean()

    ranp.score(blocks(), batches()[:1], loss=loss)
    assert held[1] is None


class Tight(Full):
    """A device for which even half is too much, but not the least."""

    def forward(self, x):
        mode = recomputing()
        if x.device.type != "meta" and not (mode and mode.max_macs_per_element > 100):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.net(x)


@pytest.mark.usefixtures("two_threads")
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
