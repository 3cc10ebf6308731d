"""Build the small network for real: slice every parameter, true up attributes, prove it on the spot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import USER_EXCEPTIONS, RuleFailure, VerificationFailed
from .example import Example
from .labels import Reason, Ties
from .shadow import replicate
from .trace import Op, Tracer, locate
from .units import Graph, Layer, Run, Slot, attempt, find_layers, make_slot, named_tensors, new_tracer, owner_of

INITS = ("keep", "factory", "glorot", "orthogonal")


# -- slicing


def slim_model(model: nn.Module, graph: Graph, stays: np.ndarray) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """A copy of `model`, of the same classes, with the labels flagged in `stays`: tensors sliced, attributes true.

    Also returns the attributes that changed: {module: {attribute: value}}.
    """

    def cut(name: str, t: Tensor) -> Tensor:
        if name in graph.slots:
            for axis, index in enumerate(graph.kept_indices(graph.slots[name], stays)):
                if index is not None:
                    t = t.index_select(axis, index.to(t.device))
        return t.clone()

    slim = replicate(model, cut)
    changed = attributes(slim, graph, stays)
    apply_attributes(slim, changed)
    return slim, changed


def attributes(slim: nn.Module, graph: Graph, stays: np.ndarray) -> dict[str, dict[str, Any]]:
    """The channel counts that modules keep as attributes and that are no longer true: {module: {attribute: value}}."""
    wanted: dict[str, dict[str, Any]] = {}
    shapes = {name: tuple(t.shape) for name, t in named_tensors(slim)}
    for layer in graph.layers:
        module = owner_of(layer.slot)
        # a parametrised weight is put together from several tensors: the largest has the weight's shape
        slot = max((s for s in graph.slots if owner_of(s) == module), key=lambda s: math.prod(graph.slots[s].shape))
        wanted.setdefault(module, {}).update(layer_attributes(layer, graph.slots[slot].shape, shapes[slot]))
    features = {**graph.train_run.features, **graph.eval_run.features}
    modules = dict(slim.named_modules(remove_duplicate=False))
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


def layer_attributes(layer: Layer, old: tuple[int, ...], new: tuple[int, ...]) -> dict[str, Any]:
    """What a module that owns the weight of a layer says of it; the weight's shape went from `old` to `new`."""
    if layer.op == "linear":
        return {"out_features": new[layer.axis], "in_features": new[1 - layer.axis]} if len(new) == 2 else {}
    groups = layer.groups
    if layer.transposed:
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
    if isinstance(module, nn.LayerNorm):
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
            setattr(modules[name], key, tuple(value) if isinstance(value, list) else value)


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


# -- does the slim network run?


@dataclass(frozen=True)
class HardCoded:
    """A place where the code of the model insists on a channel count: the labels that must stay, and where it stands."""

    ids: np.ndarray
    reason: Reason


@dataclass(frozen=True)
class SlimRun:
    """The slim network's run in eval mode, and its layers with their costs by parameter and axis."""

    run: Run
    layers: dict[tuple[str, int], Layer]


def check_runs(slim: nn.Module, graph: Graph, stays: np.ndarray) -> SlimRun | HardCoded:
    """Run the slim network's shadow in eval and in training mode, op by op beside the dense one.

    An op that raises, or whose result has not the shape that the labels foretell, insists on a channel count.
    """
    ties = Ties()
    slots: dict[str, Slot] = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(slim)}
    runs = []
    for dense, training in ((graph.eval_run, False), (graph.train_run, True)):
        example = graph.example.with_batch(dense.samples)
        tracer = new_tracer(ties)
        error: BaseException | None = None
        try:
            runs.append(attempt(tracer, slim, example, slots, training, dense.real))
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
    """Number of the first op whose result has another shape than the labels say; None also where the ops differ."""
    for i, (a, b) in enumerate(zip(dense, slim, strict=False)):
        if a.name != b.name or len(a.outs) != len(b.outs):
            return None
        for x, y in zip(a.outs, b.outs, strict=True):
            sure = all((p > 0).all() for p in x.planes)
            if sure and x.planes and kept_shape(x.shape, x.planes, stays) != y.shape:
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
        attempt(Stop(base.ties, base.rule_for, base.is_free), model, example, {}, training, real)
    except Exception:  # the very error that is being located, or _Found
        return where
    return where


# -- weights after refining


def initialise(model: nn.Module, init: str, layers: list[str]) -> None:
    """Draw the weights of a slim network anew, as the paper does before training from scratch.

    `glorot` (uniform) and `orthogonal` draw the layers' weights and zero their biases, and reset norms;
    `factory` calls each module's own `reset_parameters`. Uses the global generator: seed it before.
    """
    if init == "keep":
        return
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "reset_parameters") and callable(module.reset_parameters):
                module.reset_parameters()
        if init == "factory":
            return
        draw = nn.init.xavier_uniform_ if init == "glorot" else nn.init.orthogonal_
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in layers:
            weight = parameters[name]
            if weight.ndim > 1:
                draw(weight)
            owner = owner_of(name)
            bias = parameters.get(f"{owner}.bias" if owner else "bias")
            if bias is not None:
                nn.init.zeros_(bias)
