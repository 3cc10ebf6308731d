"""What is taken from a forward and a backward pass: g = w * dL/dw of weights, and dL/dc of masks on activations."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from . import rules
from .criteria import Criterion
from .errors import BadInput
from .example import Example
from .labels import LayerUse
from .shadow import NoDropout, each, map_tensors, seeded, shadow, to_meta, to_real
from .sums import Sum
from .trace import Tracer
from .units import Graph, Layer, named_tensors
from .zeros import NO_ACTIVATION, NO_GRADIENT

HALVES = (torch.float16, torch.bfloat16)  # in which nothing is added up
Sums = dict[str, list[Sum | None]]  # by criterion and layer; None: no gradient came


class Gather(ABC):
    """What one kind of criteria takes: parts of the mini-batch at hand, that `end_of_batch` adds to the sums."""

    def __init__(self, criteria: Sequence[Criterion], layers: int):
        self.criteria = criteria
        self.sums: Sums = {c.name: [None] * layers for c in criteria}
        self.parts: dict[str, list[Tensor | None]] = {}
        self.scale = 1.0  # the loss was multiplied by it
        self.drop_batch()

    def drop_batch(self) -> None:
        """Forget the mini-batch at hand."""
        self.parts = {name: [None] * len(sums) for name, sums in self.sums.items()}

    def put(self, criterion: Criterion, k: int, part: Tensor) -> None:
        old = self.parts[criterion.name][k]
        self.parts[criterion.name][k] = part if old is None else old + part

    def is_finite(self) -> bool:
        """Whether all that came of the mini-batch at hand are numbers."""
        return all(bool(t.isfinite().all()) for parts in self.parts.values() for t in parts if t is not None)

    @abstractmethod
    def nothing(self, criterion: Criterion, k: int) -> Tensor:
        """The part of a layer that no gradient reaches."""

    def end_of_batch(self) -> None:
        for name, parts in self.parts.items():
            for k, part in enumerate(parts):
                mine = self.sums[name][k]
                if mine is not None and part is not None:
                    mine.add(part)
                elif part is not None:
                    self.sums[name][k] = Sum.of(part)
        self.drop_batch()

    def why_none(self, k: int) -> str:
        """Why a layer has no part in any mini-batch."""
        return NO_GRADIENT

    @abstractmethod
    def take(self) -> None:
        """Called after the backward pass, for what was not taken in hooks."""

    def watching(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def forward(self) -> AbstractContextManager[Any]:
        return nullcontext()


def add_up(sums: list[Sum | None], others: Sequence[Sum | None]) -> None:
    """Add the sums of other mini-batches to these."""
    for k, other in enumerate(others):
        mine = sums[k]
        if mine is None:
            sums[k] = other
        elif other is not None:
            mine.merge(other)


class WeightGather(Gather):
    """g = w * dL/dw, reduced to neurons in a hook as soon as the gradient of a weight is complete."""

    def __init__(self, layers: Sequence[Layer], tensors: dict[str, Tensor], criteria: Sequence[Criterion]):
        super().__init__(criteria, len(layers))
        self.layers = layers
        self.weights = [tensors[layer.slot] for layer in layers]

    @contextmanager
    def watching(self) -> Iterator[None]:
        by_weight: dict[int, list[int]] = {}
        for k, w in enumerate(self.weights):
            by_weight.setdefault(id(w), []).append(k)
        handles = []
        for ks in by_weight.values():
            w = self.weights[ks[0]].requires_grad_(True)
            handles.append(w.register_post_accumulate_grad_hook(lambda p, ks=ks: self._take(p, ks)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def nothing(self, criterion: Criterion, k: int) -> Tensor:
        weight = self.weights[k]
        zeros = torch.zeros_like(weight, dtype=torch.float32 if weight.dtype in HALVES else None, requires_grad=False)
        if criterion.reduce == "nothing":
            return zeros
        rows = rows_of(zeros, self.layers[k])
        return rows[:, 0].double() if criterion.is_linear else rows

    def take(self) -> None:
        """The hooks have taken everything."""

    def _take(self, p: Tensor, ks: list[int]) -> None:
        assert p.grad is not None
        g, p.grad = p.grad, None
        g = (g.float() if g.dtype in HALVES else g).mul_(p.detach())
        if self.scale != 1:
            g = g.div_(self.scale)
        # |g| is taken in place, after all that want the sign
        for c in sorted(self.criteria, key=lambda c: not c.signed):
            g = g if c.signed else g.abs_()
            for k in ks:
                if c.reduce == "nothing":
                    self.put(c, k, g.clone())
                else:
                    rows = rows_of(g, self.layers[k])
                    self.put(c, k, c.over_weights(rows).double() if c.is_linear else rows.clone())


def mean_of(criterion: Criterion, sums: Sequence[Sum | None], shapes: Sequence[tuple[int, ...]], count: int) -> list[np.ndarray]:  # fmt: skip
    """The scores of each layer from the sums over `count` mini-batches; zeros where no gradient came."""
    out = []
    for total, shape in zip(sums, shapes, strict=True):
        if total is None:
            out.append(np.zeros(shape, np.float32 if criterion.reduce == "nothing" else np.float64))
            continue
        mean = total.value / count
        if criterion.of_weights and not criterion.is_linear:
            mean = criterion.over_weights(mean)
        mean = mean.detach().abs().cpu()
        out.append((mean if criterion.reduce == "nothing" else mean.double()).numpy())
    return out


class MaskGather(Gather):
    """dL/dc of a mask c that multiplies the post-activation of each layer: the sum over positions of a * dL/da.

    `neuron` takes its absolute value for each mini-batch (eq. 4, 7); `taylor` for each example, as a mean over
    positions (Molchanov et al., eq. 8).
    """

    def __init__(self, model: nn.Module, graph: Graph, criteria: Sequence[Criterion]):
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            raise BadInput(
                f"criterion '{criteria[0].name}' needs the Python model: TorchScript hides where activations are; "
                "use an mpmg one"
            )
        super().__init__(criteria, len(graph.sizes))
        self.sizes, self.device = graph.sizes, next(model.parameters()).device
        self.at = post_activations(model, graph)
        self.placed = {k for places in self.at.values() for k, _ in places}
        self.masks: list[list[tuple[Tensor, int]]] = []

    def forward(self) -> AbstractContextManager[Any]:
        self.masks = [[] for _ in self.sums[self.criteria[0].name]]
        return MaskMode(self.at, self.masks)

    def why_none(self, k: int) -> str:
        return NO_GRADIENT if k in self.placed else NO_ACTIVATION

    def nothing(self, criterion: Criterion, k: int) -> Tensor:
        return torch.zeros(self.sizes[k], dtype=torch.float64, device=self.device)

    def take(self) -> None:
        """What the masks of the mini-batch at hand have got."""
        for k, masks in enumerate(self.masks):
            grads = [(mask.grad.double() / self.scale, n) for mask, n in masks if mask.grad is not None]
            for c in self.criteria if grads else ():
                if c.reduce == "batch":
                    self.put(c, k, torch.stack([g.sum(0) for g, _ in grads]).sum(0).abs())
                else:
                    self.put(c, k, torch.stack([(g / n).abs().mean(0) for g, n in grads]).sum(0))
        self.masks = []


Places = dict[tuple[str, int], list[tuple[int, int]]]


def is_checkpointed() -> bool:
    """Does the caller run under torch's checkpointing, which will run it again?"""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


