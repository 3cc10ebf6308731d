"""Run the slim network on meta tensors: does it run, and where does the code expect the dense sizes?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import USER_EXCEPTIONS, RuleFailure, VerificationFailed, one_line
from ..core.example import Example
from ..graph.analyse import named_tensors, new_tracer, trace_once
from ..graph.graph import Graph, LabelledParameter, Layer, TraceResult
from ..graph.layers import find_layers, make_slot
from ..graph.trace import Op, Tracer, locate
from ..rules.labels import Reason, Ties, axes_of
from .slim import kept_shape

WHOLE = [
    {"aten.slice", "aten.alias"},
    {"aten.constant_pad_nd", "aten.clone"},
]  # what torch runs where there is nothing to do
AHEAD = 20  # how many ops behind a failed check of sizes are looked at for what it was about

# -- does the slim network run?


@dataclass(frozen=True)
class HardCoded:
    """A place where the code of the model insists on a channel count.

    `ids`: the labels that must stay if it does. `counts`: sizes there in the dense network, and what each should have become.
    `at`: how far the runs came, as (0 in eval or 1 in training mode, number of the op).
    """

    ids: np.ndarray
    reason: Reason
    module: str = ""
    counts: dict[int, set[int]] = field(default_factory=dict)
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SlimRun:
    """The slim network's run in eval mode, and its layers with their costs by parameter and axis."""

    run: TraceResult
    layers: dict[tuple[str, int], Layer]


def check_runs(slim: nn.Module, graph: Graph, stays: np.ndarray, training: bool = True) -> SlimRun | HardCoded:
    """Run the slim network's shadow in eval and in training mode, op by op beside the dense one.

    An op that raises, or whose result has not the sizes that the labels say, insists on a channel count.

    Args:
        training: False: in eval mode alone.
    """
    ties = Ties()
    slots: dict[str, LabelledParameter] = {
        name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(slim)
    }
    runs = []
    for dense in (graph.eval_run, graph.train_run) if training else (graph.eval_run,):
        is_training = dense is graph.train_run
        example = graph.example.with_batch(dense.samples)
        tracer = new_tracer(ties)
        error: BaseException | None = None
        failure: RuleFailure | None = None
        try:
            runs.append(trace_once(tracer, slim, example, slots, is_training, dense.real))
        except RuleFailure as raised:
            failure = raised
        except USER_EXCEPTIONS as raised:  # the user's code, on sizes that it may not expect
            error = raised
        found = first_difference(dense.tracer.ops, tracer.ops, stays)
        if failure is not None:  # its sizes make no sense, as after a slice that leaves nothing, or it is a bug
            found = found or emptied(dense.tracer.ops, len(tracer.ops), stays)
            if found is None:
                raise failure
        at = len(tracer.ops) if found is None else found[0]
        if found is None and error is None:
            continue
        what = "fixed in the code"
        if error is not None and at >= len(tracer.ops):
            what += f": {one_line(error, 120)}"
        module, where = place_of(slim, example, is_training, dense.real, at)
        ids = insisted_on(graph, dense.tracer, tracer, stays, at, None if found is None else found[1])
        if ids is None:
            raise VerificationFailed(
                f"the slim network does not run: {error or 'a shape differs'} (at {where or 'unknown'})"
            )
        counts = counts_at(graph, dense.tracer, stays, at)
        return HardCoded(ids, Reason(what, where), module, counts, (int(is_training), at))
    return SlimRun(runs[0], {(layer.slot, layer.axis): layer for layer in find_layers(ties, slots, *runs)})


def insisted_on(
    graph: Graph, dense: Tracer, slim: Tracer, stays: np.ndarray, at: int, ids: np.ndarray | None
) -> np.ndarray | None:
    """The labels that must stay if op number `at` is not to change: those that differ, that meet a constant, that enter it."""
    if ids is not None and not stays[ids].all():
        return ids
    reach = 1 if slim.inside or at < len(slim.ops) else AHEAD  # a check before the op: look at the next few
    for step in range(at, at + reach):
        met = distinct_labels(graph.ties.suspects.get((id(dense), step), []))
        if met.size and not stays[met].all():
            return met
    for op in reversed(dense.ops[: at + 1]):
        entering = distinct_labels([t.ids() for t in op.ins])
        if not stays[entering].all():
            return entering
    return None


def emptied(dense: list[Op], at: int, stays: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Op number `at` and the labels of what enters it, of which none stays; None where something of all that enters it does."""
    for ids in (distinct_labels([t.ids()]) for t in dense[at].ins):
        if ids.size and not stays[ids].any():
            return at, ids
    return None


def distinct_labels(some: list[Tensor]) -> np.ndarray:
    ids = np.unique(torch.cat(some).numpy()) if some else np.empty(0, dtype=np.int64)
    return ids[ids > 0]


def first_difference(dense: list[Op], slim: list[Op], stays: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Number of the first op whose result has another size along a labelled axis than the labels say, and those labels.

    None also where the ops differ, but for a slice or a padding of nothing. An axis without labels (a constant,
    or one that was expanded) is the code's own affair.
    """
    for i, (a, b) in enumerate(zip(dense, slim, strict=False)):
        if a.name != b.name and {a.name, b.name} not in WHOLE:
            return None
        if len(a.outs) != len(b.outs):
            return i, distinct_labels([t.ids() for t in a.ins])
        for mine, theirs in zip(a.places, b.places, strict=False):
            before = mine.before.numpy()
            if (before > 0).all() and stays[before].sum() != theirs.start:
                return i, np.unique(before)
        for x, y in zip(a.outs, b.outs, strict=True):
            if len(x.shape) != len(y.shape) or not all((p > 0).all() for p in x.planes):
                continue
            wanted = kept_shape(x.shape, x.planes, stays)
            for p in x.planes:
                if any(wanted[axis] != y.shape[axis] for axis in axes_of(p)):
                    return i, np.unique(p.numpy())
    return None


def counts_at(graph: Graph, dense: Tracer, stays: np.ndarray, at: int) -> dict[int, set[int]]:
    """The sizes of what enters and leaves op number `at` in the dense network, and what each becomes: {dense: {slim, ...}}."""
    found: dict[int, set[int]] = {}

    def add(ids: np.ndarray) -> None:
        if ids.size > 1 and (ids > 0).all():
            found.setdefault(ids.size, set()).add(int(stays[ids].sum()))

    for op in dense.ops[at : at + 1]:
        for place in op.places:
            add(place.before.numpy())
        for t in (*op.outs, *op.ins):
            wanted = kept_shape(t.shape, t.planes, stays)
            for axis in {axis for p in t.planes for axis in axes_of(p)}:
                found.setdefault(t.shape[axis], set()).add(wanted[axis])
    for ids in graph.ties.suspects.get((id(dense), at), []):
        add(ids.numpy())
    return {size: kept for size, kept in found.items() if kept != {size}}


class _Found(Exception):
    """Stops a run at the op that was looked for."""


def place_of(model: nn.Module, example: Example, training: bool, real: bool, at: int) -> tuple[str, str]:
    """The module and the line of the user's code that run op number `at`."""
    place = "", ""

    class Stop(Tracer):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal place
            module, where = locate(self.names)
            place = (module, where) if where else place
            if len(self.ops) >= at:
                raise _Found
            return super().__torch_dispatch__(func, types, args, kwargs)

    base = new_tracer(Ties())
    try:
        trace_once(Stop(base.ties, base.rule_for, base.is_free), model, example, {}, training, real)
    except Exception:  # the very error that is being located, or _Found
        return place
    return place
