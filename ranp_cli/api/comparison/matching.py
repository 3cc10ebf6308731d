"""The networks of a table: cut at a sparsity, or to what the first method's network costs there (Table 3 of the paper)."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from ...core.errors import BadInput, Infeasible
from ...core.spelling import Word, spelled
from ...graph.analyse import trace_costs
from ...graph.graph import Layer
from ...io.user_code import check_args
from ...reporting.compare_captions import RESOURCE_KEYS, RESOURCE_WORDS
from .cutting import Cut, Cutter, Subject
from .rows import Entry, Level

SNIP_LEVELS = 2**16  # sparsities of weights that are told apart


def cut(cutter: Cutter, e: Entry, level: Level) -> Cut:
    """The network of one row; `cutter` was scored."""
    table = cutter.subject.table
    if e.kind == "full":
        return cutter.full(e.name)
    if e.kind == "width":
        return narrowed(cutter, level)
    if table.match is None or e is table.reference:
        return cutter.ranked(e, level)
    return matched(cutter, e, level)


def bound_of(cutter: Cutter, level: Level) -> dict[str, Any]:
    """What a row says of the size that it was cut to: that of the first method at the same sparsity."""
    table = cutter.subject.table
    assert table.reference is not None
    if level not in cutter.limits:
        cutter.limits[level] = cutter.ranked(table.reference, level).row["after"]
    resource = table.match or "macs"
    return {"to": table.reference.name, "resource": resource, "bound": cutter.limits[level][RESOURCE_KEYS[resource]]}


def matched(cutter: Cutter, e: Entry, level: Level) -> Cut:
    """The largest network of a method that costs no more than the first method's, by bisection over its sparsity.

    Raises Infeasible when its smallest network costs more.
    """
    assert e.ranking is not None
    about = bound_of(cutter, level)
    key, bound = RESOURCE_KEYS[about["resource"]], about["bound"]
    cells = SNIP_LEVELS if e.ranking.method == "snip" else cutter.graph.n

    def at(kept: int) -> Cut:
        return cutter.ranked(e, max(0.0, 1 - (kept + 0.5) / cells))  # such that just `kept` are ranked in

    best, least = at(cells), None
    low, high = 0, cells
    if best.row["after"][key] > bound:
        best = least = at(0)
    while least is not None and high - low > 1:
        middle = (low + high) // 2
        found = at(middle)
        if found.row["after"][key] <= bound:
            low, best = middle, found
        else:
            high = middle
    if best.row["after"][key] > bound:
        raise too_large(e.name, level, about, best.row["after"][key])
    sparsity = {**best.row["sparsity"], "requested": level}
    return replace(best, row={**best.row, "sparsity": sparsity, "matched": about})


def too_large(name: str, level: Level, about: dict[str, Any], least: int) -> Infeasible:
    word = RESOURCE_WORDS[about["resource"]]
    return Infeasible(
        f"{name} at sparsity {level}: its smallest network has {least:,} {word}, {about['to']} has "
        f"{about['bound']:,}; leave this method or this sparsity out"
    )


# -- the same network, narrower


def full_width(subject: Subject) -> int:
    """The value of the factory's --width-arg as the network is given; BadInput when there is no such number."""
    name, factory = str(subject.width_arg), subject.factory()
    what = spelled("width_arg", name)
    if factory is None:
        raise BadInput(
            f"{what}: method 'width' builds narrower networks; give MODEL as file.py:Name of a class or function, "
            "or in Python the class or function itself"
        )
    check_args(factory, {**subject.model_args, name: 1}, what)
    declared = inspect.signature(factory).parameters.get(name)
    value = subject.model_args.get(name, None if declared is None else declared.default)
    if type(value) is not int or value < 1:
        told = "has no default" if value is None or value is inspect.Parameter.empty else f"is {value!r}"
        raise BadInput(
            f"{what}: {told}; wants a whole number from 1 on: give it as {spelled('model_args', {name: Word('N')})}"
        )
    return value


def narrowed(cutter: Cutter, level: Level) -> Cut:
    """The same factory at the largest width whose network costs no more than the first method's.

    A width that the factory does not take (one that groups or heads do not divide) is passed over.
    Raises Infeasible when none is narrow enough.
    """
    subject, about = cutter.subject, bound_of(cutter, level)
    name, whole = str(subject.width_arg), full_width(cutter.subject)
    key, bound = RESOURCE_KEYS[about["resource"]], about["bound"]
    seen: dict[int, tuple[dict[str, Any], list[Layer]] | None] = {}
    low, high = 0, whole + 1  # narrow enough, too wide

    def look(width: int) -> tuple[dict[str, Any], list[Layer]] | None:
        if width not in seen:
            try:
                traced = trace_costs(subject.build(cutter.seed, **{name: width}), cutter.example, both_modes=True)
                seen[width] = traced.costs, list(traced.layers.values())
            except BadInput:  # not a width of this factory, or its network does not take the input
                seen[width] = None
        return seen[width]

    while True:
        between = sorted(range(low + 1, high), key=lambda width: abs(width - (low + high) // 2))
        middle = next((width for width in between if look(width) is not None), None)
        if middle is None:
            break
        found = look(middle)
        assert found is not None
        low, high = (middle, high) if found[0][key] <= bound else (low, middle)
    best = seen.get(low)
    if best is None:
        least = min((found[0][key] for found in seen.values() if found), default=cutter.before[key])
        raise too_large("width", level, about, least)
    costs, layers = best
    sizes = [len(layer.neurons) for layer in layers]
    row: dict[str, Any] = {"method": "width", "width": {"argument": name, "value": low, "of": whole}}
    row |= {**cutter.costs(level, sum(sizes), costs), "matched": about}
    row |= {"feasible": True, "floored": [], "layers_kept": sizes}
    return Cut(row, subject.build(cutter.seed, **{name: low}))
