"""Copies of models and inputs: on meta tensors, which cost nothing, or with tensors of the caller's making."""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .closures import copy_model
from .contexts import ignoring
from .tensors import has_fractions

COMPILED = "_orig_mod"  # where torch.compile keeps the module that it was given


def meta_copy(model: nn.Module, real: bool = False) -> nn.Module:
    """A copy of `model` whose floating-point tensors are on `meta` (with `real`: true copies). Weights are not copied."""
    if isinstance(model, torch.jit.ScriptModule):
        return script_copy(model, "cpu" if real else "meta")
    return replicate(
        model, lambda name, t: t.clone() if real or not has_fractions(t) else torch.empty_like(t, device="meta")
    )


def copy_on(model: nn.Module, device: torch.device, own: Container[str] = ()) -> nn.Module:
    """A copy to run on `device`; its weights are shared where they are there already, its buffers and `own` are copied."""
    if isinstance(model, torch.jit.ScriptModule):
        return meta_copy(model, real=True).to(device)
    return compacted(replicate(model, lambda name, t: t.to(device, copy=name in own)))


def compacted(model: nn.Module) -> nn.Module:
    """The model itself, its recurrent weights in one piece each: cuDNN warns of others and copies them in every call."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return model


def script_copy(model: torch.jit.ScriptModule, device: str | None) -> nn.Module:
    """A copy of a TorchScript module with its tensors on `device` (None: where they are)."""
    file = io.BytesIO()
    with ignoring((DeprecationWarning, "")):  # of torch.jit as a whole: we know
        torch.jit.save(model, file)
        file.seek(0)
        result: nn.Module = torch.jit.load(file, map_location=device)
        return result


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
    return copy_model(model, memo)


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
    model = inside_compiled(model)
    if any(inside_compiled(module) is not module for module in model.modules()):
        model = replicate(model, lambda _, t: t)
        for module in list(model.modules()):
            for name, part in module.named_children():
                module._modules[name] = inside_compiled(part)
    return model


def inside_compiled(module: nn.Module) -> nn.Module:
    """The module inside of a compiled one, else itself. Not by `getattr`: a `__getattr__` of the user's may return anything."""
    return next((part for name, part in module.named_children() if name == COMPILED), module)


def plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a module keeps as ordinary attributes."""
    for key, value in vars(module).items():
        if isinstance(value, Tensor):
            yield key, value
