"""Scoring below the memory of a training step: activations that are cheap to come by are computed again, not kept.

A forward pass runs under a dispatch mode that notes how the storage of each large tensor came about: by which op, from
which tensors. When autograd saves such a tensor, it gets this recipe in its place; the tensor goes as soon as the forward
pass is done with it, and is made again when the backward pass asks for it. What norms, activations, concatenations,
pooling and upsampling make is cheap; what a convolution makes is, up to so many multiply-adds an element, which is what
a Plan chooses. Everything else (and what is drawn at random) is kept. The same ops on the same numbers give the same
bits, so the gradients are those of a plain pass. Nothing here knows modules: TorchScript and flat code are served alike.

Plans are found on meta tensors, where a pass costs next to nothing, and memory.Meter counts its peak.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import rules
from .budget import shown
from .errors import USER_EXCEPTIONS, BadInput, Infeasible
from .example import Example
from .flops import flops_of, formula_of
from .memory import plain_loss
from .meter import Meter
from .precision import Kernels, channels_last
from .schema import costs_nothing, op_name
from .shadow import NoDropout, each, labels_on_cpu, map_tensors, seeded, shadow, tensors_in, to_meta
from .units import Graph, named_tensors, user_line

LARGE = 1 << 14  # bytes; smaller tensors are kept
DEPTH = 8  # ops in a row that a recipe has at most
CHEAP = (0, 32, 128, 512, 1024, 2048, 4096)  # multiply-adds an element, of what is computed twice
TWICE = 1.0  # of the multiply-adds of a forward pass, at most so many are done again
COSTLY = 128  # multiply-adds an element: what costs more is kept while it is asked for again,
CLOSE = 2  # if it lies at most so many ops before what was asked for
NEAR = 1.02  # a peak within 2 % of the least is as good
HALF = 0.5  # of the peak of a plain pass: what is asked for where nobody names a limit


@dataclass(eq=False)
class Kept:
    """A tensor that a recipe needs and that is held for it."""

    tensor: Tensor


@dataclass(eq=False)
class Recipe:
    """The op that makes a storage, from `Kept` tensors and `View`s of what other recipes make."""

    func: Any
    args: Any
    kwargs: Any
    index: int | None  # of the result, where the op has several
    dtype: torch.dtype
    macs: int
    depth: int  # ops in a row, this one included
    costly: int  # of these, costly ones


@dataclass(eq=False)
class View:
    """A tensor, as the place that it has in the storage that a recipe makes."""

    recipe: Recipe
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Recompute(TorchDispatchMode):
    """Gives autograd recipes to save; `most`: multiply-adds an element that are still cheap.

    Enter it for a forward and its backward pass, with `packing()` around the forward pass alone.
    """

    def __init__(self, most: int, buffers: Any = ()) -> None:
        super().__init__()
        self.most = most
        self.buffers = {t.untyped_storage()._cdata for t in buffers}  # some ops write to them without saying so
        self.recording = False
        self.macs = self.macs_again = 0
        self._recipes: dict[int, Recipe] = {}  # by storage
        self._kept: dict[int, list[weakref.ref[Kept]]] = {}  # by storage: who holds it
        self._last: tuple[Recipe, Tensor] | None = None
        self._used = False
        self._watched: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @contextmanager
    def packing(self) -> Iterator[None]:
        self.recording = True
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self.recording = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.recording:
            if func is torch.ops.aten.convolution_backward.default and args[10][0] and args[10][1]:
                return _in_two(func, args)
            return func(*args, **kwargs)
        written = [t for t, spec in zip(args, func._schema.arguments, strict=False)
                   if isinstance(t, Tensor) and spec.alias_info is not None and spec.alias_info.is_write]  # fmt: skip
        for t in written:
            self._rescue(t.untyped_storage()._cdata)
        ins = {t.untyped_storage()._cdata for t in each(Tensor, args, kwargs)}
        sources = map_tensors((tuple(args), dict(kwargs)), self._source) if is_repeatable(func) else None
        out = func(*args, **kwargs)
        macs = (flops_of(func, args, kwargs, out) or 0) // 2
        self.macs += macs
        for t in written:
            self._recipes.pop(t.untyped_storage()._cdata, None)
        if sources is not None:
            views = list(each(View, sources))
            depth = 1 + max((v.recipe.depth for v in views), default=0)
            before = max((v.recipe.costly for v in views), default=0)
            for k, t in enumerate(out if isinstance(out, (tuple, list)) else (out,)):
                index = k if isinstance(out, (tuple, list)) else None
                if not isinstance(t, Tensor) or depth > DEPTH or macs > self.most * t.numel() or not fills(t):
                    continue
                costly = before + (macs > COSTLY * t.numel())
                if costly > 1:  # one of them would be run again for the other's sake
                    continue
                key = t.untyped_storage()._cdata
                if key in ins and not (written and isinstance(sources[0][0], View) and t is written[0]):
                    continue  # a view, or written over what is not known
                self._recipes[key] = Recipe(func, sources[0], sources[1], index, t.dtype, macs, depth, costly)
                self._watched[key] = weakref.ref(t.untyped_storage(), partial(self._gone, key))
        return out

    def _gone(self, key: int, _: Any) -> None:
        self._recipes.pop(key, None)

    def _source(self, t: Tensor) -> Kept | View:
        key = t.untyped_storage()._cdata
        recipe = self._recipes.get(key)
        if recipe is not None and recipe.dtype == t.dtype and not is_lazy(t):
            return View(recipe, tuple(t.shape), t.stride(), int(t.storage_offset()))
        kept = Kept(t.detach())
        self._kept.setdefault(key, []).append(weakref.ref(kept))
        return kept

    def _rescue(self, key: int) -> None:
        """A storage is about to be written: recipes that hold it get a copy of what it was."""
        for reference in self._kept.pop(key, ()):
            kept = reference()
            if kept is not None and kept.tensor.untyped_storage()._cdata == key:
                kept.tensor = kept.tensor.clone()

    def _pack(self, t: Tensor) -> Tensor | View:
        if t.numel() * t.element_size() < LARGE or (t.is_leaf and t.requires_grad):
            return t
        source = self._recipes.get(t.untyped_storage()._cdata)
        if source is None or source.dtype != t.dtype or is_lazy(t):
            return t
        return View(source, tuple(t.shape), t.stride(), int(t.storage_offset()))

    def _unpack(self, saved: Tensor | View) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        last, self._used = self._last, False
        with torch.no_grad():
            found = self._see(saved, 0)
        if self._last is last and not self._used:
            self._last = None
        return found

    def _see(self, view: View, far: int) -> Tensor:
        return self._make(view.recipe, far).as_strided(view.size, view.stride, view.offset)

    def _make(self, recipe: Recipe, far: int) -> Tensor:
        """The storage of a recipe, as one tensor; `far`: so many ops before the one that was asked for."""
        if self._last is not None and self._last[0] is recipe:
            self._used = True
            return self._last[1]

        def tensor(source: Any) -> Any:
            if isinstance(source, View):
                return self._see(source, far + 1)
            if not isinstance(source, Kept):
                return source
            return source.tensor.clone() if source.tensor.untyped_storage()._cdata in self.buffers else source.tensor

        args, kwargs = map_leaves((recipe.args, recipe.kwargs), tensor)
        self.macs_again += recipe.macs
        if recipe.func._schema.is_mutable:
            self._last = None  # it may be what is written over
        out = recipe.func(*args, **kwargs)
        made = out if recipe.index is None else out[recipe.index]
        if recipe.macs > COSTLY * made.numel() and far <= CLOSE:
            self._last = recipe, made
        return made


def is_lazy(t: Tensor) -> bool:
    """Is it a view whose numbers are yet to be conjugated or negated? Size and strides do not say so."""
    return t.is_conj() or t.is_neg()


def fills(t: Tensor) -> bool:
    """Whether a tensor is the whole of its storage, and worth a recipe."""
    size = t.numel() * t.element_size()
    return size >= LARGE and size == t.untyped_storage().nbytes() and t.storage_offset() == 0


def is_repeatable(func: Any) -> bool:
    """Does the op give the same again, and is it known what it costs?"""
    name = op_name(func)
    if torch.Tag.nondeterministic_seeded in func.tags or "empty" in name or name in ("aten.resize", "aten.set"):
        return False
    return formula_of(func) is not None or rules.is_free(name) or costs_nothing(func)


def map_leaves(value: Any, make: Any) -> Any:
    """`value` (nested tuples, lists, dicts) with everything else replaced."""
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(v, make) for v in value)
    if isinstance(value, dict):
        return {k: map_leaves(v, make) for k, v in value.items()}
    return make(value)


def _in_two(func: Any, args: Any) -> Any:
    """The gradients of a convolution one after the other: each has its workspace alone. The numbers are the same."""
    of_input, of_weight, of_bias = args[10]
    _, weight, bias = func(*args[:10], [False, of_weight, of_bias])
    gradient, _, _ = func(*args[:10], [of_input, False, False])
    return gradient, weight, bias


@dataclass(frozen=True)
class Plan:
    """What is cheap (None: nothing is computed twice), and the peak in bytes that scoring then has."""

    most: int | None
    peak: int
    again: float = 0.0  # multiply-adds that are done again, as a share of the forward pass


class Planner:
    """Foretells the peak of scoring one mini-batch of `example`."""

    @labels_on_cpu
    def __init__(self, model: nn.Module, graph: Graph, example: Example, layout: bool = False):
        self.copy = shadow(model).train()
        self.given = to_meta((example.args, example.kwargs))
        self.inputs, self.layout = channels_last(self.given) if layout else self.given, layout
        tensors = dict(named_tensors(self.copy))
        self.held = list(tensors.values())
        for p in self.copy.parameters():
            p.requires_grad_(False)
        self.weights = [tensors[layer.slot].requires_grad_(True) for layer in graph.layers]
        everything = {id(t): t for t in (*self.held, *tensors_in(self.inputs))}
        self.always = sum(t.numel() * t.element_size() for t in everything.values())

    @labels_on_cpu
    def plain(self) -> int:
        """The peak of a forward and backward pass as anyone would write it: the gradients stay, no layout is chosen."""
        meter = Meter()
        for t in (*self.held, *tensors_in(self.given)):
            meter.know(t)
        args, kwargs = self.given
        with seeded(), torch.enable_grad(), meter, NoDropout():
            plain_loss(self.copy(*args, **kwargs)).backward()
        for w in self.weights:
            w.grad = None
        return self.always + meter.peak

    @labels_on_cpu
    def measure(self, most: int | None) -> Plan:
        """The peak: weights, the mini-batch, and what lives of a forward and backward pass."""
        meter, hooks = Meter(), [w.register_post_accumulate_grad_hook(forget) for w in self.weights]
        for t in (*self.held, *tensors_in(self.inputs)):
            meter.know(t)
        args, kwargs = self.inputs
        again = Recompute(most or 0, self.copy.buffers())
        try:
            with seeded(), torch.enable_grad(), meter, nullcontext() if most is None else again:
                with nullcontext() if most is None else again.packing(), Kernels(self.layout), NoDropout():
                    value = plain_loss(self.copy(*args, **kwargs))
                value.backward()
        finally:
            for hook in hooks:
                hook.remove()
        return Plan(most, self.always + meter.peak, again.macs_again / max(1, again.macs))

    def plan(self, limit: int | None) -> Plan:
        """The plan that computes the least again among those that keep to `limit`.

        Without a limit: to half of a plain pass' peak, or where none does, near the lowest. Raises Infeasible, naming the
        closest, when none keeps to the limit.
        """
        if limit is not None and (nothing := self.measure(None)).peak <= limit:
            return nothing
        bound = int(HALF * self.plain()) if limit is None else limit
        plans = []
        for plan in takewhile(lambda plan: plan.again <= TWICE, map(self.measure, CHEAP)):
            if plan.peak <= bound:
                return plan
            plans.append(plan)
        best = min(plan.peak for plan in plans)
        if limit is not None:
            raise Infeasible(
                f"a memory limit of {shown('train-mem', limit)} cannot be kept: scoring this mini-batch needs at least "
                f"{shown('train-mem', best * 1.001)}; give that, or a smaller mini-batch"
            )
        return next(plan for plan in plans if plan.peak <= NEAR * best)


def plan(model: nn.Module, graph: Graph, example: Example, limit: int | None, layout: bool = False) -> Plan:
    """What to compute twice when a mini-batch of `example` is scored; see Planner.plan. Raises BadInput, Infeasible."""
    try:
        return Planner(model, graph, example, layout).plan(limit)
    except (BadInput, Infeasible):
        raise
    except USER_EXCEPTIONS as error:
        where = user_line(error)
        raise BadInput(
            f"--low-memory: the memory of this model cannot be foretold on meta tensors ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}{f' (at {where})' if where else ''}); leave it out"
        ) from error


def forget(p: Tensor) -> None:
    p.grad = None
