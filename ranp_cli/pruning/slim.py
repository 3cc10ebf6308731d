"""Build the slim network: slice every parameter, and set the attributes that say how many channels there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..core.copies import compacted, replicate
from ..core.documents import shown
from ..core.errors import BadInput
from ..core.tensors import taken
from ..graph.analyse import named_tensors
from ..graph.graph import Graph, Layer
from ..graph.layers import owner_of

ATTRIBUTES = frozenset(
    "in_channels out_channels groups in_features out_features normalized_shape input_size hidden_size embedding_dim "
    "num_groups num_channels num_features num_parameters".split()
)  # that refining may set
# -- slicing


def slim_model(model: nn.Module, graph: Graph, stays: np.ndarray) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """A copy of `model`, of the same classes, with the labels flagged in `stays`: tensors sliced, attributes true.

    Also returns the attributes that changed: {module: {attribute: value}}.
    """

    def cut(name: str, t: Tensor) -> Tensor:
        return (taken(t, graph.kept_indices(graph.slots[name], stays)) if name in graph.slots else t).clone()

    slim = replicate(model, cut)
    changed = attributes(slim, graph, stays)
    apply_attributes(slim, changed)
    return compacted(slim), changed


def attributes(slim: nn.Module, graph: Graph, stays: np.ndarray) -> dict[str, dict[str, Any]]:
    """The channel counts that modules keep as attributes and that are no longer true: {module: {attribute: value}}."""
    wanted: dict[str, dict[str, Any]] = {}
    modules = dict(slim.named_modules(remove_duplicate=False))
    shapes = {name: tuple(t.shape) for name, t in named_tensors(slim)}
    for layer in graph.layers:
        module = owner_of(layer.slot)
        # a parametrised weight is put together from several tensors: the largest has the weight's shape
        slot = max((s for s in graph.slots if owner_of(s) == module), key=lambda s: math.prod(graph.slots[s].shape))
        found = layer_attributes(modules.get(module), layer, graph.slots[slot].shape, shapes[slot])
        wanted.setdefault(module, {}).update(found)
    features = {**graph.train_run.features, **graph.eval_run.features}
    for name in [name for name, module in modules.items() if isinstance(module, torch.jit.ScriptModule)]:
        del modules[name]  # compiled in: what its code insists on is found when it runs
    for name, module in modules.items():
        seen = features.get(name)
        entering = None if seen is None else kept_shape(seen.shape, seen.planes, stays)
        wanted.setdefault(name, {}).update(module_attributes(module, entering))
    changed = {}
    for name, values in wanted.items():
        here = modules.get(name)
        found = {k: v for k, v in values.items() if hasattr(here, k) and getattr(here, k) != v}
        if found:
            changed[name] = found
    return changed


def layer_attributes(
    module: nn.Module | None, layer: Layer, old: tuple[int, ...], new: tuple[int, ...]
) -> dict[str, Any]:
    """What a module that owns the weight of a layer says of it; the weight's shape went from `old` to `new`.

    The weight may also be used elsewhere, in another way, as that of a tied decoder is: what counts is what the module is.
    """
    if layer.op == "linear":
        axis = 0 if isinstance(module, nn.Linear) else layer.axis
        return {"out_features": new[axis], "in_features": new[1 - axis]} if len(new) == 2 else {}
    groups = layer.groups
    if module.transposed if isinstance(module, nn.modules.conv._ConvNd) else layer.transposed:
        groups = new[0] if groups == old[0] else groups
        return {"in_channels": new[0], "out_channels": new[1] * groups, "groups": groups}
    if groups > 1 and old[1] == 1:  # depthwise: a group goes with its channel
        groups = new[0] * groups // old[0]
    return {"in_channels": new[1] * groups, "out_channels": new[0], "groups": groups}


def module_attributes(module: nn.Module, entering: tuple[int, ...] | None) -> dict[str, Any]:
    """What torch's other modules say of their channels, from their parameters or from the shape that enters them."""
    weight: Tensor | None = module._parameters.get(
        "weight"
    )  # not getattr: a parametrised weight is computed, with side effects
    if weight is None:
        weight = module._buffers.get("running_mean")
    channels = len(weight) if isinstance(weight, Tensor) and weight.ndim else None
    if channels is None and entering is not None and len(entering) > 1:
        channels = entering[1]
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        rank = len(module.normalized_shape)
        shape = weight.shape if weight is not None else (entering or ())[-rank:]
        return {"normalized_shape": tuple(shape)} if len(shape) == rank else {}
    if isinstance(module, nn.RNNBase):
        each_in, each_hidden = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        return {"input_size": each_in.shape[1], "hidden_size": each_hidden.shape[1]}
    if isinstance(module, nn.Embedding):
        return {} if weight is None else {"embedding_dim": weight.shape[1]}
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) or channels is None:
        return {}
    if isinstance(module, nn.GroupNorm):
        groups = channels if module.num_groups == module.num_channels else module.num_groups
        return {"num_groups": groups, "num_channels": channels}
    return {"num_features": channels, "num_parameters": channels}


