"""Networks whose code takes another path on other values, or by chance: what was not traced is found, or said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ranp_cli as ranp


class Deeper(nn.Module):
    """One more layer, where `is_deep` says so of the input and the mode."""

    def __init__(self, is_deep) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1)
        self.head, self.is_deep = nn.Conv3d(8, 3, 1), is_deep

    def forward(self, x):
        z = self.a(x).relu()
        if self.is_deep(x, self.training):
            z = self.b(z).relu()
        return self.head(z)


def by_value(x, training):
    return x.mean() > 1


def by_chance(x, training):
    return not training or torch.rand(1).item() < 0.5


def batch(mean=0.0):
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 1, 8, 8, 8, generator=g) + mean, torch.randint(3, (2, 8, 8, 8), generator=g)


def test_a_value_that_is_read_is_said_with_its_line():
    made = ranp.prune(Deeper(by_value), batch(), sparsity=0.5)
    refined = ranp.refine(Deeper(by_value), made.mask, full=True)
    scored = ranp.prune(Deeper(by_value), scores=ranp.score(Deeper(by_value), batch()), sparsity=0.5)
    for found in (made, refined, scored):
        (note,) = found.report.to_dict()["notes"]
        assert note.startswith("the code reads values of tensors at ")
        assert "test_other_paths.py" in note


@pytest.mark.parametrize("form", [list, iter, lambda batches: (each for each in batches)])
def test_a_mini_batch_of_another_path_is_found(form):
    with pytest.raises(ranp.VerificationFailed, match="fails on mini-batch 1, on which the dense one runs"):
        ranp.prune(Deeper(by_value), form([batch(), batch(2)]), sparsity=0.5)


def test_noise_on_another_path_says_why():
    with pytest.raises(
        ranp.VerificationFailed, match=r"fails on noise, where the dense one runs.*one path alone is pruned right"
    ):
        ranp.prune(Deeper(by_value), batch(2), sparsity=0.5)


@pytest.mark.parametrize("seed", [0, 3])
def test_chance_in_training_is_not_taken_for_a_missing_fp64(seed):
    """A pass in fp64 that fails in the slim network alone was told as if the model had no fp64."""
    with pytest.raises(ranp.VerificationFailed, match="the slim network fails on noise, where the dense one runs"):
        ranp.prune(Deeper(by_chance), batch(), sparsity=0.5, seed=seed)


def test_one_path_is_no_note():
    assert "notes" not in ranp.prune(Deeper(lambda x, training: True), batch(), sparsity=0.5).report.to_dict()
    with_code = Deeper(lambda x, training: torch.tensor(1).item() == 1)  # a constant tells nothing of the input
    assert "notes" not in ranp.prune(with_code, batch(), sparsity=0.5).report.to_dict()
