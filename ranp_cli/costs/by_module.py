"""What each module of a network costs by itself: the rows of the module tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..core.errors import BadInput
from ..core.example import Example
from ..graph.graph import Layer
from ..graph.layers import owner_of
from .memory import forward_memory


def module_rows(
    model: nn.Module, example: Example, layers: Sequence[Layer], macs: int, saved: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    """One row a module, in the order in which they are defined: its own parameters, and what its own code needs.

    Args:
        macs: all multiply-adds of one sample; what can be told of no module is the model's own.
        saved: bytes that were saved for the backward pass, by module; None where that is not known.
    """
    outputs: dict[str, int] = {}
    by_layer: dict[str, int] = {}
    for layer in layers:
        module = owner_of(layer.slot)
        outputs[module] = outputs.get(module, 0) + layer.output_elements
        by_layer[module] = by_layer.get(module, 0) + layer.macs
    counts = multiply_adds(model, example)
    if set(counts) <= {""}:  # no module could be watched (TorchScript)
        counts = by_layer
    counts[""] = counts.get("", 0) + macs - sum(counts.values())
    rows, seen = [], set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        row = {"module": name, "type": kind_of(module), "params": sum(p.numel() for p in own)}
        row |= {"macs": counts.get(name, 0), "output_elements": outputs.get(name, 0)}
        rows.append(row if saved is None else {**row, "saved_bytes": saved.get(name, 0)})
    return rows


def multiply_adds(model: nn.Module, example: Example) -> dict[str, int]:
    """Of one sample, by module."""
    try:
        flops = forward_memory(model, example.with_batch(1)).flops
    except BadInput:  # not on meta tensors: the report says so with the memory
        return {}
    samples = example.with_batch(1).samples
    return {module: n // 2 // samples for module, n in flops.items()}


def kind_of(module: nn.Module) -> str:
    return str(getattr(module, "original_name", None) or type(module).__name__)
