"""What holds on to a model, copied so that it holds on to the copy: hooks, lambdas, patched methods, weak references.

`copy.deepcopy` leaves a function as it is, so a hook made as a closure over `self` goes on to write to the original.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from .deep_copy import deep_copy
from .errors import BadInput, in_words

MUTABLE = (dict, list, set, deque)
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
ATOMS = (str, bytes, int, float, complex, type, ModuleType, CodeType, type(None))  # lead nowhere
PLAIN = frozenset({*ATOMS, bool})  # most of what a module holds, told by its type alone


def copy_model(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)` in which functions with closures over parts of the model are bound to the copy.

    Raises: BadInput for a function that holds on to the model through something that cannot be copied.
    """
    inside = {id(part) for module in model.modules() for part in (module, *module.parameters(False))}
    hooks = {id(hook) for module in model.modules() for kind in HOOKS for hook in vars(module).get(kind, {}).values()}
    bound = []
    functions, histories = kept_in(model)
    for where, function in functions:
        names = shared_globals(function, model, inside) if id(function) in hooks else {}
        if names or any(holds(value, inside) for value in held_by(function)):
            cells = tuple(CellType() for _ in function.__closure__ or ())
            spaces = {**function.__globals__} if names else function.__globals__
            new = FunctionType(function.__code__, spaces, function.__name__, None, cells)
            bound.append((where, function, new, names))
            memo[id(function)] = new
    for t in histories:
        memo.setdefault(id(t), t.detach().clone())
    weak = [found for module in model.modules() for found in weak_references(module, model)]
    memo.update({id(vars(module)[key]): None for module, key, _, _ in weak})
    for module in model.modules():  # `copy.deepcopy` takes ten times as long to copy nothing
        memo.update({id(value): type(value)() for value in vars(module).values() if is_empty(value)})
    result = deep_copy(model, memo)
    for module, key, kind, target in weak:
        vars(memo[id(module)])[key] = kind(memo[id(target)])
    for where, function, new, names in bound:

        def bind(value: Any, where: str = where, function: FunctionType = function) -> Any:
            return copied(value, memo, inside, f"{where} ({place_of(function)})")

        for old, cell in zip(function.__closure__ or (), new.__closure__ or (), strict=True):
            if filled(old):
                cell.cell_contents = bind(old.cell_contents)
        new.__defaults__ = bind(function.__defaults__)
        new.__kwdefaults__ = bind(function.__kwdefaults__)
        new.__dict__.update(bind(vars(function)))
        new.__globals__.update({name: bind(value) for name, value in names.items()})
    return result


def kept_in(model: nn.Module) -> tuple[list[tuple[str, FunctionType]], list[Tensor]]:
    """What the model's modules keep as attributes, in hooks or in containers: (where, function), and tensors with a history.

    Such tensors, as hooks keep them of activations, refuse to be copied.
    """
    seen: dict[int, Any] = {}
    functions, histories = [], []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if type(value) in PLAIN or is_empty(value):
                continue
            for part in reached(value, seen):
                if isinstance(part, FunctionType):
                    functions.append((f"{name}.{key}" if name else key, part))
                elif isinstance(part, Tensor) and not part.is_leaf:
                    histories.append(part)
    return functions, histories


def is_empty(value: Any) -> bool:
    """Whether it is a container of Python's own with nothing in it, as most of a module's attributes are: of hooks, of buffers."""
    return type(value) in (OrderedDict, dict, list, set) and not value


def reached(value: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """`value` and all that it refers to, but for what is in `seen` already; nothing beyond a module or a tensor."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) in PLAIN or id(value) in seen or isinstance(value, ATOMS):
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, (nn.Module, Tensor)):
            continue
        if isinstance(value, FunctionType):
            waiting += held_by(value)
        elif isinstance(value, MethodType):
            waiting += [value.__self__, value.__func__]
        elif isinstance(value, partial):
            waiting += [value.func, value.args, value.keywords]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            waiting += value
        elif isinstance(fields := getattr(value, "__dict__", None), dict):
            waiting += fields.values()


def held_by(function: FunctionType) -> list[Any]:
    """What a function holds besides its code: closure, defaults and attributes."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()]


def weak_references(module: nn.Module, model: nn.Module) -> list[tuple[nn.Module, str, Any, nn.Module]]:
    """(module, attribute, weakref.ref or weakref.proxy, target) of the attributes that refer weakly to a part of the model."""
    found: list[tuple[nn.Module, str, Any, nn.Module]] = []
    for key, value in vars(module).items():
        kind = (
            weakref.ref if type(value) is weakref.ref else weakref.proxy if type(value) in weakref.ProxyTypes else None
        )
        target = value() if kind is weakref.ref else value
        if kind is not None:
            found += [(module, key, kind, part) for part in model.modules() if target == part]
    return found


def filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def holds(value: Any, inside: set[int]) -> bool:
    """Does `value` lead to a part of the model, or to a container that the function may write to?"""
    return any(id(part) in inside or isinstance(part, MUTABLE) for part in reached(value, {}))


def shared_globals(hook: FunctionType, model: nn.Module, inside: set[int]) -> dict[str, Any]:
    """The global containers that a hook names. BadInput where a forward of the model names the same: it cannot be copied."""
    names = {
        name: value
        for name in names_in(hook.__code__)
        if isinstance(value := hook.__globals__.get(name), MUTABLE) or id(value) in inside
    }
    for module in model.modules() if names else ():
        forward = getattr(type(module), "forward", None)
        if isinstance(forward, FunctionType) and forward.__globals__ is hook.__globals__:
            for name in names.keys() & names_in(forward.__code__):
                raise BadInput(
                    f"a forward hook ({place_of(hook)}) and the forward of {type(module).__name__} share the global '{name}', which "
                    "a copy of the model cannot have to itself; keep it as an attribute of the model"
                )
    return names


def names_in(code: CodeType) -> set[str]:
    """The names of globals and attributes in a function's code and in the functions inside it."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def copied(value: Any, memo: dict[int, Any], inside: set[int], where: str) -> Any:
    """A deep copy bound to the copy of the model; what does not lead to the model and cannot be copied is shared."""
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:  # whatever an object's own way of copying raises
        if not any(id(part) in inside for part in reached(value, {})):
            return value
        raise BadInput(
            f"the function in {where} holds on to the model through something that cannot be copied: {in_words(error, 120)}; "
            "take it off the model before pruning (a hook: handle.remove())",
            whole=True,
        ) from error


def place_of(function: FunctionType) -> str:
    return (
        f"{function.__name__} at {os.path.basename(function.__code__.co_filename)}:{function.__code__.co_firstlineno}"
    )
