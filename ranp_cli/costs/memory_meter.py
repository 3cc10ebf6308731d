"""Count the bytes of every storage from allocation to release, while a network runs on meta tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import _get_sequence_nr
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.aten import op_name
from ..core.flops import flops_of
from ..core.tensors import CHANNELS_LAST, is_channels_last, map_tensors, tensors_in
from ..graph.trace import batch_norm_on_meta
from .cpu_workspace import CONVOLUTIONS, workspace

LOSS = "(loss)"  # what is born outside of the model's code
MATRICES = frozenset(
    {"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"}
)  # ops that decompose differently on meta tensors contain one of these


@dataclass
class Birth:
    """A storage: the module that it belongs to, its bytes, and the ops between which it lived."""

    module: str
    size: int
    born: int
    died: int | None = None
    output: bool = False  # of the model


@dataclass
class Meter(TorchDispatchMode):
    """Counts the bytes of every storage that is made while it is on."""

    names: Mapping[int, str] = field(default_factory=dict)  # id(module) -> its path
    owners: Mapping[int, str] = field(default_factory=dict)  # id(parameter) -> the path of its module
    live: int = 0
    peak: int = 0
    peak_at: tuple[str, str, int] = ("", "", 0)  # op, module, number of the op
    timeline: list[int] = field(default_factory=list)  # live bytes after each op
    on_cpu: bool = True  # workspaces are known there, and counted
    workspace: int = 0  # the largest
    flops: dict[str, int] = field(default_factory=dict)  # by module
    births: list[Birth] = field(default_factory=list)
    outside: str = ""  # the name for storages allocated outside any module
    known: dict[Any, Any] | None = None  # results of ops on meta tensors, for passes to share
    multiplies_matrices: bool = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __post_init__(self) -> None:
        super().__init__()
        self._calls: list[str] = []  # the modules that are running, the innermost last
        self._known: dict[int, Any] = {}
        self._births: dict[int, Birth] = {}  # of what is alive
        self._nodes: dict[int, str] = {}  # sequence number of an autograd node -> the module that made it

    def __enter__(self) -> Meter:
        """Follow the calls of modules by global hooks: they keep no tensor alive, as a look at the frames' locals would."""

        def enter(module: nn.Module, args: Any) -> None:
            if id(module) in self.names:
                self._calls.append(self.names[id(module)])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in self.names:
                self._calls.pop()

        self._hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for hook in self._hooks:
            hook.remove()

    def know(self, t: Tensor) -> None:
        """A tensor that was there before: it is not counted."""
        self._known[t.untyped_storage()._cdata] = None

    def note_outputs(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            if t.untyped_storage()._cdata in self._births:
                self._births[t.untyped_storage()._cdata].output = True

    def held(self) -> dict[str, int]:
        """The bytes now alive, by module, the most first."""
        sums: dict[str, int] = {}
        for birth in self._births.values():
            sums[birth.module] = sums.get(birth.module, 0) + birth.size
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def most_fixed(self) -> int:
        """The most bytes that the model's outputs and the loss over them held at once."""
        steps = [0] * (len(self.timeline) + 1)
        for birth in self.births:
            if birth.output or birth.module == LOSS:
                steps[birth.born] += birth.size
                if birth.died is not None:
                    steps[birth.died] -= birth.size
        return max(accumulate(steps))

    def _watch(self, storage: torch.UntypedStorage, module: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.live += size
        birth = Birth(module, size, len(self.timeline))
        self.births.append(birth)

        def dead(_: Any) -> None:
            self.live -= size
            birth.died = len(self.timeline)
            self._known.pop(key, None)
            self._births.pop(key, None)

        self._known[key], self._births[key] = weakref.ref(storage, dead), birth

    def _module(self) -> str:
        """The module that the running op belongs to."""
        node = torch._C._current_autograd_node()
        if node is None or self._calls:  # forward; or a checkpoint runs it again
            module = self._calls[-1] if self._calls else self.outside
            self._nodes.setdefault(_get_sequence_nr() - 1, module)  # an op's node is made just before it runs
            return module
        if hasattr(node, "variable"):  # a gradient arrives at its parameter
            return self.owners.get(id(node.variable), self.outside)
        return self._nodes.get(node._sequence_nr(), self.outside)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # no op, but a question that a fake tensor is asked
            return func(*args)
        if func is torch.ops.aten.native_batch_norm.default and args[0].device.type == "meta":
            out = batch_norm_on_meta(*args)
        else:
            out = (
                func(*args, **(kwargs or {})) if self.known is None else recalled(self.known, func, args, kwargs or {})
            )
        out = as_laid_out(op_name(func), args, out)
        module = self._module()
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self._watch(t.untyped_storage(), module)
        if flops := flops_of(func, args, kwargs, out):
            self.flops[module] = self.flops.get(module, 0) + flops
        name = op_name(func)
        self.multiplies_matrices |= name in MATRICES
        inside = workspace(func, args, out)
        if name in CONVOLUTIONS:
            self.workspace = max(self.workspace, inside)
        self.note(name, module, self.live + (inside if self.on_cpu else 0))
        return out

    def note(self, name: str, module: str, now: int) -> None:
        """So many bytes are alive at an op."""
        self.timeline.append(now)
        if now > self.peak:
            self.peak, self.peak_at = now, (name, module, len(self.timeline) - 1)


def recalled(known: dict[Any, Any], func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an op on meta tensors, as it was for others of their shapes: torch works out many in Python, slowly."""
    if has_aliases(func):
        return func(*args, **kwargs)  # a view, or written over
    key = func, signature(args), signature(kwargs) if kwargs else ()
    try:
        found = known.get(key)
    except TypeError:  # an argument that cannot be hashed
        return func(*args, **kwargs)
    if found is not None:
        return map_tensors(found, empty_as)
    out = func(*args, **kwargs)
    if all(t.device.type == "meta" for t in tensors_in((args, kwargs))):  # of others the numbers may matter
        known[key] = map_tensors(out, empty_as)  # another, for this one's death is to be seen
    return out


@cache
def has_aliases(func: Any) -> bool:
    """Whether an op returns a view, or writes to what it is given."""
    return any(value.alias_info for value in (*func._schema.arguments, *func._schema.returns))


def signature(value: Any) -> Any:
    """What the result of an op on meta tensors depends on; 1, 1.0 and True differ."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device.type
    if isinstance(value, (list, tuple)):
        return tuple(map(signature, value))
    if isinstance(value, dict):
        return tuple((key, signature(item)) for key, item in value.items())
    return type(value), value


def empty_as(t: Tensor) -> Tensor:
    """Another tensor of the size, strides and dtype of one on meta (`empty_like` works them out in Python, slowly)."""
    if t.device.type != "meta" or t.layout is not torch.strided:
        return torch.empty_like(t)
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def as_laid_out(name: str, args: Any, out: Any) -> Any:
    """The result on meta in the layout that it has elsewhere, where torch's meta tensors lose `channels_last`."""
    if name not in ("aten.convolution", "aten.native_batch_norm_backward"):
        return out
    x = args[0] if name == "aten.convolution" else args[1]
    if not is_channels_last(x):
        return out
    if isinstance(out, Tensor):
        return with_channels_last(out)
    return (None if out[0] is None else with_channels_last(out[0]), *out[1:])


def with_channels_last(t: Tensor) -> Tensor:
    """`t` where its channels lie last already, else another tensor of which that is so."""
    layout = CHANNELS_LAST[t.ndim]
    return t if t.is_contiguous(memory_format=layout) else torch.empty_like(t, memory_format=layout)
