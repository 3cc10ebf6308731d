"""Collect g = w * dL/dw of the layers' weights during a backward pass, and norms of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.analyse import named_tensors
from ..graph.graph import Graph, Layer
from .compensated_sum import CompensatedSum
from .criteria import Criterion
from .zero_scores import NO_GRADIENT

HALVES = (torch.float16, torch.bfloat16)  # in which nothing is added up
Sums = dict[str, list[CompensatedSum | None]]  # by criterion and layer; None: no gradient came


class GradientCollector(ABC):
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
                    self.sums[name][k] = CompensatedSum.of(part)
        self.drop_batch()

    def why_none(self, k: int) -> str:
        """Why a layer has no part in any mini-batch."""
        return NO_GRADIENT

    @abstractmethod
    def before_backward(self, loss: Tensor, index: int, seed: int) -> None:
        """Called with the loss of a mini-batch, for what takes the graph of it more than once."""

    @abstractmethod
    def take(self) -> None:
        """Called after the backward pass, for what was not taken in hooks."""

    def watching(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def forward(self) -> AbstractContextManager[Any]:
        return nullcontext()


def add_up(sums: list[CompensatedSum | None], others: Sequence[CompensatedSum | None]) -> None:
    """Add the sums of other mini-batches to these."""
    for k, other in enumerate(others):
        mine = sums[k]
        if mine is None:
            sums[k] = other
        elif other is not None:
            mine.merge(other)


class WeightGradientCollector(GradientCollector):
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
        dtype = torch.float32 if weight.dtype in HALVES else weight.dtype.to_real()
        zeros = torch.zeros_like(weight, dtype=dtype, requires_grad=False)
        if criterion.reduce == "nothing":
            return zeros
        rows = rows_of(zeros, self.layers[k])
        return rows[:, 0].double() if criterion.is_linear else rows

    def before_backward(self, loss: Tensor, index: int, seed: int) -> None:
        """The hooks take everything, during the backward pass."""

    def take(self) -> None:
        """The hooks have taken everything."""

    def _take(self, p: Tensor, ks: list[int]) -> None:
        assert p.grad is not None
        g, p.grad = p.grad, None
        self.add((g.float() if g.dtype in HALVES else g).mul_(p.detach().conj()), ks)

    def add(self, g: Tensor, ks: list[int]) -> None:
        """Add g = w * dL/dw, which is overwritten, to the mini-batch at hand, for the layers `ks` that have this weight."""
        if g.is_complex():  # the derivative by a real mask
            g = g.real.clone()
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


def mean_of(
    criterion: Criterion, sums: Sequence[CompensatedSum | None], shapes: Sequence[tuple[int, ...]], count: int
) -> list[np.ndarray]:
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
            criterion.over_weights(rows_of(size_of(weights[layer.slot]), layer)).cpu().numpy() for layer in graph.layers
        ]


def size_of(weight: Tensor) -> Tensor:
    """Weights in fp64; complex ones by their absolute value."""
    return weight.abs().double() if weight.is_complex() else weight.double()
