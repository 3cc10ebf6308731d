"""Scoring below the memory of a training step: activations that are cheap to come by are computed again, not kept.

A forward pass runs under a dispatch mode that notes how the storage of each large tensor came about: by which op, from
which tensors. When autograd saves such a tensor, it gets this recipe in its place; the tensor goes as soon as the forward
pass is done with it, and is made again when the backward pass asks for it. What norms, activations, concatenations,
pooling and upsampling make is cheap; what a convolution makes is, up to so many multiply-adds an element, which is what
a Plan chooses. Everything else (and what is drawn at random) is kept. The same ops on the same numbers give the same
bits, so the gradients are those of a plain pass. Nothing here knows modules: TorchScript and flat code are served alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from .. import rules
from ..core.aten import costs_nothing, op_name, writes_any
from ..core.contexts import each
from ..core.flops import flops_of, formula_of
from ..core.tensors import map_tensors

LARGE = 1 << 14  # bytes; smaller tensors are kept
DEPTH = 12  # ops in a row that a recipe has at most
COSTLY = 128  # multiply-adds an element; what costs more is recomputed once and shared
CLOSE = 4  # reuse window, in saved tensors


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
    needs: frozenset[Recipe]  # all the recipes behind it
    cast: Cast | None  # the autocast that the op ran under
    asked: list[int] = field(default_factory=list)  # the places where it is asked for, on the way there too


@dataclass(eq=False)
class View:
    """A tensor, as the place that it has in the storage that a recipe makes."""

    recipe: Recipe
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    place: int = 0  # among all that autograd saves; the backward pass comes to the highest first


Cast = tuple[str, torch.dtype]  # the device and dtype of an autocast
KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


class Casts(TorchFunctionMode):
    """`now`: the autocast that the running call of the torch API leaves to the ops which its kernels call.

    Below a dispatch mode there is none, and an op that is made of others (`affine_grid_generator`) would compute in other
    numbers. A call that autocast itself casts leaves none.
    """

    now: Cast | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.now
        self.now = None
        for device in KEYS:
            if torch.is_autocast_enabled(device) and getattr(func, "__name__", "") not in cast_by(device):
                self.now = device, torch.get_autocast_dtype(device)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.now = before


@cache
def cast_by(device: str) -> frozenset[str]:
    """Names of the ops of which autocast chooses the numbers."""
    known = torch._C._dispatch_get_registrations_for_dispatch_key(KEYS[device])
    return frozenset(name.split("::")[1].split(".")[0] for name in known)


def under(cast: Cast | None) -> AbstractContextManager[Any]:
    return nullcontext() if cast is None else torch.autocast(*cast)


class Recompute(TorchDispatchMode):
    """Gives autograd recipes to save, of ops that take at most `max_macs_per_element` multiply-adds an element, `max_costly_ops` costly ones in each.

    Enter it for a forward and its backward pass, with `packing()` around the forward pass alone.
    """

    def __init__(self, max_macs_per_element: float, buffers: Any = (), max_costly_ops: int = 1) -> None:
        super().__init__()
        self.max_macs_per_element, self.max_costly_ops = max_macs_per_element, max_costly_ops
        self.buffers = {t.untyped_storage()._cdata for t in buffers}  # some ops write to them without saying so
        self.recording = False
        self._casts = Casts()
        self.macs = self.macs_again = 0
        self.prices: list[tuple[float, int]] = []  # (multiply-adds an element, bytes) of what multiplies
        self._recipes: dict[int, Recipe] = {}  # by storage
        self._kept: dict[int, list[weakref.ref[Kept]]] = {}  # by storage: who holds it
        self._places = 0
        self._place = 0  # where the backward pass is
        self._made: dict[Recipe, Tensor] = {}  # costly, and soon asked for again
        self._watched: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Recompute:
        self._casts.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._casts.__exit__(*exc)

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
        below = _get_current_dispatch_mode()  # fake tensors: no kernel runs
        cast = None if below else self._casts.now
        if not self.recording:
            if func is torch.ops.aten.convolution_backward.default and args[10][0] and args[10][1]:
                return _in_two(func, args)
            with under(cast):
                return func(*args, **kwargs)
        written = list(each(Tensor, written_by(func, args, kwargs))) if writes_any(func) else []
        for t in written:
            self._rescue(t.untyped_storage()._cdata)
        ins = {t.untyped_storage()._cdata for t in each(Tensor, args, kwargs)}
        sources = map_tensors((tuple(args), dict(kwargs)), self._source) if is_repeatable(func) else None
        with under(cast):
            out = func(*args, **kwargs)
        macs = (flops_of(func, args, kwargs, out) or 0) // 2
        self.macs += macs
        for t in written:
            self._recipes.pop(t.untyped_storage()._cdata, None)
        if sources is not None:
            views = list(each(View, sources))
            depth = 1 + max((v.recipe.depth for v in views), default=0)
            before = max((v.recipe.costly for v in views), default=0)
            needs = frozenset().union(*((v.recipe, *v.recipe.needs) for v in views))
            for k, t in enumerate(out if isinstance(out, (tuple, list)) else (out,)):
                index = k if isinstance(out, (tuple, list)) else None
                if not isinstance(t, Tensor) or not fills(t):
                    continue
                price = macs / t.numel()
                if macs:
                    self.prices.append((price, t.untyped_storage().nbytes()))
                costly = before + (price > COSTLY)
                if price > self.max_macs_per_element or costly > self.max_costly_ops or depth > DEPTH:
                    continue
                key = t.untyped_storage()._cdata
                in_place = [id(w) for w in written] == [id(t)] == [id(a) for a in args[:1]]
                if key in ins and not (in_place and isinstance(sources[0][0], View)):
                    continue  # a view, or written over what is not known
                self._recipes[key] = Recipe(
                    func, sources[0], sources[1], index, t.dtype, macs, depth, costly, needs, cast
                )
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
        self._places += 1
        for recipe in (source, *source.needs):
            recipe.asked.append(self._places)
        return View(source, tuple(t.shape), t.stride(), int(t.storage_offset()), self._places)

    def _unpack(self, saved: Tensor | View) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        self._place = saved.place
        with torch.enable_grad():  # as in the forward pass: some ops ask; nothing kept requires a gradient
            found = self._see(saved)
        for recipe in [r for r in self._made if not self._is_close(r)]:
            del self._made[recipe]
        return found

    def _is_close(self, recipe: Recipe) -> bool:
        """Is it asked for again soon?"""
        return any(self._place - CLOSE <= place < self._place for place in recipe.asked)

    def _see(self, view: View) -> Tensor:
        made = self._make(view.recipe)
        if made.shape == view.size and made.stride() == view.stride and made.storage_offset() == view.offset:
            return made
        return made.as_strided(view.size, view.stride, view.offset)

    def _make(self, recipe: Recipe) -> Tensor:
        """The storage of a recipe, as one tensor."""
        if recipe in self._made:
            return self._made[recipe]

        def tensor(source: Any) -> Any:
            if isinstance(source, View):
                return self._see(source)
            if not isinstance(source, Kept):
                return source
            return source.tensor.clone() if source.tensor.untyped_storage()._cdata in self.buffers else source.tensor

        args, kwargs = map_leaves((recipe.args, recipe.kwargs), tensor)
        self.macs_again += recipe.macs
        if recipe.func._schema.is_mutable:
            for view in each(View, recipe.args, recipe.kwargs):
                self._made.pop(view.recipe, None)  # it is written over
        with under(recipe.cast):
            out = recipe.func(*args, **kwargs)
        made: Tensor = out if recipe.index is None else out[recipe.index]
        if recipe.macs > COSTLY * made.numel() and self._is_close(recipe):
            self._made[recipe] = made
        return made


def written_by(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an op writes: in place, `out=`, and lists of tensors."""
    found = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(kwargs.get(argument.name) if k >= len(args) else args[k])
    return found


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
