"""Scales and weights that are initialised to zero: find them, score others in their place, and name layers without scores.

Behind a norm weight or a gate of zeros (ReZero, SkipInit, LayerScale, nnU-Net's residual encoders) no layer has a gradient,
nor has one before a convolution of zeros (Fixup, ControlNet). All scores are then zero, whatever the layer is worth. So the
copy that is scored has ones for such a scale and drawn weights for such a layer; the model keeps its zeros. A layer that has
no score even so is not ranked, and stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import rules
from ..core.aten import op_name, writes
from ..core.contexts import each
from ..core.errors import BadInput
from ..core.spelling import spelled
from ..core.tensors import map_tensors
from ..graph.analyse import named_tensors, trace_once
from ..graph.graph import Graph
from ..graph.trace import Tracer
from ..rules.labels import Labels, Ties

NO_GRADIENT = "no gradient reaches it (no_grad, detach, or an output that the loss does not use)"
NO_ACTIVATION = (
    "the criterion finds no activation of it in the model's code: it takes that of plain calls of torch only"
)
ALL_ZERO = "all its scores are zero on these mini-batches, so that they rank none of its neurons"
ZERO_WEIGHTS = "all its weights are zero, so that their norms rank none of its neurons"
SAID = ("scales_at_one", "weights_drawn", "not_ranked")  # in the report's part `scoring` and in a file of scores
FOLDED = ("elementwise", "views", "slicing")  # families of ops whose result on parameters alone is worked out
ZERO_AT = {
    "aten.mul": (0, 1),
    "aten.multiply": (0, 1),
    "aten._weight_norm_interface": (1,),
}  # operands: zero gives zero


@dataclass(frozen=True)
class Zeros:
    """Parameters, by name, whose numbers are all zero: scales of activations, and weights of layers in forward order.

    `last`: those of `weights` of whose layers no neuron may go, as before a network's output.
    """

    scales: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    last: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.scales + self.weights)

    def replace_in(self, twin: nn.Module, seed: int, last: bool = False) -> None:
        """Set the scales of `twin`, which has them to itself, to one, and draw its weights; with `last` those alone, else not them.

        The weights are Glorot's, from `seed` and the number of the parameter, in whatever order they are drawn.
        """
        tensors = dict(named_tensors(twin))
        with torch.no_grad():
            for name in () if last else self.scales:
                tensors[name].detach().fill_(1)
            for k, name in enumerate(self.weights):
                if (name in self.last) == last:
                    drawn = glorot(tuple(tensors[name].shape), (seed * 1_000_003 + k) % 2**63)
                    tensors[name].detach().copy_(drawn)

    def facts(self, graph: Graph) -> dict[str, list[str]]:
        """What the report's part `scoring` and a file of scores say of them."""
        drawn = [layer.name for layer in graph.layers if layer.slot in self.weights]
        return {key: names for key, names in (("scales_at_one", [*self.scales]), ("weights_drawn", drawn)) if names}


def glorot(shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform Glorot weights of that shape, in float32."""
    weight = torch.empty(shape if len(shape) > 1 else (1, *shape) if shape else (1, 1))
    nn.init.xavier_uniform_(weight, generator=torch.Generator().manual_seed(seed))
    return weight.reshape(shape)


def find_zeros(model: nn.Module, graph: Graph) -> Zeros:
    """The scales and the layers' weights that are all zero in `model`; what its forward writes is left out."""
    gained = gains(graph)
    slots = dict.fromkeys(layer.slot for layer in graph.layers if layer.slot not in gained)
    zero = {
        name: None
        for name, p in model.named_parameters()
        if p.numel() and p.is_floating_point() and name not in graph.written and not p.detach().any()
    }
    fixed = dict.fromkeys(graph.slots, True)
    for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True):
        fixed[layer.slot] &= bool(graph.fixed_units[units].all())
    weights = tuple(name for name in slots if name in zero)
    others = frozenset(zero) - frozenset(slots)
    used: frozenset[str] = frozenset().union(*(t.origin or () for t in multipliers(graph.ties)))
    scales = zero_scales(model, graph, others) if used & others else frozenset()
    return Zeros(tuple(n for n in zero if n in scales), weights, frozenset(n for n in weights if fixed[n]))


def gains(graph: Graph) -> frozenset[str]:
    """Parameters with one number for each neuron of a layer whose weight has more: the g of a weight norm."""
    sizes: dict[str, int] = {}
    for use in graph.ties.uses:
        for name in use.weight.origin or ():
            sizes[name] = max(sizes.get(name, 0), math.prod(use.weight.shape))
    return frozenset(
        layer.slot for layer in graph.layers if layer.weights == len(layer.neurons) < sizes.get(layer.slot, 0)
    )


def multipliers(ties: Ties) -> Iterator[Labels]:
    """What a trace has met that multiplies activations and is computed from parameters alone."""
    yield from ties.scales
    yield from (use.weight for use in ties.uses)


