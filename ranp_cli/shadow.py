"""Copies of models and inputs: on meta tensors, which cost nothing, or with tensors of the caller's making."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

P = ParamSpec("P")
R = TypeVar("R")
COMPILED = "_orig_mod"  # where torch.compile keeps the module that it was given


def shadow(model: nn.Module, real: bool = False) -> nn.Module:
    """A copy of `model` whose floating-point tensors are on `meta` (with `real`: true copies). Weights are not copied."""
    if isinstance(model, torch.jit.ScriptModule):
        return script_copy(model, "cpu" if real else "meta")
    return replicate(
        model, lambda name, t: t.clone() if real or not t.is_floating_point() else torch.empty_like(t, device="meta")
    )


def copy_on(model: nn.Module, device: torch.device, own: Container[str] = ()) -> nn.Module:
    """A copy to run on `device`; its weights are shared where they are there already, its buffers and `own` are copied."""
    if isinstance(model, torch.jit.ScriptModule):
        return shadow(model, real=True).to(device)
    return replicate(model, lambda name, t: t.to(device, copy=name in own))


def script_copy(model: torch.jit.ScriptModule, device: str | None) -> nn.Module:
    """A copy of a TorchScript module with its tensors on `device` (None: where they are)."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole: we know
        torch.jit.save(model, file)
        file.seek(0)
        return torch.jit.load(file, map_location=device)


def replicate(model: nn.Module, make: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A deep copy of `model` in which every tensor is `make(name, tensor)`; tied tensors stay tied.

    Plain tensor attributes are named like parameters. A `make` that returns the very tensor shares a parameter's
    memory; buffers and attributes, which a forward may write, are copied then. (TorchScript always copies.)
    """
    if isinstance(model, torch.jit.ScriptModule):
        return _replicate_script(model, make)
    scripts = outermost_scripts(model)
    inside = {id(module) for script in scripts.values() for module in script.modules()}
    memo: dict[int, Any] = {id(script): _replicate_script(script, make, name) for name, script in scripts.items()}
    with torch.no_grad():
        for prefix, module in model.named_modules():
            if id(module) in inside:
                continue
            tensors = [*module._parameters.items(), *module._buffers.items(), *plain_tensors(module)]
            for key, t in tensors:
                if t is None or id(t) in memo:
                    continue
                own = t.detach()
                new = make(f"{prefix}.{key}" if prefix else key, own)
                is_parameter = isinstance(t, nn.Parameter)
                if new is own and not is_parameter:
                    new = own.clone()
                memo[id(t)] = nn.Parameter(new, requires_grad=t.requires_grad) if is_parameter else new
    return copy.deepcopy(model, memo)


def _replicate_script(
    model: torch.jit.ScriptModule, make: Callable[[str, Tensor], Tensor], name: str = ""
) -> nn.Module:
    """`replicate` for TorchScript, called `name`. What is a parameter its module knows: in a file they are plain tensors."""
    copy = script_copy(model, None)
    made: dict[int, Tensor] = {}
    with torch.no_grad():
        for prefix, module in copy.named_modules(prefix=name):
            parameters = dict(module.named_parameters(recurse=False))
            for key, t in [*parameters.items(), *module.named_buffers(recurse=False)]:
                if t.data_ptr() not in made:
                    new = make(f"{prefix}.{key}" if prefix else key, t.detach())
                    made[t.data_ptr()] = nn.Parameter(new, t.requires_grad) if key in parameters else new
                module._c.setattr(key, made[t.data_ptr()])
    return copy


def outermost_scripts(model: nn.Module) -> dict[str, torch.jit.ScriptModule]:
    """The TorchScript modules in a model of Python, but for those inside of other ones."""
    found: dict[str, torch.jit.ScriptModule] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and not any(name.startswith(f"{other}.") for other in found):
            found[name] = module
    return found


def uncompiled(model: nn.Module) -> nn.Module:
    """`model` as it was before `torch.compile`; with compiled parts, a copy of it that shares its weights."""
    model = getattr(model, COMPILED, model)
    if any(hasattr(module, COMPILED) for module in model.modules()):
        model = replicate(model, lambda _, t: t)
        for module in list(model.modules()):
            for name, part in module.named_children():
                module._modules[name] = getattr(part, COMPILED, part)
    return model


def plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a module keeps as ordinary attributes."""
    for key, value in vars(module).items():
        if isinstance(value, Tensor):
            yield key, value


def map_tensors(value: Any, make: Callable[[Tensor], Any]) -> Any:
    """`value` (nested tuples, lists, dicts) with each tensor replaced."""
    if isinstance(value, Tensor):
        return make(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, make) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, make) for v in value)
    if isinstance(value, dict):
        return {k: map_tensors(v, make) for k, v in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and plain objects' fields, in order."""
    found: list[Tensor] = []
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for v in value:
            found += tensors_in(v)
    elif isinstance(value, dict):
        for v in value.values():
            found += tensors_in(v)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        found += tensors_in(vars(value))
    return found


def rebatch(value: Any, n: int) -> Any:
    """`value` with n samples in every tensor (axis 0), the given ones repeated; meta tensors stay meta."""
    sizes = {t.shape[0] for t in tensors_in(value) if t.ndim > 1}
    if len(sizes) != 1:
        return value
    (size,) = sizes

    def resize(t: Tensor) -> Tensor:
        if t.ndim == 0 or t.shape[0] != size or size == n:
            return t
        if t.device.type == "meta":
            return torch.empty((n, *t.shape[1:]), dtype=t.dtype, device="meta")
        return t[torch.arange(n) % t.shape[0]]

    return map_tensors(value, resize)


def to_meta(value: Any) -> Any:
    """Floating-point tensors of `value` as meta tensors of the same shape; index tensors keep their values."""
    return map_tensors(
        value, lambda t: torch.empty_like(t, device="meta") if t.is_floating_point() else t.detach().cpu()
    )


def to_real(t: Tensor, device: torch.device) -> Tensor:
    """A tensor with numbers, on `device`; zeros for one on meta."""
    return torch.zeros(t.shape, dtype=t.dtype, device=device) if t.device.type == "meta" else t.detach().to(device)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """What is drawn inside is drawn from `seed`; the global generators (torch, numpy, random) come out as they went in."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def each(kind: type, *values: Any) -> Iterator[Any]:
    """All objects of a kind in nested lists, tuples and dicts."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from each(kind, *value)
        elif isinstance(value, dict):
            yield from each(kind, *value.values())


class NoDropout(TorchFunctionMode):
    """Functional dropout passes its input on."""

    NAMES = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
                       "feature_dropout", "dropout_", "alpha_dropout_", "feature_dropout_"})  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.NAMES:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


@contextmanager
def in_checkpoints(during: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """What torch.utils.checkpoint runs again in the backward pass runs under `during`: torch's function modes do not get there."""
    from unittest.mock import patch  # not before it is needed: it brings asyncio

    hook, again = checkpoint._recomputation_hook, checkpoint.CheckpointFunction.backward

    @contextmanager
    def recomputation(*given: Any) -> Iterator[None]:
        with during(), hook(*given):
            yield

    def backward(ctx: Any, *grads: Any) -> Any:
        with during():
            return again(ctx, *grads)

    with (
        patch.object(checkpoint, "_recomputation_hook", recomputation),
        patch.object(checkpoint.CheckpointFunction, "backward", staticmethod(backward)),
    ):
        yield


def labels_on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with the CPU as torch's default device: labels are tensors, and live there."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            return function(*args, **kwargs)

    return inside
