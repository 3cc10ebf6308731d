"""Importance of neurons from the gradients of a calibration batch (RANP, eq. 4-8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import rules
from .criteria import Criterion
from .errors import USER_EXCEPTIONS, BadInput
from .example import Example
from .labels import LayerUse
from .shadow import NoDropout, each, map_tensors, replicate, seeded, shadow, to_meta
from .trace import Tracer
from .units import Graph, Layer, named_tensors, user_line


@dataclass(frozen=True)
class Importance:
    """One float64 score for each neuron of each layer, and how many mini-batches they are the mean of."""

    scores: list[np.ndarray]
    batches: int


def score(model: nn.Module, graph: Graph, batches: Any, loss: Callable[[Any, Any], Tensor], criterion: Criterion,
          device: torch.device, seed: int = 0, advance: Callable[[], Any] = lambda: None) -> Importance:  # fmt: skip
    """Scores of all neurons, averaged over the mini-batches.

    The model runs in training mode with batch statistics and without dropout, on a twin that shares its weights, so
    the model itself (modes, gradients, buffers) is not touched. A gradient is freed as soon as it has been scored.
    Raises BadInput for a loss that is not finite or reaches no layer.
    """
    twin = training_twin(model, device)
    weights = dict(named_tensors(twin))
    gather: Gather = (
        MaskGather(model, graph) if not criterion.of_weights else WeightGather(graph.layers, weights, criterion)
    )
    count = 0
    with seeded(seed), gather.watching():
        for batch in batches:
            args, kwargs, target = map_tensors((batch.args, batch.kwargs, batch.target), lambda t: t.to(device))
            with torch.enable_grad(), NoDropout(), gather.forward():
                value = loss(run_model(twin, args, kwargs), target)
            check_finite(value, count, graph.layers, weights)
            value.backward()
            del value
            gather.end_of_batch()
            count += 1
            advance()
    if not count:
        raise BadInput("the batch source is empty: no mini-batch came; give at least one (input, target)")
    scores = gather.result(count)
    check_scores(scores, graph.layers)
    return Importance(scores, count)


def run_model(model: nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        return model(*args, **kwargs)
    except USER_EXCEPTIONS as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in each(Tensor, args, kwargs))
        where = user_line(error)
        text = " ".join(str(error).split())[:300]
        raise BadInput(
            f"the model fails on a mini-batch of shape {shapes}: {type(error).__name__}: {text}"
            f"{f' (at {where})' if where else ''}; every mini-batch must be of a shape and dtype that the model takes"
        ) from error


def training_twin(model: nn.Module, device: torch.device) -> nn.Module:
    """The model in training mode on `device`, its weights shared where they are there already, its buffers copied."""
    if isinstance(model, torch.jit.ScriptModule):
        twin = shadow(model, real=True).to(device)
    else:
        twin = replicate(model, lambda _, t: t.to(device))
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    for p in twin.parameters():
        p.grad = None
        p.requires_grad_(False)
    return twin


class WeightGather:
    """g = w * dL/dw, reduced to neurons in a hook as soon as the gradient of a weight is complete."""

    def __init__(self, layers: Sequence[Layer], tensors: dict[str, Tensor], criterion: Criterion):
        self.layers, self.criterion = layers, criterion
        self.weights = [tensors[layer.slot] for layer in layers]
        self.total: list[Tensor | None] = [None] * len(layers)

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

    def _take(self, p: Tensor, ks: list[int]) -> None:
        assert p.grad is not None
        g = p.detach() * p.grad
        p.grad = None
        if not self.criterion.signed:
            g = g.abs_()
        for k in ks:
            rows = rows_of(g, self.layers[k])
            part = self.criterion.over_weights(rows).double() if self.criterion.is_linear else rows
            old = self.total[k]
            self.total[k] = part.clone() if old is None else old + part

    def forward(self) -> Any:
        return nullcontext()

    def end_of_batch(self) -> None:
        """Everything was done in the hooks."""

    def result(self, count: int) -> list[np.ndarray]:
        out = []
        for total, layer in zip(self.total, self.layers, strict=True):
            if total is None:  # the loss does not depend on it
                out.append(np.zeros(len(layer.neurons)))
                continue
            mean = total / count
            if not self.criterion.is_linear:
                mean = self.criterion.over_weights(mean)
            out.append(mean.abs().double().cpu().numpy())
        return out


class MaskGather:
    """dL/dc of a mask c that multiplies the post-activation of each layer: the sum over positions of a * dL/da."""

    def __init__(self, model: nn.Module, graph: Graph):
        if isinstance(model, torch.jit.ScriptModule):
            raise BadInput(
                "criterion 'neuron' needs the Python model: TorchScript hides where activations are; use an mpmg one"
            )
        self.sizes = graph.sizes
        self.at = post_activations(model, graph)
        self.masks: list[Tensor | None] = []
        self.total: list[Tensor | None] = [None] * len(self.sizes)

    def watching(self) -> Any:
        return nullcontext()

    def forward(self) -> Any:
        self.masks = [None] * len(self.sizes)
        return MaskMode(self.at, self.masks)

    def end_of_batch(self) -> None:
        for k, mask in enumerate(self.masks):
            if mask is not None and mask.grad is not None:
                s = mask.grad.abs().double()
                old = self.total[k]
                self.total[k] = s if old is None else old + s

    def result(self, count: int) -> list[np.ndarray]:
        return [
            np.zeros(n) if t is None else (t / count).cpu().numpy() for t, n in zip(self.total, self.sizes, strict=True)
        ]


Gather = WeightGather | MaskGather


class MaskMode(TorchFunctionMode):
    """Multiplies the outputs of chosen calls by masks of ones.

    `at`: number of the call -> (layer, axis of its neurons, name of the function called).
    """

    def __init__(self, at: dict[int, list[tuple[int, int, str]]], masks: list[Tensor | None]):
        super().__init__()
        self.at, self.masks, self.calls = at, masks, -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        out = func(*args, **(kwargs or {}))
        for layer, axis, name in self.at.get(self.calls, ()):
            assert name == getattr(func, "__name__", ""), f"call {self.calls} was {name}, is {func}"
            mask = self.masks[layer]
            if mask is None:
                mask = self.masks[layer] = torch.ones(
                    out.shape[axis], dtype=out.dtype, device=out.device, requires_grad=True
                )
            out = out * mask.view([-1 if a == axis else 1 for a in range(out.ndim)])
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
        self.tracer, self.calls = tracer, []  # type: ignore[var-annotated]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ins = [t for t in each(Tensor, args, kwargs or {}) if self.tracer.labels(t).is_data]
        seen = len(self.tracer.ties.uses)
        out = func(*args, **(kwargs or {}))
        self.calls.append(Call(getattr(func, "__name__", ""), ins, out, tuple(self.tracer.ties.uses[seen:])))
        return out


def post_activations(model: nn.Module, graph: Graph) -> dict[int, list[tuple[int, int, str]]]:
    """Number of the torch call whose result is the post-activation of a layer -> (layer, axis of its neurons, function).

    From the layer's own call on, follow the only consumer as long as it has no other input and keeps the shape: a
    norm, an activation, a dropout.
    """
    copy = shadow(model).train()
    tracer = Tracer(type(graph.ties)(), rules.find, rules.is_free)
    tracer.ties.size = graph.ties.size
    for name, t in named_tensors(copy):
        tracer.put(t, graph.slots[name].labels)
    example: Example = graph.example.with_batch(2)
    args, kwargs = to_meta((example.args, example.kwargs))
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
    found: dict[int, list[tuple[int, int, str]]] = {}
    for i, call in enumerate(mode.calls):
        for use in call.uses:
            k = None if use.neurons is None else first.get(int(use.neurons[0]))
            if k is None or not isinstance(call.out, Tensor):
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
            found.setdefault(at, []).append((k, axis, mode.calls[at].name))
    return found


def rows_of(t: Tensor, layer: Layer) -> Tensor:
    """A tensor of the weight's shape as (neurons, weights of a neuron)."""
    if layer.transposed and layer.groups > 1:  # (groups, I/groups, O/groups, *K)
        g = layer.groups
        return t.reshape(g, t.shape[0] // g, t.shape[1], -1).transpose(1, 2).reshape(g * t.shape[1], -1)
    return t.movedim(layer.axis, 0).reshape(t.shape[layer.axis], -1)


def check_finite(loss: Tensor, index: int, layers: Sequence[Layer], weights: dict[str, Tensor]) -> None:
    if not bool(torch.isfinite(loss)):
        bad = next((layer.name for layer in layers if not bool(torch.isfinite(weights[layer.slot]).all())), None)
        where = (
            f"layer {bad} has weights that are not finite"
            if bad
            else f"all weights from layer {layers[0].name} on are finite"
        )
        raise BadInput(
            f"the loss of mini-batch {index} is {loss.item()} ({where}); give a batch and --loss that make it finite"
        )
    if not loss.requires_grad:
        raise BadInput(
            f"the loss of mini-batch {index} has no gradient: it depends on no layer (the first is {layers[0].name}); "
            "give a --loss that is differentiable in the model's output"
        )


def check_scores(scores: Sequence[np.ndarray], layers: Sequence[Layer]) -> None:
    for s, layer in zip(scores, layers, strict=True):
        if not np.isfinite(s).all():
            raise BadInput(
                f"the gradient of layer {layer.name} is not finite; give inputs of a sane scale or another --loss"
            )
    if not any(s.any() for s in scores):
        raise BadInput(
            f"the loss has no gradient: it is zero in every layer from {layers[0].name} on; "
            "check that the targets are not all ignored and that the loss depends on the output"
        )