def zero_scales(model: nn.Module, graph: Graph, zero: frozenset[str]) -> frozenset[str]:
    """Which of the parameters `zero` make a multiplier of activations that is all zero, as `alpha` and `tanh(alpha)` do.

    `1 + gamma`, `exp(scale)` and `sigmoid(gate)` are no zeros, though their parameters are.
    """
    tracer = ZeroTracer(Ties(), rules.find, rules.is_free)
    tracer.ties.size, tracer.zero = graph.ties.size, zero
    trace_once(
        tracer, model, graph.example.with_batch(graph.train_run.samples), graph.slots, True, graph.train_run.real
    )
    found = (t for t in multipliers(tracer.ties) if t.value is not None and not t.value.any())
    return frozenset().union(*(t.origin or () for t in found)) & zero


class ZeroTracer(Tracer):
    """Also works out what is computed from parameters that are all zero (`zero`) and constants alone."""

    zero: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._values: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def labels(self, t: Tensor) -> Labels:
        found = super().labels(t)
        return found if found.value is not None or found.is_data else replace(found, value=self._value(t))

    def _value(self, t: Tensor) -> Tensor | None:
        if self.owned.get(t.untyped_storage()._cdata) in self.zero:  # and so is whatever part of it
            return torch.zeros(t.shape, dtype=t.dtype)
        known: Tensor | None = self._values.get(t)
        if known is not None or t.device.type != "cpu":
            return known
        return t.detach()  # a constant of the code, or any parameter where the trace needs real numbers

    def _record(self, func: Any, args: Any, kwargs: Any, l_args: Any, l_kwargs: Any, out: Any) -> None:
        super()._record(func, args, kwargs, l_args, l_kwargs, out)
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(first, Tensor):
            return
        self._values.pop(first, None)
        operands = list(each(Labels, l_args, l_kwargs))
        if writes(func, 0) or not any((t.origin or frozenset()) & self.zero for t in operands):
            return
        name = op_name(func)
        factors = [t for k, t in enumerate(l_args) if k in ZERO_AT.get(name, ()) and isinstance(t, Labels)]
        if any(t.value is not None and not t.value.any() for t in factors):
            self._values[first] = torch.zeros(first.shape, dtype=first.dtype)
        elif all(t.value is not None for t in operands) and self._is_folded(name):
            given = map_tensors((tuple(args), dict(kwargs)), lambda t: self.labels(t).value)
            result = func(*given[0], **{k: v for k, v in given[1].items() if k != "device"})
            self._values[first] = result[0] if isinstance(result, (tuple, list)) else result

    def _is_folded(self, name: str) -> bool:
        rule = self.rule_for(name)
        return rule is not None and rule.__module__.rpartition(".")[2] in FOLDED


# -- layers without a score


def unranked(
    graph: Graph, scores: Sequence[np.ndarray], reasons: Mapping[str, str], otherwise: str = ALL_ZERO
) -> dict[str, str]:
    """Layer -> why it is not ranked: those of `reasons`, and each whose scores are all zero."""
    return {
        layer.name: reasons.get(layer.name, otherwise)
        for layer, values in zip(graph.layers, scores, strict=True)
        if layer.name in reasons or not values.any()
    }


def keep_whole(graph: Graph, reasons: Mapping[str, str]) -> None:
    """Fix those layers for these reasons, but for neurons that are tied to ones with scores: those go by their scores."""
    if not reasons:
        return
    graph.unranked = frozenset(reasons)
    for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True):
        if layer.name in reasons:
            graph.ties.fix(layer.neurons[graph.unranked_units[units]], reasons[layer.name], "")
    graph.settle()


@contextmanager
def whole_layers(graph: Graph, reasons: Mapping[str, str]) -> Iterator[None]:
    """`keep_whole` while it lasts."""
    keep_whole(graph, reasons)
    try:
        yield
    finally:
        if reasons:
            graph.unranked = frozenset()
            graph.ties.unfix(frozenset(reasons.values()))
            graph.settle()


def notes(facts: Mapping[str, Any]) -> list[str]:
    """What a reader has to know of a scoring's `scales_at_one`, `weights_drawn` and `not_ranked`."""
    said = []
    if scales := facts.get("scales_at_one"):
        said.append(
            f"{_some(scales, 'scale')} initialised to zero: scored at one, since no gradient passes a zero; "
            "the network itself keeps the zeros"
        )
    if drawn := facts.get("weights_drawn"):
        said.append(
            f"{_some(drawn, 'layer')} with weights of zeros: scored with Glorot weights drawn from the seed, since no "
            "gradient passes a zero; the network itself keeps the zeros"
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in (facts.get("not_ranked") or {}).items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        said.append(f"{_some(names, 'layer')} not ranked, and kept whole where no ranked one is tied to it: {reason}")
    return said


def _some(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"


def check_reached(scores: Sequence[Tensor | None], graph: Graph, zeros: Zeros) -> None:
    """BadInput when no layer but last ones of zeros has any score: nothing passes them.

    Args:
        scores: of each layer, of one mini-batch, taken with the last layers' zeros.
    """
    for layer, values in zip(graph.layers, scores, strict=True):
        if layer.slot not in zeros.last and values is not None and bool(values.any()):
            return
    name = next(layer.name for layer in graph.layers if layer.slot in zeros.last)
    raise BadInput(
        f"the weights of layer {name} are all zero and it is the last one: no gradient of the loss reaches a layer before it; "
        f"give {spelled('score_init', 'glorot')}, which scores drawn weights"
    )
