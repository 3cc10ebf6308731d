"""Shadow execution: one forward under a dispatch mode that carries labels beside every tensor.

The model is copied with meta tensors for its weights (`meta_copy`), so a run costs no memory and next to no time. Eager
and TorchScript modules come through the same ATen ops. Labels are kept per storage, keyed by geometry, so views,
`.data`, `detach` and writes through a view into a preallocated tensor all find them.

A rule has the signature `rule(ties, *schema_args, out, **schema_kwargs)`; tensors arrive as `Labels`, `out` is the shape
of the output (a list of shapes when there are several), and it returns the planes of the output (or a list of them).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..core.aten import costs_nothing, is_composite, op_name, shares_memory, writes
from ..core.contexts import each
from ..core.errors import RuleFailure
from ..core.flops import flops_of
from ..core.paths import is_ours
from ..core.tensors import is_channels_last, map_tensors
from ..rules import Rule
from ..rules.labels import FIXED, Labels, LayerUse, Place, Ties, axes_of
from .storage import Geometry, coordinates, geometry, reshaped

SMALL = 1 << 16  # constants up to this many elements keep their values: they may be indices
READS = frozenset({"aten._local_scalar_dense", "aten.equal"})  # ops by which the code learns values
_TORCH = str(Path(torch.__file__).parent)


@dataclass
class Op:
    """One dispatched op of a trace."""

    name: str
    ins: tuple[Labels, ...]
    outs: tuple[Labels, ...]
    flops: int = 0  # as torch.utils.flop_counter or counts.py counts; 0 also where both have no formula
    counted: bool = False
    new_bytes: int = 0  # of the storages that it allocated
    uses: tuple[LayerUse, ...] = ()
    places: tuple[Place, ...] = ()
    call: Any = None  # of what multiplies: (func, args, kwargs), empty tensors on meta in the place of its own


@dataclass
class Held:
    """What is known of one storage: its first tensor's geometry, and the labels by geometry."""

    base: Geometry
    known: dict[Geometry, Labels]


