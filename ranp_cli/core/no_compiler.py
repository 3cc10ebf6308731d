"""Ops on meta tensors without torch's compiler: its import takes as long as half of torch's own, and nothing is compiled here.

Many ops on meta tensors are written in Python in torch, and marked as none to compile. The mark imports the compiler
(`torch._dynamo`) at the first call, only to tell it so. Here it does so once the compiler is there, and not before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

import torch

MARK = "__dynamo_disable"  # where torch keeps a marked function as the compiler knows it


@cache
def without_compiler() -> int:
    """Put off the import of the compiler for all ops on meta tensors, once a process; how many functions that concerns.

    A torch that marks them otherwise is left as it is: it imports the compiler then.
    """
    wrap = getattr(torch, "_disable_dynamo", None)
    code = getattr(wrap(lambda: None), "__code__", None) if wrap is not None else None
    if code is None or MARK not in code.co_consts or "fn" not in code.co_freevars:
        return 0
    marked = [function for function in _marked(code) if not hasattr(function, MARK)]
    for function in marked:
        setattr(function, MARK, _put_off(function))
    return len(marked)


def _put_off(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is, until the compiler is imported; from then on as the compiler is told not to enter it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        if compiler is None or not hasattr(compiler, "disable"):  # not there, or still being imported
            return function(*args, **kwargs)
        disabled = compiler.disable(function, True, wrapping=False)
        setattr(function, MARK, disabled)
        return disabled(*args, **kwargs)

    return call


def _marked(code: Any) -> Iterator[Callable[..., Any]]:
    """The functions under torch's mark among its Python kernels and references."""
    tables = getattr(getattr(torch, "_decomp", None), "global_decomposition_table", {})
    functions = [function for table in tables.values() for function in table.values()]
    for name in ("torch._refs", "torch._refs.nn.functional", "torch._decomp.decompositions"):
        functions += vars(sys.modules[name]).values() if name in sys.modules else ()
    seen: set[int] = set()
    while functions:
        function = functions.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        inside = [cell.cell_contents for name, cell in held.items() if name in ("fn", "f", "prim", "_ref")]
        functions += [*inside, getattr(function, "__wrapped__", None)]
        if function.__code__ is code:
            yield held["fn"].cell_contents
