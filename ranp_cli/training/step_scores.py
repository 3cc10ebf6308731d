"""Scores from a training step that is made anyway: from the gradients that it leaves, and from activations on their way.

No pass is added, and nothing of what the step computes is changed: hooks look on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..graph.analyse import named_tensors
from ..graph.graph import Graph
from ..scoring.activation_gradients import ActivationGradientCollector, ActivationMode, Mask, Place
from ..scoring.compensated_sum import CompensatedSum
from ..scoring.criteria import Criterion
from ..scoring.setup import score_shapes
from ..scoring.weight_gradients import HALVES, WeightGradientCollector, mean_of, norms
from .wrappers import all_batches, average

OF_STEPS = ("sum", "mean", "max", "batch", "example", "l1", "l2")  # ways to reduce that a training step has all for


class Hook:
    """A hook of a module that its copies, and files of it, have not: there it does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> None:
        if self.call is not None:
            self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class StepWeights(WeightGradientCollector):
    """g = w * dL/dw of the gradients that a backward pass has left, which stay where they are."""

    def take(self) -> None:
        seen: dict[int, list[int]] = {}
        for k, w in enumerate(self.weights):
            seen.setdefault(id(w), []).append(k)
        for ks in seen.values():
            w = self.weights[ks[0]]
            if w.grad is not None:
                grad = w.grad.to_dense() if w.grad.is_sparse else w.grad
                weight = w.detach()
                product = (grad.float() if grad.dtype in HALVES else grad) * (
                    weight.float() if weight.dtype in HALVES else weight
                ).conj()
                self.add(product, ks)