@dataclass
class Tracer(TorchDispatchMode):
    """Carries labels through a forward pass and records its ops."""

    ties: Ties
    rule_for: Callable[[str], Rule | None]
    is_free: Callable[[str], bool] = lambda name: False
    ops: list[Op] = field(default_factory=list)
    unruled: list[tuple[str, str, str]] = field(default_factory=list)  # op, module, file:line
    reads: list[str] = field(default_factory=list)  # file:line where the code reads a number that comes from the input
    uncounted: list[tuple[str, str]] = field(default_factory=list)  # op, module
    names: Mapping[int, str] = field(default_factory=dict)  # id(module) -> its path
    owned: Mapping[int, str] = field(default_factory=dict)  # storage of a parameter -> its name
    written: set[str] = field(default_factory=set)  # parameters that the code writes to
    inside: bool = False  # an op is running: it is the one that raised
    live_bytes: int = 0
    peak_bytes: int = 0
    peak_op: int = -1

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # we never compile, and skipping would import the compiler: a second and more

    def __post_init__(self) -> None:
        super().__init__()
        self._held: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._graves: set[weakref.ref[Any]] = set()

    def __enter__(self) -> Tracer:
        self.ties.locate = lambda: locate(self.names)[1]
        result: Tracer = super().__enter__()
        return result

    def __exit__(self, *exc: Any) -> None:
        self.ties.locate = str
        super().__exit__(*exc)

    # -- one op

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):
            return self._apart(func, args, kwargs)
        try:  # before the op, which may change a tensor's shape in place
            written = {a.name for a in func._schema.arguments if a.is_out}  # an `out=` tensor is no operand
            l_args = wrap(args, self.labels)
            l_kwargs = wrap({k: v for k, v in kwargs.items() if k not in written}, self.labels)
        except Exception as error:
            raise RuleFailure(f"the labels of {func} could not be found: {type(error).__name__}: {error}") from error
        self.inside = True
        out = run_mixed(func, args, kwargs)
        self.inside = False
        try:
            self._record(func, args, kwargs, l_args, l_kwargs, out)
        except Exception as error:  # never the user's fault, so never shown as theirs
            raise RuleFailure(f"the rule of {func} raised {type(error).__name__}: {error}") from error
        return out

    def _apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an op that is made of others one by one; under inference mode such ops come whole, elsewhere they do not."""
        TorchDispatchMode.__enter__(self)
        try:
            return func.decompose(*args, **kwargs)
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)

    def _record(self, func: Any, args: Any, kwargs: Any, l_args: Any, l_kwargs: Any, out: Any) -> None:
        outs = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
        ins = tuple(each(Labels, l_args, l_kwargs))
        name, seen, placed = op_name(func), len(self.ties.uses), len(self.ties.places)
        self.ties.step = (id(self), len(self.ops))
        shapes = [tuple(t.shape) for t in outs]
        rule = self.rule_for(name)
        if rule is not None:
            planes = rule(self.ties, *l_args, out=shapes[0] if len(shapes) == 1 else shapes, **l_kwargs)
        elif shares_memory(func) and len(outs) == 1:  # a view that no rule describes: by its geometry
            planes = self.labels(outs[0]).planes
        else:
            planes = self._unknown(name, ins, shapes)
        per_out: Sequence[Any] = planes if isinstance(planes, list) else [planes]
        origin = None if any(i.is_data for i in ins) else frozenset().union(*(i.origin or () for i in ins))
        labelled = []
        before = self.live_bytes
        for k, t in enumerate(outs):
            lab = Labels(shapes[k], (per_out[k] if k < len(per_out) else None) or (), origin)
            if not all(fits(p, shapes[k]) for p in lab.planes):
                raise ValueError(f"planes {[tuple(p.shape) for p in lab.planes]} for an output of shape {shapes[k]}")
            labelled.append(lab)
            if writes(func, k) and t.untyped_storage()._cdata in self.owned:
                self.written.add(self.owned[t.untyped_storage()._cdata])
            self.put(t, lab, write=writes(func, k))
        if name in READS and any(i.is_data for i in ins):
            self.reads.append(locate(self.names)[1] or locate(self.names)[0] or "the model")
        op = Op(
            name,
            ins,
            tuple(labelled),
            new_bytes=self.live_bytes - before,
            uses=tuple(self.ties.uses[seen:]),
            places=tuple(self.ties.places[placed:]),
        )
        self._count(op, func, args, kwargs, out)
        if op.uses or op.flops:
            op.call = (func, *map_tensors((args, kwargs), lambda t: torch.empty_like(t, device="meta")))
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_op = self.live_bytes, len(self.ops)
        self.ops.append(op)

    def _unknown(self, name: str, ins: Sequence[Labels], shapes: Sequence[tuple[int, ...]]) -> Any:
        """Never guess: what went in is fixed, and so is what comes out."""
        if not any(i.planes or i.is_data for i in ins):
            return None
        module, where = locate(self.names)
        self.unruled.append((name, module, where))
        made = self.ties.new(1)
        for ids in (made, *(i.ids() for i in ins)):
            self.ties.fix(ids, f"{name} has no rule", where)
        return [all_fixed(shape, int(made)) for shape in shapes]

    def _count(self, op: Op, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        flops = flops_of(func, args, kwargs, out)
        if flops is not None:
            op.flops, op.counted = flops, True
        elif not (self.is_free(op.name) or costs_nothing(func)) and any(i.planes or i.is_data for i in op.ins):
            self.uncounted.append((op.name, locate(self.names)[0]))

    # -- labels by storage and geometry

    def labels(self, t: Tensor) -> Labels:
        """The labels of a tensor; none for one that the trace has not seen being made."""
        value = t if t.device.type != "meta" and not t.is_floating_point() and t.numel() <= SMALL else None
        held: Held | None = self._held.get(t.untyped_storage())
        if held is None:
            return Labels(tuple(t.shape), (), frozenset(), value)
        where = geometry(t)
        lab = held.known.get(where)
        if lab is None:
            lab = held.known[where] = self._derive(held, where)
        return lab if value is None else Labels(lab.shape, lab.planes, lab.origin, value)

    def put(self, t: Tensor, lab: Labels, write: bool = False) -> None:
        """Remember the labels of t. With `write`, other tensors that share its memory take them as well."""
        storage = t.untyped_storage()
        held: Held | None = self._held.get(storage)
        where = geometry(t)
        if held is None:
            self._held[storage] = Held(where, {where: lab})
            self._watch(storage)
        elif not write:
            held.known[where] = lab
        elif (
            where in held.known
            and same_planes(lab.planes, held.known[where].planes)
            and lab.origin == held.known[where].origin
        ):
            return
        elif where == held.base:
            held.known.clear()
            held.known[where] = lab
        elif reshaped(held.base, where):
            held.known.clear()
            held.known[held.base] = Labels(held.base[1], self.ties.reshape(lab, held.base[1]), lab.origin)
            held.known[where] = lab
        else:
            base = self._written(held, where, lab)
            held.known.clear()
            held.known[held.base] = base

    def _derive(self, held: Held, where: Geometry) -> Labels:
        """Labels of a tensor seen for the first time, from the tensor whose memory it looks into."""
        base = held.known[held.base]
        if reshaped(held.base, where):
            return Labels(where[1], self.ties.reshape(base, where[1]), base.origin)
        at = coordinates(held.base, where)
        if at is None:
            return Labels(where[1], self._fixed_view(where[1], "seen", base), base.origin)
        zero = torch.zeros((1,) * len(where[1]), dtype=torch.int64)
        planes = [p[tuple(at[b] if n > 1 else zero for b, n in enumerate(p.shape))] for p in base.planes]
        return Labels(where[1], self.ties.settled(planes, base.planes, [axes_of(c) for c in at]), base.origin)

    def _written(self, held: Held, where: Geometry, lab: Labels) -> Labels:
        """Labels of the whole tensor after its part `where` was written: an index that is shared is tied."""
        base = held.known[held.base]
        at = coordinates(held.base, where)
        origin = None if base.origin is None or lab.origin is None else base.origin | lab.origin
        if at is None:
            return Labels(base.shape, self._fixed_view(base.shape, "written", base, lab), origin)
        planes = list(base.planes)
        zero = torch.zeros((1,) * lab.ndim, dtype=torch.int64)
        for p in lab.planes:
            met = [bool(set(axes_of(c)) & set(axes_of(p))) for c in at]
            full = torch.zeros([n if m else 1 for n, m in zip(base.shape, met, strict=True)], dtype=torch.int64)
            index = torch.broadcast_tensors(p, *(c if m else zero for c, m in zip(at, met, strict=True)))
            full[tuple(index[1:])] = index[0]
            planes = list(self.ties.merge(base.shape, [Labels(base.shape, (*planes, full))]))
        return Labels(base.shape, tuple(planes), origin)

    def _fixed_view(self, shape: Sequence[int], what: str, *touched: Labels) -> tuple[Tensor, ...]:
        """A view that is no box of its tensor: nothing that it touches may change."""
        made = self.ties.new(1)
        for ids in (made, *(t.ids() for t in touched)):
            self.ties.fix(ids, f"{what} through an unusual view")
        return all_fixed(shape, int(made))

    def _watch(self, storage: torch.UntypedStorage) -> None:
        """Count the bytes of a storage from its birth to its death."""
        size = storage.nbytes()
        self.live_bytes += size

        def dead(ref: weakref.ref[Any]) -> None:
            self.live_bytes -= size
            self._graves.discard(ref)

        self._graves.add(weakref.ref(storage, dead))


# -- small helpers


def wrap(value: Any, labels: Callable[[Tensor], Labels]) -> Any:
    if isinstance(value, Tensor):
        return labels(value)
    if isinstance(value, (list, tuple)):
        return type(value)(wrap(v, labels) for v in value)
    if isinstance(value, dict):
        return {k: wrap(v, labels) for k, v in value.items()}
    return value


def fits(plane: Tensor, shape: Sequence[int]) -> bool:
    """Is a plane of the rank of the tensor, and along each axis as long as it or 1?"""
    return plane.ndim == len(shape) and all(n in (1, m) for n, m in zip(plane.shape, shape, strict=True))


def same_planes(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(p is q or torch.equal(p, q) for p, q in zip(a, b, strict=True))


def all_fixed(shape: Sequence[int], label: int = FIXED) -> tuple[Tensor, ...]:
    """Planes of a tensor that may not change along any axis: all carry one fixed label."""
    planes = []
    for axis, n in enumerate(shape):
        if n > 1:
            planes.append(torch.full([n if k == axis else 1 for k in range(len(shape))], label))
    return tuple(planes)


def batch_norm_on_meta(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any
) -> tuple[Any, ...]:
    """What `native_batch_norm` returns; torch's own decomposition takes a millisecond and more for each call."""
    saved = [torch.empty(x.shape[1] if training else 0, dtype=x.dtype, device="meta") for _ in range(2)]
    dense = x.is_contiguous() or is_channels_last(x)
    y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if dense else torch.empty_like(x)
    return (y, *saved)


