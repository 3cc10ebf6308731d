"""Collect activations and dL/dc of masks c on them, for criteria that look at what a neuron gives."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from .. import rules
from ..core.contexts import NoDropout, each, seeded
from ..core.copies import meta_copy
from ..core.errors import BadInput
from ..core.example import Example
from ..core.spelling import spelled
from ..core.tensors import map_tensors, to_meta, to_real
from ..graph.analyse import named_tensors
from ..graph.graph import Graph
from ..graph.trace import Tracer
from ..rules.labels import LayerUse
from .activation_scores import DRAWS, Moments, neuron_scores, sign_draws, taylor_scores
from .checks import check_differentiable, second_order
from .criteria import Criterion
from .weight_gradients import GradientCollector
from .zero_scores import NO_ACTIVATION, NO_GRADIENT


class ActivationGradientCollector(GradientCollector):
    """Scores from the post-activation a of each layer, and from the gradients of masks that multiply it.

    The arithmetic is that of `activation_scores`: dL/dc of a mask c is the sum over positions of a * dL/da.
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
        self.placed = {place.layer for places in self.at.values() for place in places}
        self.forget()

    def forget(self) -> None:
        """Leave out what was seen since the mini-batch began."""
        self.masks: list[list[Mask]] = [[] for _ in self.sizes]
        self.moments: list[Moments | None] = [None] * len(self.sizes)

    def mode(self) -> ActivationMode:
        """What looks at a forward pass."""
        return ActivationMode(self.at, self.see)

    def forward(self) -> AbstractContextManager[Any]:
        self.forget()
        return self.mode()

    def see(self, place: Place, out: Tensor) -> Tensor:
        """Note a post-activation; what the network goes on with: itself, or times a mask of ones."""
        k = place.layer
        self.note_values(place, out)
        if not any(c.of_masks for c in self.criteria):
            return out
        if is_checkpointed():
            raise BadInput(
                "the criterion multiplies activations by masks, and the model checkpoints them; "
                f"use an mpmg or mnmg criterion, or turn the model's checkpointing off ({spelled('low_memory', True)} does the same for it)"
            )
        size = out.shape[0], out.shape[place.axis]
        mask = torch.ones(size, dtype=out.dtype, device=out.device, requires_grad=True)
        self.masks[k].append(Mask(mask, out.numel() // (size[0] * size[1]), place.neurons))
        return out * mask.view([n if a in (0, place.axis) else 1 for a, n in enumerate(out.shape)])

    def note_values(self, place: Place, out: Tensor) -> None:
        """Add a post-activation to what the criteria of values want to know of it."""
        if not any(c.of_values for c in self.criteria):
            return
        moments = Moments.of(out.detach(), place.axis)
        if place.neurons is not None:
            moments = moments.among(self.sizes[place.layer], place.neurons.to(out.device))
        old = self.moments[place.layer]
        self.moments[place.layer] = moments if old is None else old + moments

    def why_none(self, k: int) -> str:
        return NO_GRADIENT if k in self.placed else NO_ACTIVATION

    def nothing(self, criterion: Criterion, k: int) -> Tensor:
        return torch.zeros(self.sizes[k], dtype=torch.float64, device=self.device)

    def before_backward(self, loss: Tensor, index: int, seed: int) -> None:
        """`obd`: the second derivatives of the loss, whose graph is still there."""
        for c in self.criteria:
            if c.reduce == "curvature":
                for k, part in self._curvature(loss, index, seed).items():
                    self.put(c, k, part)

    def take(self) -> None:
        """What the masks and the values of the mini-batch at hand have got."""
        for k, masks in enumerate(self.masks):
            reached = [mask for mask in masks if mask.ones.grad is not None]
            gradients = [self.whole(k, mask, mask.ones.grad) for mask in reached]
            for c in self.criteria:
                if c.of_values and (moments := self.moments[k]) is not None:
                    self.put(c, k, moments.score(c.reduce))
                elif c.reduce == "batch" and reached:
                    self.put(c, k, neuron_scores(gradients))
                elif c.reduce == "example" and reached:
                    self.put(c, k, taylor_scores(gradients, [mask.positions for mask in reached]))
        self.forget()

    def whole(self, k: int, mask: Mask, gradient: Tensor | None) -> Tensor:
        """The gradient of a mask, of shape (B, N) with zeros for neurons of the layer that its call does not use."""
        assert gradient is not None
        gradient = gradient.real.double() / self.scale
        if mask.neurons is None:
            return gradient
        whole = torch.zeros((len(gradient), self.sizes[k]), dtype=gradient.dtype, device=gradient.device)
        return whole.index_copy(1, mask.neurons.to(gradient.device), gradient)

    def _curvature(self, loss: Tensor, index: int, seed: int) -> dict[int, Tensor]:
        """Half the second derivative of the loss by one gate a neuron, by layer, estimated from signs (see `sign_draws`)."""
        masks = [(k, mask) for k, each in enumerate(self.masks) for mask in each]
        ones = [mask.ones for _, mask in masks]
        first = second_order(loss, index, ones, again=True)
        reached = [(k, mask, g) for (k, mask), g in zip(masks, first, strict=True) if g is not None]
        check_differentiable([g for _, _, g in reached], index)
        found = {k: torch.zeros(self.sizes[k], dtype=torch.float64, device=g.device) for k, _, g in reached}
        bent = [(k, mask, g) for k, mask, g in reached if g.requires_grad]  # the others are constant
        for signs in sign_draws(self.sizes, (seed + index) % 2**63) if bent else ():
            along = [
                (g.real * (signs[k] if mask.neurons is None else signs[k][mask.neurons]).to(g.real)).sum()
                for k, mask, g in bent
            ]
            again = second_order(torch.stack(along).sum(), index, ones)
            for (k, mask), hv in zip(masks, again, strict=True):
                if hv is not None:
                    found[k] += self.whole(k, mask, hv).sum(0) * signs[k].to(hv.device)
        return {k: total / (2 * DRAWS) for k, total in found.items()}


class Place(NamedTuple):
    """Which axis of a call's result the neurons of a layer lie along; `neurons`: which of them, None for all."""

    layer: int
    axis: int
    neurons: Tensor | None


@dataclass
class Mask:
    """A mask of ones (B, N), the number of positions that each of its values multiplies, and its neurons (None: all)."""

    ones: Tensor
    positions: int
    neurons: Tensor | None


Places = dict[tuple[str, int], list[Place]]


def is_checkpointed() -> bool:
    """Does the caller run under torch's checkpointing, which will run it again?"""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


class ActivationMode(TorchFunctionMode):
    """Shows the outputs of chosen calls to `see`, and goes on with what it returns.

    `at`: (name of the function called, number of the call by that name) -> where the neurons lie.
    """

    def __init__(self, at: Places, see: Callable[[Place, Tensor], Tensor]):
        super().__init__()
        self.at, self.see = at, see
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        call = name, self.calls[name]
        self.calls[name] += 1
        out = func(*args, **(kwargs or {}))
        for place in self.at.get(call, ()):
            out = self.see(place, out)
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
    """The torch call whose result is the post-activation of a layer (see ActivationMode) -> where its neurons lie.

    From the layer's own call on, follow the only consumer as long as it has no other input and keeps the shape: a
    norm, an activation, a dropout.
    """
    real = graph.train_run.real
    copy = meta_copy(model, real).train()
    tracer = Tracer(type(graph.ties)(), rules.find, rules.is_free)
    tracer.ties.size = graph.ties.size
    for name, t in named_tensors(copy):
        tracer.put(t, graph.slots[name].labels)
    example: Example = graph.example.with_batch(graph.train_run.samples)
    given, place = (example.args, example.kwargs), next(model.parameters()).device
    args, kwargs = map_tensors(given, lambda t: to_real(t, place)) if real else to_meta(given)
    for t in each(Tensor, args, kwargs):
        tracer.put(t, tracer.labels(t).__class__(tuple(t.shape), (), None))
    mode = CallMode(tracer)
    for p in copy.parameters():
        p.requires_grad_(False)
    with seeded(), torch.enable_grad(), tracer, NoDropout(), mode:
        copy(*args, **kwargs)
    users: dict[int, list[int]] = {}
    for i, call in enumerate(mode.calls):
        for t in call.ins:
            if isinstance(call.out, (Tensor, tuple, list)):
                users.setdefault(id(t), []).append(i)
    at_label = {n: (k, i) for k, layer in enumerate(graph.layers) for i, n in enumerate(layer.neurons.tolist())}
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
            if (known := at_label.get(int(use.neurons[0]))) is None:
                continue
            k, mine = known[0], None
            if len(use.neurons) != graph.sizes[k]:
                mine = torch.tensor([at_label[n][1] for n in use.neurons.tolist() if at_label[n][0] == k])
            axis = next((a for a, n in enumerate(call.out.shape) if n == len(use.neurons) and a > 0), None)
            if axis is None:
                continue
            at, out = i, call.out
            while True:
                later = [j for j in users.get(id(out), []) if j > at]
                after = mode.calls[later[0]] if later else None
                single = len({id(t) for t in after.ins}) == 1 if after else False
                in_place = after is not None and after.out is out
                if (
                    after is None
                    or not single
                    or after.uses
                    or not isinstance(after.out, Tensor)
                    or after.out.shape != out.shape
                    or (len(later) > 1 and not in_place)
                ):
                    break
                at, out = later[0], after.out
            found.setdefault(numbers[at], []).append(Place(k, axis, mine))
    return found
