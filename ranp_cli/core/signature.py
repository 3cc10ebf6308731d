"""Check the signature of an input, as a mask, a slim file or a file of scores records it, before anything is made of it."""

from __future__ import annotations

import math
from typing import Any

from .documents import check_form, shown
from .errors import BadInput

FLOATING = frozenset({"float32", "float64", "float16", "bfloat16"})
EXACT = frozenset({"int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128"})
MOST_ELEMENTS = 2**40  # of a tensor on meta, which takes no memory
MOST_EXACT = 2**27  # of one that is made for real: indices are read by the networks


def check_signature(signature: Any, what: str, advice: str) -> None:
    """BadInput unless it is `{"args": ..., "kwargs": ...}` of nested lists, dicts, `{shape, dtype}` and plain values."""
    check_form(signature, {"args": {str: list}, "kwargs": {str: dict}}, what, advice, "model.input")
    for side, kind in (("args", ("list", "tuple")), ("kwargs", ("dict",))):
        if len(signature[side]) != 1 or next(iter(signature[side])) not in kind:
            raise BadInput(
                f"{what}: 'model.input.{side}' is {shown(signature[side])}, wants {{'{kind[0]}': ...}}; {advice}"
            )
        _check(signature[side], what, advice)


def _check(value: Any, what: str, advice: str) -> None:
    if not isinstance(value, dict):
        raise BadInput(f"{what}: 'model.input' holds {shown(value)}, wants an object; {advice}")
    if "shape" in value:
        check_form(value, {"shape": [int], "dtype": FLOATING | EXACT}, what, advice, "model.input")
        most = MOST_ELEMENTS if value["dtype"] in FLOATING else MOST_EXACT
        if len(value["shape"]) > 16 or math.prod(value["shape"]) > most or 0 in value["shape"]:
            raise BadInput(
                f"{what}: 'model.input' has the shape {value['shape'][:8]}, which no network takes; {advice}"
            )
        return
    for key, kind in (("list", list), ("tuple", list), ("dict", dict)):
        if key in value:
            check_form(value[key], kind, what, advice, f"model.input.{key}")
            for part in value[key].values() if kind is dict else value[key]:
                _check(part, what, advice)
            return
    check_form(value, {"value": (None, bool, int, float, str)}, what, advice, "model.input")
