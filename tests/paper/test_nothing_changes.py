"""Laws 4 and 5: the caller finds everything as it was, and the same seed gives the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paper_reference import CLASSES, prune
from paths import ROOT, TESTS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ranp_cli as ranp

pytestmark = pytest.mark.usefixtures("one_thread")


def rich_model():
    """Batch norm in both modes, dropout, a frozen weight, gradients here and there."""
    torch.manual_seed(3)
    model = nn.Sequential(
        *(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Conv3d(8, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6, momentum=None), nn.Dropout3d(0.5)),
        nn.Conv3d(6, CLASSES, 1),
    )
    model[1].eval()
    model[6].eval()
    model[4].weight.requires_grad_(False)
    model[0].weight.grad = torch.randn_like(model[0].weight)
    model[7].bias.grad = torch.zeros_like(model[7].bias)
    return model


def state(model):
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    grads = {name: t.grad for name, t in tensors.items() if t.grad is not None}
    numbers = {
        name: t.detach().numpy().tobytes() for name, t in [*tensors.items(), *((f"d{n}", g) for n, g in grads.items())]
    }
    kept_objects = {name: (id(t), t.requires_grad, t._version, id(t.grad)) for name, t in tensors.items()}
    modes = {name: (m.training, type(m), len(m._forward_hooks)) for name, m in model.named_modules()}
    return {"numbers": numbers, "objects": kept_objects, "modes": modes}


def generators():
    name, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state().tolist(), "numpy": (name, keys.tolist(), rest), "python": random.getstate()}


BATCHES = [(torch.full((2, 1, 4, 4, 4), float(k)).cumsum(-1), torch.arange(128).view(2, 4, 4, 4) % 3) for k in (1, 2)]


ACTIONS = {
    "score": lambda m: ranp.score(m, BATCHES),
    "score neuron": lambda m: ranp.score(m, BATCHES, criterion="neuron"),
    "prune": lambda m: prune(m, BATCHES, sparsity=0.5),
    "prune to max": lambda m: prune(m, BATCHES, sparsity="max", criterion="mnmg-max"),
    "prune random, draw anew": lambda m: prune(m, BATCHES, sparsity=0.5, method="random", init="glorot"),
    "refine": lambda m: ranp.refine(m, prune(m, BATCHES, sparsity=0.5).mask, init="orthogonal"),
    "profile": lambda m: ranp.profile(m, (1, 1, 4, 4, 4)),
    "shuffled loader": lambda m: ranp.score(m, DataLoader(TensorDataset(*BATCHES[0]), batch_size=1, shuffle=True)),
    "loader that draws": lambda m: ranp.score(m, drawing),
}


def drawing():
    """Augments by every global generator."""
    for x, y in BATCHES:
        yield x + torch.randn(()) + np.random.rand() + random.random(), y


@pytest.mark.parametrize("action", ACTIONS)
def test_the_caller_finds_everything_as_it_was(action):
    model = rich_model()
    before, drawn = state(model), generators()
    ACTIONS[action](model)
    assert state(model) == before
    assert generators() == drawn


def test_weights_are_not_loaded_into_the_callers_model(tmp_path):
    model, path = rich_model(), tmp_path / "weights.pt"
    torch.save({name: t * 2 for name, t in model.state_dict().items()}, path)
    before = state(model)
    ranp.score(model, BATCHES, weights=str(path))
    assert state(model) == before


def write(folder):
    folder = Path(folder)
    result = prune(rich_model(), BATCHES, sparsity=0.5, init="glorot", seed=7)
    result.mask.save(folder / "mask.json")
    result.save(folder / "slim.safetensors")
    return [(folder / name).read_bytes() for name in ("mask.json", "slim.safetensors")]


def test_batches_that_draw_are_drawn_from_the_seed():
    first, again = (ranp.score(rich_model(), drawing).layers for _ in range(2))
    assert {name: s.tolist() for name, s in first.items()} == {name: s.tolist() for name, s in again.items()}


def test_two_runs_write_the_same_bytes(tmp_path):
    assert write(tmp_path) == write(tmp_path)


def test_processes_with_other_hash_seeds_write_the_same_bytes(tmp_path):
    """This process, and another with a hash seed of its own."""
    script = "import sys, test_nothing_changes; test_nothing_changes.write(sys.argv[1])"
    env = {
        **os.environ,
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS / "helpers", TESTS / "paper"))),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, check=True, timeout=100)
    there = [(tmp_path / name).read_bytes() for name in ("mask.json", "slim.safetensors")]
    assert write(tmp_path) == there