def run_mixed(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an op whose tensors may lie on meta and on a real device: what meets meta goes to meta, indices stay real."""
    tensors = list(each(Tensor, args, kwargs))
    if any(t.device.type == "meta" for t in tensors):
        if str(kwargs.get("device") or "meta") != "meta":
            kwargs = {**kwargs, "device": torch.device("meta")}
        if any(t.device.type != "meta" and t.ndim for t in tensors):
            moved = map_tensors((tuple(args), dict(kwargs)), lambda t: torch.empty_like(t, device="meta"))
            out = func(*moved[0], **moved[1])
            return args[0] if out is moved[0][0] else out
        if func is torch.ops.aten.native_batch_norm.default:
            return batch_norm_on_meta(*args)
    elif str(kwargs.get("device")) == "meta" and func._schema.name in (
        "aten::arange",
        "aten::tril_indices",
        "aten::triu_indices",
    ):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return func(*args, **kwargs)


def locate(names: Mapping[int, str]) -> tuple[str, str]:
    """The module and the line of the user's code that is running: ("encoders.0", "model.py:31"), or empty strings."""
    frame: FrameType | None = sys._getframe(1)
    module = where = ""
    left = False
    while frame is not None and not (module and where):
        file = frame.f_code.co_filename
        ours = is_ours(file)
        if ours and left:
            break  # whoever called ranp
        left = left or not ours
        if not module and isinstance(owner := frame.f_locals.get("self"), nn.Module):
            module = names.get(id(owner), "")
        if not where and not ours and not file.startswith((_TORCH, "<")):
            where = f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return module, where
