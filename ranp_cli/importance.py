"""Importance of neurons from the gradients of a calibration batch (RANP, eq. 4-8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
from .shadow import NoDropout, copy_on, each, map_tensors, seeded, shadow, to_meta
from .trace import Tracer
from .units import Graph, Layer, named_tensors, user_line


@dataclass(frozen=True)
class Importance:
    """The scores of each layer in float64, and how many mini-batches they are the mean of.

    One score a neuron, of shape (N,); for the criterion `snip` one a weight, of the parameter's shape, in float32.
    """

    scores: list[np.ndarray]
    batches: int


def score(model: nn.Module, graph: Graph, batches: Any, loss: Callable[[Any, Any], Tensor], criteria: Sequence[Criterion],
          device: torch.device, seed: int = 0, advance: Callable[[], Any] = lambda: None) -> dict[str, Importance]:  # fmt: skip
    """Scores of all neurons by each criterion, averaged over the mini-batches, from one pass over them.

    The model runs in training mode with batch statistics and without dropout, on a twin that shares its weights, so
    the model itself (modes, gradients, buffers) is not touched. A gradient is freed as soon as it has been scored.
    Raises BadInput for a loss that is not finite or reaches no layer.
    """
    twin = training_twin(model, device)
    weights = dict(named_tensors(twin))
    gathers: list[Gather] = []
    if of_weights := [c for c in criteria if c.of_weights]:
        gathers.append(WeightGather(graph.layers, weights, of_weights))
    if of_activations := [c for c in criteria if c.of_activations]:
        gathers.append(MaskGather(model, graph, of_activations))
    count = 0
    with ExitStack() as during:
        during.enter_context(seeded(seed))
        for gather in gathers:
            during.enter_context(gather.watching())
        for batch in batches:
            args, kwargs, target = map_tensors((batch.args, batch.kwargs, batch.target), lambda t: t.to(device))
            with torch.enable_grad(), NoDropout(), ExitStack() as forward:
                for gather in gathers:
                    forward.enter_context(gather.forward())
                value = loss(run_model(twin, args, kwargs), target)
            check_finite(value, count, graph.layers, weights)
            value.backward()
            del value
            for gather in gathers:
                gather.end_of_batch()
            count += 1
            advance()
    if not count:
        raise BadInput("the batch source is empty: no mini-batch came; give at least one (input, target)")
    found = {name: scores for gather in gathers for name, scores in gather.result(count).items()}
    for scores in found.values():
        check_scores(scores, graph.layers)
    return {c.name: Importance(found[c.name], count) for c in criteria}


def norms(model: nn.Module, graph: Graph, criterion: Criterion) -> list[np.ndarray]:
    """Norms of the weights of each neuron, by layer: what magnitude pruning goes by."""
    weights = dict(named_tensors(model))
    with torch.no_grad():
        return [
            criterion.over_weights(rows_of(weights[layer.slot].double(), layer)).cpu().numpy() for layer in graph.layers
        ]


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
    twin = copy_on(model, device)
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

    def __init__(self, layers: Sequence[Layer], tensors: dict[str, Tensor], criteria: Sequence[Criterion]):
        self.layers, self.criteria = layers, criteria
        self.weights = [tensors[layer.slot] for layer in layers]
        self.total: dict[str, list[Tensor | None]] = {c.name: [None] * len(layers) for c in criteria}

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
        for c in sorted(
            self.criteria, key=lambda c: not c.signed
        ):  # |g| is taken in place, after all that want the sign
            if not c.signed:
                g = g.abs_()
            for k in ks:
                rows = g if c.reduce == "nothing" else rows_of(g, self.layers[k])
                part = c.over_weights(rows).double() if c.is_linear and c.reduce != "nothing" else rows
                old = self.total[c.name][k]
                self.total[c.name][k] = part.clone() if old is None else old + part

    def forward(self) -> Any:
        return nullcontext()

    def end_of_batch(self) -> None:
        """Everything was done in the hooks."""

    def result(self, count: int) -> dict[str, list[np.ndarray]]:
        return {c.name: self._mean(c, count) for c in self.criteria}

    def _mean(self, criterion: Criterion, count: int) -> list[np.ndarray]:
        out = []
        for total, layer, weight in zip(self.total[criterion.name], self.layers, self.weights, strict=True):
            if criterion.reduce == "nothing":
                out.append((torch.zeros_like(weight) if total is None else total / count).detach().cpu().numpy())
            elif total is None:  # the loss does not depend on it
                out.append(np.zeros(len(layer.neurons)))
            else:
                mean = total / count
                mean = mean if criterion.is_linear else criterion.over_weights(mean)
                out.append(mean.abs().double().cpu().numpy())
        return out


class MaskGather:
    """dL/dc of a mask c that multiplies the post-activation of each layer: the sum over positions of a * dL/da.

    `neuron` takes its absolute value for each mini-batch (eq. 4, 7); `taylor` for each example, as a mean over
    positions (Molchanov et al., eq. 8).
    """

    def __init__(self, model: nn.Module, graph: Graph, criteria: Sequence[Criterion]):
        if isinstance(model, torch.jit.ScriptModule):
            raise BadInput(
                f"criterion '{criteria[0].name}' needs the Python model: TorchScript hides where activations are; "
                "use an mpmg one"
            )
        self.sizes, self.criteria = graph.sizes, criteria
        self.at = post_activations(model, graph)
        self.masks: list[list[tuple[Tensor, int]]] = []
        self.total: dict[str, list[Tensor | None]] = {c.name: [None] * len(self.sizes) for c in criteria}

    def watching(self) -> Any:
        return nullcontext()

    def forward(self) -> Any:
        self.masks = [[] for _ in self.sizes]
        return MaskMode(self.at, self.masks)

    def end_of_batch(self) -> None:
        for k, masks in enumerate(self.masks):
            grads = [(mask.grad.double(), positions) for mask, positions in masks if mask.grad is not None]
            for c in self.criteria if grads else ():
                if c.reduce == "batch":
                    part = torch.stack([g.sum(0) for g, _ in grads]).sum(0).abs()
                else:
                    part = torch.stack([(g / positions).abs().mean(0) for g, positions in grads]).sum(0)
                old = self.total[c.name][k]
                self.total[c.name][k] = part if old is None else old + part

    def result(self, count: int) -> dict[str, list[np.ndarray]]:
        return {name: [np.zeros(n) if t is None else (t / count).cpu().numpy()
                       for t, n in zip(total, self.sizes, strict=True)] for name, total in self.total.items()}  # fmt: skip


Gather = WeightGather | MaskGather


class MaskMode(TorchFunctionMode):
    """Multiplies the outputs of chosen calls by masks of ones, one value an example and neuron.

    `at`: number of the call -> (layer, axis of its neurons, name of the function called). Appends each mask (B, N) to
    `masks[layer]`, with the number of positions that each of its values multiplies.
    """

    def __init__(self, at: dict[int, list[tuple[int, int, str]]], masks: list[list[tuple[Tensor, int]]]):
        super().__init__()
        self.at, self.masks, self.calls = at, masks, -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        out = func(*args, **(kwargs or {}))
        for layer, axis, name in self.at.get(self.calls, ()):
            assert name == getattr(func, "__name__", ""), f"call {self.calls} was {name}, is {func}"
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
