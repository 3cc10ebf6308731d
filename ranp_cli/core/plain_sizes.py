"""Ops on meta tensors without torch's symbolic shapes, whose import (sympy) takes a fifth of torch's own: all sizes here are numbers.

Torch's Python kernels import `torch.fx.experimental.symbolic_shapes` in every call, to ask whether a condition on sizes holds. For
numbers the answer is the condition itself. A stand-in module gives that answer, and is replaced by torch's module as soon as
anything else is wanted of it. One of the kernels' helpers imports sympy itself, to ask whether an argument is an expression of
its: where no argument has a type of sympy's, it runs without that import.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from importlib import import_module
from threading import RLock
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

NAME = "torch.fx.experimental.symbolic_shapes"
HELPER = "torch._prims_common", "elementwise_dtypes"  # the module and the function that imports sympy


# Torch's functions (of 2.8 to 2.13) by what they return for plain arguments: a value of these types itself; of bools whether all or any hold; ...
_OF_A_BOOL = "expect_true guard_or_false guard_or_true guard_size_oblivious statically_known_true".split()
ITSELF = {**dict.fromkeys(_OF_A_BOOL, (bool,)), "guarding_hint_or_throw": (bool, int)}
OF_BOOLS: dict[str, Callable[[Iterable[bool]], bool]] = {"sym_and": all, "sym_or": any}
OF_A_NUMBER = {"is_nested_int": False, "has_guarding_hint": True}
EQUAL = "sym_eq"


class PlainSizes(ModuleType):
    """Stands for torch's module until something that it has no answer to is asked."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.lock = RLock()
        for name in (*ITSELF, *OF_BOOLS, *OF_A_NUMBER, EQUAL):
            setattr(self, name, self._answering(name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of the import system, and of those who look through sys.modules
            raise AttributeError(f"module '{NAME}' has no attribute '{name}'")
        return getattr(self.real(), name)

    def real(self) -> ModuleType:
        """Torch's own module, which then stands in its place."""
        with self.lock:
            if sys.modules.get(NAME) is self:
                del sys.modules[NAME]
            return import_module(NAME)

    def _answering(self, name: str) -> Callable[..., Any]:
        """The function of that name: of plain arguments the answer, of others what torch's own says."""

        def torchs(*args: Any, **options: Any) -> Any:
            return getattr(self.real(), name)(*args, **options)

        kinds = ITSELF.get(name, ())

        def itself(value: Any, *rest: Any, **options: Any) -> Any:
            return value if type(value) in kinds else torchs(value, *rest, **options)

        def of_bools(*values: Any) -> Any:
            return OF_BOOLS[name](values) if all(type(value) is bool for value in values) else torchs(*values)

        def of_a_number(value: Any) -> Any:
            return OF_A_NUMBER[name] if type(value) in (int, float, bool) else torchs(value)

        def equal(x: Any, y: Any) -> Any:
            return x == y if _is_plain(x) and type(x) is type(y) and _is_plain(y) else torchs(x, y)

        return equal if name == EQUAL else itself if name in ITSELF else of_bools if name in OF_BOOLS else of_a_number


def _is_plain(value: Any) -> bool:
    return type(value) is int or (type(value) in (tuple, list) and all(type(n) is int for n in value))


def without_symbols() -> bool:
    """Put the stand-in in its place where torch is there without its module; whether that was so."""
    package = sys.modules.get(NAME.rpartition(".")[0])
    if package is None or NAME in sys.modules:
        return False
    stand_in = PlainSizes()
    sys.modules[NAME] = stand_in
    package.symbolic_shapes = stand_in  # type: ignore[attr-defined]  # as an import would
    home, name = sys.modules.get(HELPER[0]), HELPER[1]
    helper = getattr(home, name, None)
    if isinstance(helper, FunctionType) and "sympy" in helper.__code__.co_varnames:  # else this torch has it otherwise
        setattr(home, name, _without_sympy(helper))
    return True


def _without_sympy(function: FunctionType) -> Callable[..., Any]:
    """The function, whose own import of sympy finds a class that nothing is of; itself where sympy is there already."""

    class Nothing:
        pass

    def importing(name: str, *rest: Any) -> Any:
        return SimpleNamespace(Basic=Nothing) if name == "sympy" else builtins.__import__(name, *rest)

    spaces = {**function.__globals__, "__builtins__": {**vars(builtins), "__import__": importing}}
    quick = FunctionType(function.__code__, spaces, function.__name__, function.__defaults__, function.__closure__)
    quick.__kwdefaults__ = function.__kwdefaults__

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if "sympy" in sys.modules else quick)(*args, **kwargs)

    return call