class StepActivations(ActivationGradientCollector):
    """Post-activations a and dL/da, seen by hooks in the forward passes of training steps.

    A mini-batch is all that comes before a step of the optimiser: with accumulated gradients several forward passes.

    Args:
        overwritten: layer -> axes of the neurons of those activations that an op changes later, in place. They are copied;
            what a backward pass shows to be one is added, and copied from the next mini-batch on.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, criteria: Sequence[Criterion], overwritten: dict[str, list[int]]
    ):
        super().__init__(model, graph, criteria)
        self.overwritten = overwritten
        self.names = [layer.name for layer in graph.layers]
        self.modes: list[ActivationMode | None] = []  # of the passes that go on; None: one that nobody looks at
        self.handles = [
            model.register_forward_pre_hook(Hook(self._enter)),
            model.register_forward_hook(Hook(self._leave), always_call=True),
        ]

    def detach(self) -> None:
        """Look on no more."""
        for handle in self.handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        mode = self.mode() if torch.is_grad_enabled() and module.training else None
        self.modes.append(mode)
        if mode is not None:
            mode.__enter__()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and (mode := self.modes.pop() if self.modes else None) is not None:
            mode.__exit__(None, None, None)

    def see(self, place: Place, out: Tensor) -> Tensor:
        if not out.requires_grad:
            return out
        self.note_values(place, out)
        if any(c.of_masks for c in self.criteria):
            self._watch(place, out)
        return out

    def _watch(self, place: Place, out: Tensor) -> None:
        samples, neurons = out.shape[0], out.shape[place.axis]
        mask = Mask(
            torch.empty(samples, neurons, device=out.device, dtype=torch.float64),
            out.numel() // (samples * neurons),
            place.neurons,
        )
        self.masks[place.layer].append(mask)
        value = out.detach()
        known = self.overwritten.get(self.names[place.layer], [])
        held = [value.clone() if place.axis in known else value]
        version = value._version
        others = [axis for axis in range(out.ndim) if axis not in (0, place.axis)]

        def take(grad: Tensor) -> None:
            if not held:  # a second backward pass through the same graph
                return
            a = held.pop()
            if a is value and a._version != version:
                self.overwritten.setdefault(self.names[place.layer], []).append(place.axis)
                return
            with torch.no_grad():
                product = (grad.float() if grad.dtype in HALVES else grad) * a.conj()
                summed = product.real if product.is_complex() else product
                mask.ones.grad = summed.sum(others, dtype=torch.float64) if others else summed.double()

        out.register_hook(take)


class StepScores:
    """The scores of one criterion from training steps: what is seen since `watch`, of the network as it was then.

    `criterion` is None for scores that nobody looks for, as random ones.
    """

    def __init__(self, criterion: Criterion | None) -> None:
        if criterion is not None and not (criterion.reduce in OF_STEPS or criterion.of_values):
            raise BadInput(
                f"criterion '{criterion.name}' is not to be had from the gradients of a training step; "
                f"take {spelled('method')} taylor, ranp, weighted, vanilla, activation, weight, magnitude or random"
            )
        self.criterion, self.collector, self.batches = criterion, None, 0
        self.seen_any = False
        self.overwritten: dict[str, list[int]] = {}  # of all networks that are looked at in turn

    collector: StepWeights | StepActivations | None

    def is_ready(self, wrapped: nn.Module) -> bool:
        """Whether there are scores now, in all processes of a job or in none (`wrapped` is the network as it trains)."""
        return self.collector is None or all_batches(wrapped, self.batches) > 0

    def watch(self, model: nn.Module, graph: Graph) -> None:
        """Look at the training of a network; what was seen before is forgotten."""
        self.model, self.graph = model, graph
        self.collector, self.batches = None, 0
        if self.criterion is not None and self.criterion.of_weights:
            self.collector = StepWeights(graph.layers, dict(named_tensors(model)), [self.criterion])
        elif self.criterion is not None and self.criterion.of_activations:
            self.collector = StepActivations(model, graph, [self.criterion], self.overwritten)

    def unwatch(self) -> None:
        """Look at it no more; what was seen stays."""
        if isinstance(self.collector, StepActivations):
            self.collector.detach()

    def forget(self) -> None:
        """Leave out the passes since the last step of the optimiser, as of a step that a GradScaler has left out."""
        if isinstance(self.collector, StepActivations):
            self.collector.forget()

    def take(self, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        """Before a step of the optimiser: its gradients are those of one mini-batch. Raises BadInput where there are none."""
        collector = self.collector
        if collector is None:
            return
        found_inf, scale = (getattr(optimizer, name, None) for name in ("found_inf", "grad_scale"))  # of a fused one
        if isinstance(collector, StepActivations):
            scale = None if scaler is None else scaler.get_scale()
        collector.scale = 1.0 if scale is None else float(scale)
        collector.take()
        if not any(part is not None for parts in collector.parts.values() for part in parts):
            if not self.seen_any:
                raise BadInput(self._nothing_seen())
            return
        if (found_inf is not None and float(found_inf)) or not collector.is_finite():
            collector.drop_batch()
            return
        collector.end_of_batch()
        self.seen_any = True
        self.batches += 1

    def values(self, wrapped: nn.Module) -> list[np.ndarray]:
        """By layer, (N,) in fp64; the same in every process of a job (`wrapped` is the network as it trains)."""
        if self.criterion is None:  # drawn by the ranking
            return [np.zeros(n) for n in self.graph.sizes]
        if self.collector is None:
            return [np.asarray(s, dtype=np.float64) for s in norms(self.model, self.graph, self.criterion)]
        sums, shapes = self.collector.sums[self.criterion.name], score_shapes(self.graph, self.criterion)
        return average(wrapped, mean_of(self.criterion, sums, shapes, max(1, self.batches)), self.batches)

    def missing(self) -> dict[str, str]:
        """Layer -> why nothing was seen of it."""
        if self.collector is None or self.criterion is None:
            return {}
        sums = enumerate(self.collector.sums[self.criterion.name])
        return {self.graph.layers[k].name: self.collector.why_none(k) for k, s in sums if s is None}

    def state(self) -> dict[str, Any]:
        """What was seen, by layer: tensors that `restore` takes."""
        if self.collector is None or self.criterion is None:
            return {}
        pairs = zip(self.graph.layers, self.collector.sums[self.criterion.name], strict=True)
        return {layer.name: {"high": s.high, "low": s.low} for layer, s in pairs if s is not None}

    def restore(self, sums: Mapping[str, Mapping[str, Tensor]], batches: int) -> None:
        """Go on from what was seen before."""
        self.batches, self.seen_any = batches, batches > 0
        if self.collector is not None and self.criterion is not None:
            mine = self.collector.sums[self.criterion.name]
            for k, layer in enumerate(self.graph.layers):
                if (saved := sums.get(layer.name)) is not None:
                    mine[k] = CompensatedSum(saved["high"].clone(), saved["low"].clone())

    def _nothing_seen(self) -> str:
        if isinstance(self.collector, StepActivations):
            return (
                f"criterion '{self.collector.criteria[0].name}' looks at activations, and in this training step none was seen: the "
                "network ran compiled (torch.compile) or checkpointed, or in eval mode; give the method ranp, weighted or vanilla, "
                "which go by the gradients of weights"
            )
        return "no gradient reached a layer of the network in this step; call backward() on its loss before optimizer.step()"
