"""The bytes of masks, scores and slim tensors of an unchanged input do not change from one version to the next.

Weights and data come from integer arithmetic, so that they are the same on every machine; hashes are of double precision
results on one thread. A change of these hashes is a change for every user who has a mask: say so in CHANGELOG.md.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ranp_cli as ranp
from ranp_cli.models.mobilenetv2 import mobilenetv2_3d
from ranp_cli.models.unet3d import unet3d

pytestmark = pytest.mark.usefixtures("one_thread")

HASHES: dict[str, tuple[str, str, str]] = {
    "unet flops": ("7faeb0c4b21a3690", "887d183fc120794e", "bc5e94f6be12ce40"),
    "unet mem, paper's floor": ("d029ceb2687fe1e7", "887d183fc120794e", "4323815803119b29"),
    "unet budget": ("19abe8426bca35f9", "887d183fc120794e", "c4e4c8da5fb66acf"),
    "unet layerwise": ("4a85cc8adf1173ca", "887d183fc120794e", "21a788646fd317e2"),
    "mobilenet weighted": ("ccebea45ea14eb0e", "ed0dea1067a9439e", "fc8507e2c2dc4f8b"),
    "mobilenet neuron, round to 4": ("a4f61a591639fce8", "4e1646908c303890", "e414d1f65c0997f5"),
}


def numbers(*shape: int, start: int) -> Tensor:
    """Numbers between -1 and 1 that look random."""
    count = torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.int64)
    return (((count * 7919 + count * count * 31) % 2003).double() / 1001 - 1).reshape(shape)


def filled(model: nn.Module) -> nn.Module:
    """The network in double precision, with such numbers for its weights; norms as they are, biases at zero."""
    start = 1
    for name, p in model.double().named_parameters():
        if p.ndim > 1:
            p.data = numbers(*p.shape, start=start) / p[0].numel() ** 0.5
            start += p.numel()
        elif name.endswith("bias"):
            p.data.zero_()
    return model


def labels(*shape: int, classes: int) -> Tensor:
    return (numbers(*shape, start=5) * 1000).long() % classes


def unet() -> tuple[nn.Module, Any]:
    return unet3d(7, 8, 2, 3), (numbers(2, 2, 8, 8, 8, start=3), labels(2, 8, 8, 8, classes=3))


def mobilenet() -> tuple[nn.Module, Any]:
    return mobilenetv2_3d(num_classes=5, width=0.25), (numbers(6, 3, 16, 32, 32, start=3), labels(6, classes=5))


CASES = {
    "unet flops": (unet, {"sparsity": 0.6}),
    "unet mem, paper's floor": (unet, {"sparsity": 0.7, "resource": "mem", "min_neurons": 1}),
    "unet budget": (unet, {"budget": "macs=30%", "min_neurons": 1}),
    "unet layerwise": (unet, {"sparsity": 0.5, "method": "layerwise"}),
    "mobilenet weighted": (mobilenet, {"sparsity": 0.4, "method": "weighted", "min_neurons": 1}),
    "mobilenet neuron, round to 4": (mobilenet, {"sparsity": 0.3, "criterion": "neuron", "round_to": 4}),
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def hashes_of(name: str) -> tuple[str, str, str]:
    """Of the mask's layers, of the scores to six digits of the largest of their layer, and of the slim network's tensors.

    Further digits differ from one processor to the next: batch norm in training mode multiplies what sums are rounded by.
    """
    build, options = CASES[name]
    model, batch = build()
    filled(model)
    pruned = ranp.prune(model, batch, **options)
    scores = ranp.score(model, batch, criterion=options.get("criterion", "mpmg-sum")).layers
    rounded = {
        layer: [f"{max(values):.6e}", *(f"{value / max(values):.6f}" for value in values)]
        for layer, values in scores.items()
    }
    tensors = b"".join(name.encode() + t.numpy().tobytes() for name, t in pruned.model.state_dict().items())
    return digest(json.dumps(pruned.mask.layers).encode()), digest(json.dumps(rounded).encode()), digest(tensors)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "mobilenet" in name else ()) for name in CASES]
)
def test_bytes_are_those_of_before(name):
    assert hashes_of(name) == HASHES[name]
