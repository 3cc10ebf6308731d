"""Channel counts that the user's modules state, though no run needs them: `encoder.output_channels`, `block.in_channels`.

Whoever builds on a network reads them. An attribute whose name speaks of channels, and whose value is a size that enters or
leaves its module (or is one of its parameters'), is set to what that size became, if the slim network then runs the very same
ops. What cannot be told is left as it is and listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.contexts import NoDropout, seeded
from ..core.copies import meta_copy
from ..core.errors import USER_EXCEPTIONS
from ..core.example import Example
from ..core.tensors import map_tensors, tensors_in, to_meta, to_real
from ..graph.graph import Graph, TraceResult
from .slim import Path, attribute_of, integers, set_attribute

WORDS = frozenset(
    "channel channels chan chans chn ch c planes plane features feature feat feats filters filter fmaps maps width dim dims "
    "hidden inplanes outplanes cin cout inp oup nf ngf ndf embed".split()
)
INWARD = frozenset("in input inputs inp inplanes cin".split())
OUTWARD = frozenset("out output outputs oup outplanes cout".split())


@dataclass(frozen=True)
class Sizes:
    """The channels (axis 1) of the tensors that enter and leave a module, in the order of its first call."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass
class Stated:
    """`changed`: {module: {attribute: value}}; `left`: those that may be channel counts and are as they were."""

    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    left: dict[str, dict[str, Any]] = field(default_factory=dict)


def correct_stated(
    dense: nn.Module, slim: nn.Module, graph: Graph, stays: np.ndarray, known: Mapping[str, Mapping[str, Any]]
) -> Stated:
    """Set the attributes of `slim`, in place.

    Args:
        known: the attributes that are right already.
    """
    stated = Stated()
    try:
        meant = _meant(dense, slim, graph, stays, known, stated)
        way = _way(slim, graph) if meant else []
    except USER_EXCEPTIONS:  # the code runs with the tracer around it only: nothing is known
        return Stated()
    modules = dict(slim.named_modules())

    def runs_the_same(some: Mapping[tuple[str, str], Any]) -> bool:
        before = {place: attribute_of(modules[place[0]], place[1]) for place in some}
        for (name, key), value in some.items():
            set_attribute(modules[name], key, value)
        with suppress(*USER_EXCEPTIONS):
            if _way(slim, graph) == way:
                return True
        for (name, key), value in before.items():
            set_attribute(modules[name], key, value)
        return False

    right = meant if meant and runs_the_same(meant) else {}
    if not right:  # some of them matter to what is computed: class by class
        for kind in dict.fromkeys(type(modules[name]) for name, _ in meant):
            some = {place: value for place, value in meant.items() if type(modules[place[0]]) is kind}
            right |= some if runs_the_same(some) else {}
    for place, value in meant.items():
        if place in right:
            stated.changed.setdefault(place[0], {})[place[1]] = value
        else:
            stated.left.setdefault(place[0], {})[place[1]] = attribute_of(modules[place[0]], place[1])
    return stated


def _meant(
    dense: nn.Module,
    slim: nn.Module,
    graph: Graph,
    stays: np.ndarray,
    known: Mapping[str, Mapping[str, Any]],
    stated: Stated,
) -> dict[tuple[str, str], Any]:
    """(module, attribute) -> the count that it should state; what is not told apart goes to `stated.left`."""
    named: dict[str, dict[str, list[Path]]] = {}
    for name, module in dense.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for path, _ in integers(module):
            key = str(path[0])
            if key not in known.get(name, {}) and _words(key) & (WORDS | INWARD | OUTWARD):
                named.setdefault(name, {}).setdefault(key, []).append(path)
    if not named:
        return {}
    before, after = (_sizes(model, graph) for model in (dense, slim))
    modules = dict(dense.named_modules())
    found: dict[tuple[str, str], Any] = {}
    held: dict[tuple[int, str], list[tuple[str, str, Any]]] = {}
    for name, keys in named.items():
        own = _own_sizes(name, graph, stays)
        for key in keys:
            old = attribute_of(modules[name], key)
            new = _count(key, old, before.get(name, Sizes()), after.get(name, Sizes()), own)
            if new is None:
                stated.left.setdefault(name, {})[key] = old
            elif new != (list(old) if isinstance(old, (list, tuple)) else old):
                found[name, key] = new
            held.setdefault(_holder(modules[name], key), []).append((name, key, new))
    for places in held.values():  # an object that several modules share states one count, or cannot state theirs
        if len({str(new) for _, _, new in places}) > 1:
            for name, key, _ in places:
                found.pop((name, key), None)
                stated.left.setdefault(name, {})[key] = attribute_of(modules[name], key)
    return found


