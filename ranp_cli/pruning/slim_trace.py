"""Run the slim network on meta tensors: does it run, and where does the code expect the dense sizes?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import USER_EXCEPTIONS, RuleFailure, VerificationFailed
from ..core.example import Example
from ..graph.analyse import named_tensors, new_tracer, trace_once
from ..graph.graph import Graph, LabelledParameter, Layer, TraceResult
from ..graph.layers import find_layers, make_slot
from ..graph.trace import Op, Tracer, locate
from ..rules.labels import Reason, Ties, axes_of
from .slim import kept_shape

# -- does the slim network run?


@dataclass(frozen=True)
class HardCoded:
    """A place where the code of the model insists on a channel count: the labels that must stay, and where it stands."""

    ids: np.ndarray
    reason: Reason


@dataclass(frozen=True)
class SlimRun:
    """The slim network's run in eval mode, and its layers with their costs by parameter and axis."""

    run: TraceResult
    layers: dict[tuple[str, int], Layer]


def check_runs(slim: nn.Module, graph: Graph, stays: np.ndarray) -> SlimRun | HardCoded:
    """Run the slim network's shadow in eval and in training mode, op by op beside the dense one.

    An op that raises, or whose result has not the shape that the labels estimate, insists on a channel count.
    """
    ties = Ties()
    slots: dict[str, LabelledParameter] = {
        name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(slim)
    }
    runs = []
    for dense, training in ((graph.eval_run, False), (graph.train_run, True)):
        example = graph.example.with_batch(dense.samples)
        tracer = new_tracer(ties)
        error: BaseException | None = None
        try:
            runs.append(trace_once(tracer, slim, example, slots, training, dense.real))
        except RuleFailure:
            raise
        except USER_EXCEPTIONS as raised:  # the user's code, on sizes that it may not expect
            error = raised
        at = first_difference(dense.tracer.ops, tracer.ops, stays)
        if at is None and error is not None:
            at = len(tracer.ops)
        if at is None:
            continue
        what = (
            f"fixed in the code: {type(error).__name__}"
            if error is not None and at >= len(tracer.ops)
            else "fixed in the code"
        )
        where = line_of(slim, example, training, dense.real, at)
        reach = 1 if tracer.inside or at < len(tracer.ops) else 20  # a check before the op: look at the next few
        for step in range(at, at + reach):
            met = graph.ties.suspects.get((id(dense.tracer), step), [])
            ids = np.unique(torch.cat(met).numpy()) if met else np.empty(0, dtype=np.int64)
            if ids.size and not stays[ids].all():
                return HardCoded(ids[ids > 0], Reason(what, where))
        for op in reversed(dense.tracer.ops[: at + 1]):
            ids = np.unique(np.concatenate([t.ids().numpy() for t in op.ins] or [np.empty(0, dtype=np.int64)]))
            gone = ids[~stays[ids]] if ids.size else ids
            if gone.size:
                return HardCoded(ids, Reason(what, where))
        raise VerificationFailed(
            f"the slim network does not run: {error or 'a shape differs'} (at {where or 'unknown'})"
        )
    return SlimRun(runs[0], {(layer.slot, layer.axis): layer for layer in find_layers(ties, slots, *runs)})


def first_difference(dense: list[Op], slim: list[Op], stays: np.ndarray) -> int | None:
    """Number of the first op whose result has another size along a labelled axis than the labels say.

    None also where the ops differ. An axis without labels (a constant, or one that was expanded) is the code's own affair.
    """
    for i, (a, b) in enumerate(zip(dense, slim, strict=False)):
        if a.name != b.name or len(a.outs) != len(b.outs):
            return None
        for x, y in zip(a.outs, b.outs, strict=True):
            sure = all((p > 0).all() for p in x.planes)
            labelled = {axis for p in x.planes for axis in axes_of(p)}
            wanted = kept_shape(x.shape, x.planes, stays)
            if len(x.shape) == len(y.shape) and sure and any(wanted[axis] != y.shape[axis] for axis in labelled):
                return i
    return None


class _Found(Exception):
    """Stops a run at the op that was looked for."""


def line_of(model: nn.Module, example: Example, training: bool, real: bool, at: int) -> str:
    """The line of the user's code that runs op number `at`."""
    where = ""

    class Stop(Tracer):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal where
            where = locate(self.names)[1] or where
            if len(self.ops) >= at:
                raise _Found
            return super().__torch_dispatch__(func, types, args, kwargs)

    base = new_tracer(Ties())
    try:
        trace_once(Stop(base.ties, base.rule_for, base.is_free), model, example, {}, training, real)
    except Exception:  # the very error that is being located, or _Found
        return where
    return where
