"""How labels flow through ATen ops: one registry, one decorator, a family of ops per file.

A rule has the ATen schema for its parameters, tensors arriving as `Labels`; `out` is the shape of the output (a list of
shapes for several). It ties, fixes and consumes labels, and returns the planes of the output: a tuple of planes, a list
of such tuples, or None for an output without labels. In-place forms and overloads share the rule of their op.

    from ranp_cli.rules import rule

    @rule("mylib.scale_channels")
    def scale_channels(ties, x, scale, *, out):
        # x (N, C, *S), scale (C) -> y (N, C, *S)
        ties.tie(ties.vector(x, 1), ties.vector(scale, 0))
        return x.planes

An op without a rule is never guessed: what goes in is fixed, and the report names it. `python -m ranp_cli.rules` prints
the table of ops.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

Rule = Callable[..., Any]
FAMILIES = ("elementwise", "views", "slicing", "conv", "linear", "norm", "reduce", "spatial")

_rules: dict[str, tuple[Rule, bool]] = {}


def rule(*names: str, free: bool = True) -> Callable[[Rule], Rule]:
    """Register the rule of ops, by name without overload ("aten.relu"). A second rule for an op raises.

    Args:
        names: such as "aten.relu" or "mylib.scale"; an op of ATen must exist in this torch, others may be loaded later.
        free: the profile knowingly counts no multiply-adds for it.

    Raises: ValueError for a name without a namespace, and for a second rule for an op.
    """

    def register(fn: Rule) -> Rule:
        for name in names:
            if not re.fullmatch(r"\w+\.\w+", name):
                raise ValueError(
                    f"rule for {name!r}: give the op's namespace and name, without overload, such as 'aten.relu'"
                )
            if name in _rules:
                raise ValueError(f"{name} has a rule already: {_rules[name][0].__qualname__}")
            _rules[name] = (fn, free)
        return fn

    return register


def find(name: str) -> Rule | None:
    """The rule of an op, or None."""
    entry = _rules.get(name)
    return entry[0] if entry else None


def is_free(name: str) -> bool:
    """Does the profile knowingly count nothing for this op?"""
    entry = _rules.get(name)
    return entry is not None and entry[1]


def table() -> list[tuple[str, str, str]]:
    """(op, family, first line of the rule's docstring), sorted."""
    rows = []
    for name, (fn, _) in _rules.items():
        rows.append((name, fn.__module__.rpartition(".")[2], (fn.__doc__ or "").strip().splitlines()[0]))
    return sorted(rows)


for _family in FAMILIES:
    import_module(f"{__name__}.{_family}")