def _holder(module: nn.Module, key: str) -> tuple[int, str]:
    """The object that an attribute is of, and its name there."""
    path, _, last = key.rpartition(".")
    return id(attribute_of(module, path) if path else module), last


def _count(key: str, old: Any, dense: Sizes, slim: Sizes, own: Mapping[int, set[int]]) -> Any:
    """What an attribute should state: the value itself where it is no size here, None where it is one and cannot be told."""
    words, pairs = _words(key), []
    if not words & OUTWARD:
        pairs.append((dense.inputs, slim.inputs))
    if not words & INWARD:
        pairs.append((dense.outputs, slim.outputs))
    if isinstance(old, (list, tuple)):
        for mine, theirs in pairs:
            if tuple(old) == mine and len(theirs) == len(mine):
                return list(theirs)
        parts = [_count(key, part, dense, slim, own) for part in old]
        return None if None in parts else parts
    became = {
        b for mine, theirs in pairs if len(mine) == len(theirs) for a, b in zip(mine, theirs, strict=True) if a == old
    }
    became = became or own.get(old, set())
    return old if not became else became.pop() if len(became) == 1 else None


def _own_sizes(name: str, graph: Graph, stays: np.ndarray) -> dict[int, set[int]]:
    """{a size of a parameter in a module of the dense network: what it becomes}."""
    found: dict[int, set[int]] = {}
    for slot, labelled in graph.slots.items():
        if not name or slot.startswith(f"{name}."):
            for size, kept in zip(labelled.shape, graph.kept_indices(labelled, stays), strict=True):
                found.setdefault(size, set()).add(size if kept is None else len(kept))
    return found


def _sizes(model: nn.Module, graph: Graph) -> dict[str, Sizes]:
    """By module, from a run in eval mode on the example of the graph."""
    found: dict[str, Sizes] = {}

    def channels(value: Any) -> tuple[int, ...]:
        return tuple(t.shape[1] for t in tensors_in(value) if t.ndim > 1)

    def watch(copy: nn.Module) -> None:
        for name, module in copy.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):

                def hook(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                    found.setdefault(name, Sizes(channels((args, kwargs)), channels(output)))

                module.register_forward_hook(hook, with_kwargs=True)

    _run(model, graph.example, graph.eval_run, False, watch)
    return found


class _Ops(TorchDispatchMode):
    """All that tells one run on meta tensors from another: ops, shapes, and every number that is handed to an op."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = map_tensors((list(args), kwargs or {}), lambda t: (tuple(t.shape), t.tolist() if _is_small(t) else ""))
        self.seen.append(f"{func} {told}")
        return func(*args, **(kwargs or {}))


def _is_small(t: Tensor) -> bool:
    return bool(t.device.type == "cpu" and t.numel() <= 64)


def _way(model: nn.Module, graph: Graph) -> list[str]:
    """What a model does in eval and in training mode."""
    ops = _Ops()
    for run, training in ((graph.eval_run, False), (graph.train_run, True)):
        _run(model, graph.example, run, training, during=ops)
    return ops.seen


def _run(
    model: nn.Module,
    example: Example,
    like: TraceResult,
    training: bool,
    watch: Callable[[nn.Module], None] | None = None,
    during: AbstractContextManager[Any] | None = None,
) -> None:
    """Run a copy on meta tensors, or on real ones where the code needs them."""
    copy = meta_copy(model, like.real).train(training)
    if watch is not None:
        watch(copy)
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    at = example.with_batch(like.samples)
    args, kwargs = (
        map_tensors((at.args, at.kwargs), lambda t: to_real(t, place)) if like.real else to_meta((at.args, at.kwargs))
    )
    with seeded(), torch.set_grad_enabled(training), NoDropout(), during or nullcontext():
        copy(*args, **kwargs)


def _words(key: str) -> set[str]:
    """`config.inChannels` -> {in, channels}."""
    last = re.sub(r"([a-z])([A-Z])", r"\1_\2", key.rpartition(".")[2])
    return set(re.split(r"[_\d]+", last.lower())) - {""}
