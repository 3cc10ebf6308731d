"""What a layer costs, and its weight in the selection (RANP, eq. 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.errors import BadInput, nearest
from ..graph.graph import Layer

# The cost of a layer for one sample, in the paper's counting; its latency is measured.
RESOURCES: dict[str, Callable[[Layer], float]] = {
    "flops": lambda layer: 2 * layer.macs if layer.op == "linear" else layer.macs + layer.bias_adds,
    "mem": lambda layer: layer.output_elements,
    "params": lambda layer: layer.weights + (len(layer.neurons) if layer.bias else 0),
    "latency": lambda layer: layer.seconds,  # as latency.time_layers measured it
}
NAMES = ("none", *RESOURCES)


def tau(layers: Sequence[Layer], resource: str) -> np.ndarray:
    """r_l / max_k r_k for each of the K layers, the last one included.

    Raises BadInput for an unknown resource.
    """
    if resource not in RESOURCES:
        raise BadInput(f"unknown resource '{resource}'{nearest(resource, NAMES)}")
    cost = np.array([RESOURCES[resource](layer) for layer in layers], dtype=np.float64)
    return cost / (cost.max() or 1.0)


def reweighting(tau: np.ndarray, lam: float) -> np.ndarray:
    """1 + lambda * softmax(-tau), one factor a layer: a cheap layer's neurons count for more."""
    e = np.exp(-tau)
    result: np.ndarray = 1.0 + lam * e / e.sum()
    return result
