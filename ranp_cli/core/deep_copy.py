"""A deep copy of a module with what `copy.deepcopy` stumbles over: locks, open files, `__slots__`."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)` that shares what cannot be copied (locks, open files) and takes `__slots__` along."""
    kept = dict(memo)
    try:
        result = copy.deepcopy(model, memo)
    except TypeError:
        memo.clear()
        memo.update(kept)
        _share(model, memo)
        result = copy.deepcopy(model, memo)
    for old, new in zip(model.modules(), result.modules(), strict=True):
        for slot in {name for kind in type(old).__mro__ for name in _slots(kind)}:
            if hasattr(old, slot) and slot not in ("__dict__", "__weakref__"):
                setattr(new, slot, copy.deepcopy(getattr(old, slot), memo))
    return result


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _share(value: Any, memo: dict[int, Any], seen: set[int] | None = None) -> None:
    """Note in `memo` the parts of `value` that cannot be copied as copies of themselves."""
    seen = set() if seen is None else seen
    if id(value) in memo or id(value) in seen:
        return
    seen.add(id(value))
    try:
        copy.deepcopy(value, dict(memo))
    except TypeError:
        if isinstance(value, dict):
            parts = list(value.values())
        elif isinstance(value, (list, tuple)):
            parts = list(value)
        else:
            parts = list(getattr(value, "__dict__", {}).values())
        for part in parts:
            _share(part, memo, seen)
        try:
            copy.deepcopy(value, dict(memo))
        except TypeError:  # it is not for its parts
            memo[id(value)] = value
