"""Find the layers of a network: the parameters whose first dimension the neurons are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..rules.labels import Ties
from .graph import LabelledParameter, Layer, TraceResult


def make_slot(ties: Ties, name: str, shape: tuple[int, ...]) -> LabelledParameter:
    """Fresh labels for the axes that may carry channels: all of size > 1, but the window axes of a kernel.

    The third axis is no window where several kernels lie in one parameter: (kernels, out, in, *window).
    """
    kernel = len(shape) > 2 and shape[0] > 1 and shape[1] > 1
    several = kernel and (len(shape) > 5 or (len(shape) == 5 and shape[2] != shape[3]))
    window = len(shape) if not kernel else 3 if several else 2
    return LabelledParameter(
        name, shape, tuple(ties.new(n) if n > 1 and axis < window else None for axis, n in enumerate(shape))
    )


def find_layers(ties: Ties, slots: dict[str, LabelledParameter], *runs: TraceResult) -> list[Layer]:
    """The layers in forward order, with the cost of one sample as the first run that meets them shows it."""
    owner = np.full(ties.size, -1)
    places = [(name, axis) for name, slot in slots.items() for axis, ids in enumerate(slot.ids) if ids is not None]
    for k, (name, axis) in enumerate(places):
        ids = slots[name].ids[axis]
        assert ids is not None
        owner[ids.numpy()] = k
    layers: dict[tuple[str, int], Layer] = {}
    for each in runs:
        seen: dict[tuple[str, int], Layer] = {}
        for op in each.tracer.ops:
            for use in op.uses:
                parts = split_by_owner(use, owner, places, slots, ties)
                whole = sum(used for *_, used in parts)
                for slot, axis, neurons, used in parts:
                    layer = seen.get((slot, axis)) or layers.get((slot, axis))
                    if layer is None:
                        layer = Layer("", slot, axis, use.op, neurons)
                        layer.weights = int(np.prod(slots[slot].shape))
                        for key, value in use.how.items():
                            setattr(layer, key, value) if key != "axis" else None
                    if (slot, axis) not in layers or (slot, axis) in seen:
                        layer.macs += op.flops // 2 * used // whole // each.samples
                        layer.output_elements += int(np.prod(op.outs[0].shape)) * used // whole // each.samples
                        layer.calls.append((op.call, used / whole / each.samples))
                        seen[slot, axis] = layer
        layers.update(seen)
    found = list(layers.values())
    owners = [owner_of(layer.slot) for layer in found]
    for layer, module in zip(found, owners, strict=True):
        bias = slots.get(f"{module}.bias" if module else "bias")
        layer.bias = layer.bias or (bias is not None and bias.shape == (len(layer.neurons),))
        layer.name = module if module and owners.count(module) == 1 else layer.slot
        if sum(other.slot == layer.slot for other in found) > 1:  # used along both axes, as in a tied autoencoder
            layer.name = f"{layer.slot}[{layer.axis}]"
    return found


def split_by_owner(
    use: Any, owner: np.ndarray, places: list[Any], slots: dict[str, LabelledParameter], ties: Ties
) -> list[Any]:
    """(parameter, axis, neuron labels, how many are used) of a layer's weight; several where it is put together from parameters.

    One that is used in slices is one layer with all its neurons, however many a call takes.
    """
    if use.neurons is None:  # a single neuron, or neurons that no rule could follow: labels that nothing is tied to
        given = use.how.get("axis", 1 if use.how.get("transposed") else 0)
        count = use.weight.shape[given]
        slot = max(sorted(use.weight.origin), key=lambda name: (np.prod(slots[name].shape), count in slots[name].shape))
        fitting = [a for a, n in enumerate(slots[slot].shape) if n == count]
        if not fitting:  # looked up from a table, say: a neuron is no slice of a parameter
            return []
        axis = given if given in fitting and use.weight.ndim == len(slots[slot].shape) else fitting[0]
        labels = ties.new(count)
        ties.fix(labels, "its only neuron" if count == 1 else "its neurons could not be followed", "")
        return [(slot, axis, labels.numpy(), count)]
    by = owner[ids := use.neurons.numpy()]
    by_group = use.how.get("transposed") and use.how.get("groups", 1) > 1  # an index of the weight is several neurons
    if by_group and (by < 0).all():  # one output a group: the axis of the outputs has one index, which carries no label
        slot = max(sorted(use.weight.origin), key=lambda name: slots[name].shape == use.weight.shape)
        return [(slot, 1, ids, len(ids))] if slots[slot].shape == use.weight.shape else []
    parts = []
    for k in (k for k in dict.fromkeys(by.tolist()) if k >= 0):
        (slot, axis), mine = places[k], ids[by == k]
        parts.append((slot, axis, mine if by_group else slots[slot].ids[axis].numpy(), len(mine)))
    return parts


def owner_of(parameter: str) -> str:
    """The module path of a parameter's owner; a parametrisation belongs to the module that it parametrises."""
    return (
        parameter.partition(".parametrizations.")[0]
        if ".parametrizations." in parameter
        else parameter.rpartition(".")[0]
    )