class MaskMode(TorchFunctionMode):
    """Multiplies the outputs of chosen calls by masks of ones, one value an example and neuron.

    `at`: (name of the function called, number of the call by that name) -> (layer, axis of its neurons). Appends each mask
    (B, N) to `masks[layer]`, with the number of positions that each of its values multiplies.
    """

    def __init__(self, at: Places, masks: list[list[tuple[Tensor, int]]]):
        super().__init__()
        self.at, self.masks = at, masks
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        call = name, self.calls[name]
        self.calls[name] += 1
        out = func(*args, **(kwargs or {}))
        for layer, axis in self.at.get(call, ()):
            if is_checkpointed():
                raise BadInput(
                    "the criterion multiplies activations by masks, and the model checkpoints them; "
                    "use an mpmg or mnmg criterion, or turn the model's checkpointing off (--low-memory does the same for it)"
                )
            size = out.shape[0], out.shape[axis]
            mask = torch.ones(size, dtype=out.dtype, device=out.device, requires_grad=True)
            self.masks[layer].append((mask, out.numel() // (size[0] * size[1])))
            out = out * mask.view([n if a in (0, axis) else 1 for a, n in enumerate(out.shape)])
        return out


@dataclass
class Call:
    """One call of the torch API: the tensors that came from the network's input, its result, the layers used in it."""

    name: str
    ins: list[Tensor]
    out: Any
    uses: tuple[LayerUse, ...]


class CallMode(TorchFunctionMode):
    """Notes every call of the torch API while a tracer runs below."""

    def __init__(self, tracer: Tracer):
        super().__init__()
        self.tracer = tracer
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ins = [t for t in each(Tensor, args, kwargs or {}) if self.tracer.labels(t).is_data]
        seen = len(self.tracer.ties.uses)
        out = func(*args, **(kwargs or {}))
        self.calls.append(Call(getattr(func, "__name__", ""), ins, out, tuple(self.tracer.ties.uses[seen:])))
        return out


def post_activations(model: nn.Module, graph: Graph) -> Places:
    """The torch call whose result is the post-activation of a layer (see MaskMode) -> (layer, axis of its neurons).

    From the layer's own call on, follow the only consumer as long as it has no other input and keeps the shape: a
    norm, an activation, a dropout.
    """
    real = graph.train_run.real
    copy = shadow(model, real).train()
    tracer = Tracer(type(graph.ties)(), rules.find, rules.is_free)
    tracer.ties.size = graph.ties.size
    for name, t in named_tensors(copy):
        tracer.put(t, graph.slots[name].labels)
    example: Example = graph.example.with_batch(2)
    given, place = (example.args, example.kwargs), next(model.parameters()).device
    args, kwargs = map_tensors(given, lambda t: to_real(t, place)) if real else to_meta(given)
    for t in each(Tensor, args, kwargs):
        tracer.put(t, tracer.labels(t).__class__(tuple(t.shape), (), None))
    mode = CallMode(tracer)
    with seeded(), torch.no_grad(), tracer, NoDropout(), mode:
        copy(*args, **kwargs)
    users: dict[int, list[int]] = {}
    for i, call in enumerate(mode.calls):
        for t in call.ins:
            if isinstance(call.out, (Tensor, tuple, list)):
                users.setdefault(id(t), []).append(i)
    first = {int(layer.neurons[0]): k for k, layer in enumerate(graph.layers)}
    by_name: Counter[str] = Counter()
    numbers = []
    for call in mode.calls:
        numbers.append((call.name, by_name[call.name]))
        by_name[call.name] += 1
    found: Places = {}
    for i, call in enumerate(mode.calls):
        for use in call.uses:
            if use.neurons is None or not isinstance(call.out, Tensor):
                continue
            k = first.get(int(use.neurons[0]))
            if k is None:
                continue
            axis = next((a for a, n in enumerate(call.out.shape) if n == len(use.neurons) and a > 0), None)
            if axis is None:
                continue
            at, out = i, call.out
            while True:
                later = [j for j in users.get(id(out), []) if j > at]
                after = mode.calls[later[0]] if later else None
                single = len({id(t) for t in after.ins}) == 1 if after else False
                in_place = after is not None and after.out is out
                if after is None or not single or after.uses or not isinstance(after.out, Tensor) \
                        or after.out.shape != out.shape or (len(later) > 1 and not in_place):  # fmt: skip
                    break
                at, out = later[0], after.out
            found.setdefault(numbers[at], []).append((k, axis))
    return found


def rows_of(t: Tensor, layer: Layer) -> Tensor:
    """A tensor of the weight's shape as (neurons, weights of a neuron)."""
    if layer.transposed and layer.groups > 1:  # (groups, I/groups, O/groups, *K)
        g = layer.groups
        return t.reshape(g, t.shape[0] // g, t.shape[1], -1).transpose(1, 2).reshape(g * t.shape[1], -1)
    return t.movedim(layer.axis, 0).reshape(t.shape[layer.axis], -1)


def norms(model: nn.Module, graph: Graph, criterion: Criterion) -> list[np.ndarray]:
    """Norms of the weights of each neuron, by layer: what magnitude pruning goes by."""
    weights = dict(named_tensors(model))
    with torch.no_grad():
        return [
            criterion.over_weights(rows_of(weights[layer.slot].double(), layer)).cpu().numpy() for layer in graph.layers
        ]