def apply_attributes(model: nn.Module, values: dict[str, dict[str, Any]]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, changed in values.items():
        for key, value in changed.items():
            set_attribute(modules[name], key, value)


def attribute_of(module: nn.Module, key: str) -> Any:
    """An attribute of a module, or of an object, dict or `functools.partial` that it keeps: `hidden`, `config.hidden`."""
    value: Any = module
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def set_attribute(module: nn.Module, key: str, value: Any) -> None:
    """Set what `attribute_of` finds; what it replaces says whether a list stands there or a tuple."""
    path, _, name = key.rpartition(".")
    owner = attribute_of(module, path) if path else module
    if isinstance(owner, dict):
        owner[name] = in_form_of(owner.get(name), value)
    elif isinstance(owner, partial):  # its arguments by position
        cast(Any, owner).__setstate__((owner.func, in_form_of(owner.args, value), owner.keywords, vars(owner)))
    else:
        setattr(owner, name, in_form_of(getattr(owner, name, None), value))


def in_form_of(old: Any, value: Any) -> Any:
    """`value`, which may come from JSON, with lists as tuples where `old`, or a part of it, is no list."""
    if not isinstance(value, (list, tuple)):
        return value
    parts = old if isinstance(old, (list, tuple)) and len(old) == len(value) else [None] * len(value)
    kind = list if isinstance(old, list) else tuple
    return kind(in_form_of(a, b) for a, b in zip(parts, value, strict=True))


Path = tuple[
    str | int, ...
]  # an attribute ("hidden", or "config.hidden" of an object), then an index into a list or tuple


def integers(module: nn.Module) -> Iterator[tuple[Path, int]]:
    """The integers that a module keeps as attributes, in lists and tuples too, and in what it keeps; not those of torch's."""
    own = set() if type(module).__module__.startswith("torch.") else set(vars(module))
    for key in sorted(own - set(vars(nn.Module()))):
        value = vars(module)[key]
        yield from _integers(key, value)
        for name, part in _fields(value).items():
            yield from _integers(f"{key}.{name}", part)


def _fields(value: Any) -> dict[str, Any]:
    """What an object, a dict or a partially applied function holds, by the name that `attribute_of` finds it by."""
    if isinstance(value, partial):
        return {"args": value.args, **{f"keywords.{name}": part for name, part in value.keywords.items()}}
    if isinstance(value, dict):
        return {name: part for name, part in value.items() if isinstance(name, str) and "." not in name}
    if isinstance(value, (nn.Module, Tensor, type)):
        return {}
    fields = getattr(value, "__dict__", None)
    return fields if isinstance(fields, dict) else {}


def _integers(key: str, value: Any) -> Iterator[tuple[Path, int]]:
    if type(value) is int:
        yield (key,), value
    elif type(value) in (list, tuple) and all(type(part) is int for part in value):
        for index, part in enumerate(value):
            yield (key, index), part


def check_attributes(model: nn.Module, values: dict[str, dict[str, Any]], what: str) -> None:
    """BadInput unless `values` are attributes that refining sets, smaller than before, and true of the module's tensors."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, changed in values.items():
        module = modules.get(name)
        true = {} if module is None else true_attributes(module)
        counts = set() if module is None else {path[0] for path, _ in integers(module)}  # of the user's own class
        for key, value in changed.items():
            old = None
            if module is not None and key in counts:
                old = attribute_of(module, key)
            elif key in ATTRIBUTES:
                old = getattr(module, key, None)
            least = 0 if key in counts else 1
            before, after = (v if isinstance(v, (list, tuple)) else [v] for v in (old, value))
            known = all(type(n) is int for n in (*before, *after)) and len(before) == len(after)
            now = tuple(value) if isinstance(value, list) else value
            if (
                not known
                or any(not least <= n <= most for n, most in zip(after, before, strict=True))
                or true.get(key, now) != now
            ):
                raise BadInput(
                    f"{what}: the attribute '{f'{name}.{key}'[-80:]}' = {shown(value)} is not one that refining sets; "
                    "copy it again, or write it anew with ranp"
                )


def true_attributes(module: nn.Module) -> dict[str, Any]:
    """The channel counts of torch's own modules, as their tensors have them."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        return {"in_channels" if module.transposed else "out_channels": weight.shape[0]}
    if isinstance(module, nn.Linear) and weight is not None:
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    return {key: value for key, value in module_attributes(module, None).items() if key != "num_groups"}


def kept_shape(shape: tuple[int, ...], planes: tuple[Tensor, ...], stays: np.ndarray) -> tuple[int, ...]:
    """The shape of a tensor once the indices whose labels are gone have been removed; unlabelled indices stay."""
    size = list(shape)
    for p in planes:
        alive = torch.from_numpy(stays[p.numpy()])
        for axis, n in enumerate(p.shape):
            if n > 1 and n == size[axis]:
                others = [a for a in range(p.ndim) if a != axis]
                size[axis] = int((alive.amax(others) if others else alive).sum())
    return tuple(size)
