"""Why layers take their time: multiply-adds a second of each beside what this machine does at its best in that kind of op.

The best is measured here and now, on the same threads and in the same runtime: convolutions, depthwise convolutions or matrix
products with enough to do, and the layers themselves, of which one may be faster; and the copy of a tensor that no cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.progress import Progress
from ..core.tensors import tensors_in
from ..graph.graph import Layer
from .op_insides import Inside, inside_of
from .runtimes import Torch
from .timing import Ground, LayerOp, time_layers, time_ops

aten = torch.ops.aten
COPIED = 2**24  # elements of the tensor that is copied: 64 MiB
SLOW = 0.5  # of the peak: below, a layer is slow and the reason is looked for
NEAR = 0.5  # of the copy bandwidth: above, memory is what a layer waits for
FEW = 16  # channels: fewer do not fill the vector units of a processor
MANY = 0.2  # of a layer's time: above, copies are why it is slow
SMALL = 5e-5  # seconds at the peak: below, starting the op takes longer than its work
ROUNDS = 3


@dataclass(frozen=True)
class Peaks:
    """Multiply-adds a second by kind of op, and bytes a second of a copy (read and written)."""

    macs: Mapping[str, float]
    copy: float


def kind_of(layer: Layer) -> str:
    """The kind of its op, of which each has a peak of its own."""
    if not layer.kernel:
        return "matrix product"
    return "depthwise" if layer.groups > 1 and layer.groups == len(layer.neurons) else "convolution"


def measured_peaks(layers: Sequence[Layer], ground: Ground, progress: Progress) -> Peaks:
    """What the machine does at its best in each kind of op that the layers have."""
    wanted = sorted(
        {(kind_of(layer), len(layer.kernel) if kind_of(layer) != "matrix product" else 0) for layer in layers}
    )
    work = {f"{kind} {axes}": best_op(kind, axes) for kind, axes in wanted}
    seconds = time_ops({key: op for key, (op, _) in work.items()}, ground, progress, ROUNDS)
    rates: dict[str, float] = {}
    for kind, axes in wanted:
        key = f"{kind} {axes}"
        rates[kind] = max(rates.get(kind, 0.0), work[key][1] / seconds[key])
    copy = LayerOp("a copy", (aten.clone.default, (torch.empty(COPIED, device="meta"),), {}))
    plain = Ground(ground.device, Torch(), ground.threads)
    return Peaks(rates, 2 * 4 * COPIED / time_ops({"copy": copy}, plain, progress, ROUNDS)["copy"])


def best_op(kind: str, axes: int) -> tuple[LayerOp, int]:
    """An op of a kind with enough to do, and its multiply-adds."""

    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    if kind == "matrix product":
        return LayerOp(kind, (aten.mm.default, (meta(512, 512), meta(512, 512)), {})), 512**3
    size = {1: 4096, 2: 64, 3: 16}[axes]
    channels, groups = (256, 256) if kind == "depthwise" else (64, 1)
    weight = meta(channels, channels // groups, *[3] * axes)
    steps = [[1] * axes for _ in range(2)]
    call = (meta(1, channels, *[size] * axes), weight, None, steps[0], steps[1], [1] * axes, False, [0] * axes, groups)
    return LayerOp(kind, (aten.convolution.default, call, {})), weight.numel() * size**axes


def explained(
    networks: Sequence[Sequence[Layer]], ground: Ground, progress: Progress
) -> list[dict[str, dict[str, Any]]]:
    """For each network: layer -> its time, its multiply-adds a second, the machine's peak for its kind, and why it is slow where it is.

    The peak is the same for all networks: what one of their layers reaches, the machine can do.
    """
    layers = [layer for network in networks for layer in network]
    time_layers(layers, ground, progress)
    peaks = measured_peaks(layers, ground, progress)
    best = dict(peaks.macs)
    for layer in layers:
        best[kind_of(layer)] = max(best[kind_of(layer)], layer.macs / layer.seconds)
    peaks = Peaks(best, peaks.copy)
    insides: dict[str, Inside | None] = {}
    found = []
    for network in networks:
        rows: dict[str, dict[str, Any]] = {}
        for layer in network:
            peak = peaks.macs[kind_of(layer)]
            rows[layer.name] = {
                "latency_ms": 1000 * layer.seconds,
                "macs_per_s": layer.macs / layer.seconds,
                "peak_macs_per_s": peak,
                "bytes_per_s": bytes_of(layer) / layer.seconds,
                "copy_bytes_per_s": peaks.copy,
            }
            if is_slow(layer, peaks):
                op = LayerOp(layer.name, layer.calls[0][0])
                if op.key not in insides:
                    insides[op.key] = inside_of(op, ground)
                rows[layer.name]["slow"] = why_slow(layer, peaks, insides[op.key])
        found.append(rows)
    return found


def is_slow(layer: Layer, peaks: Peaks) -> bool:
    """Whether a layer stays below half of the peak of its kind."""
    return layer.macs / layer.seconds < SLOW * peaks.macs[kind_of(layer)]


def why_slow(layer: Layer, peaks: Peaks, inside: Inside | None = None) -> str:
    """Why a slow layer is slow: what was seen inside of its op first, then what its numbers say."""
    if inside is not None and inside.copies >= MANY:
        return f"layout copies ({inside.copies:.0%})"
    if bytes_of(layer) / layer.seconds >= NEAR * peaks.copy:
        return "memory-bound"
    if layer.macs / peaks.macs[kind_of(layer)] < SMALL:
        return "small"
    fewest = min(channels_of(layer))
    if fewest < FEW:
        return f"few channels ({fewest})"
    return "plain kernel" if inside is not None and inside.is_plain else "reason unknown"


def channels_of(layer: Layer) -> tuple[int, int]:
    """The channels that a layer mixes and makes; those of a depthwise convolution are each alone, and do not count as few."""
    if kind_of(layer) == "depthwise":
        return len(layer.neurons), len(layer.neurons)
    positions = 1
    for k in layer.kernel:
        positions *= k
    made = len(layer.neurons) // layer.groups
    return layer.weights // (len(layer.neurons) * positions), max(1, made)


def bytes_of(layer: Layer) -> float:
    """What the op of a layer reads and writes for one sample: input, weights and output."""
    total = 0.0
    for (_, *arguments), share in layer.calls:
        tensors = tensors_in(arguments)
        total += sum(t.numel() * t.element_size() for t in tensors) * share
    element = tensors_in(list(layer.calls[0][0][1:]))[0].element_size()
    return total + layer.output_elements * element
