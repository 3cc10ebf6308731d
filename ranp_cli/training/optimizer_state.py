"""Cut the state that an optimiser keeps of a parameter, so that its next step is that of the parameter that is left."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import BadInput
from .slices import Indices, cut_tensor


def cut_state(
    optimizer: torch.optim.Optimizer,
    name: str,
    state: MutableMapping[str, Any],
    shape: tuple[int, ...],
    indices: Indices,
) -> Callable[[], None]:
    """What replaces the state of one parameter, once called; everything is computed before.

    A tensor of the parameter's shape loses the same indices; one that has a single element along some axes (as the factors of
    Adafactor) loses those of the others; numbers stay.

    Args:
        name, shape: of the parameter before the cut.
        indices: for each axis those that stay; None where all do.

    Raises: BadInput for a state that is laid out in another way.
    """
    new = {key: _cut(value, shape, indices) for key, value in state.items()}
    unknown = [key for key, value in new.items() if value is _UNKNOWN]
    if unknown:
        raise BadInput(
            f"{type(optimizer).__name__} keeps '{unknown[0]}' of {name} in a form that no unit can be removed from; use an "
            "optimiser whose state has the shape of its parameters, such as SGD, Adam or AdamW"
        )
    return lambda: state.update(new)


_UNKNOWN = object()


def _cut(value: Any, shape: tuple[int, ...], indices: Indices) -> Any:
    if isinstance(value, (list, tuple, dict)):
        parts = value.values() if isinstance(value, dict) else value
        return value if all(_is_number(part) for part in parts) else _UNKNOWN
    if _is_number(value):
        return value
    if not isinstance(value, Tensor) or value.ndim != len(shape):
        return _UNKNOWN
    if any(n not in (1, whole) for n, whole in zip(value.shape, shape, strict=True)):
        return _UNKNOWN
    return cut_tensor(
        value,
        [index if n == whole else None for n, whole, index in zip(value.shape, shape, indices, strict=True)],
    )


def _is_number(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, Tensor) and value.numel() <= 1)
    )


def checked_optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """One optimiser or several as a list; BadInput for anything else, and for one whose state cannot be cut."""
    found = [given] if isinstance(given, torch.optim.Optimizer) else list(given) if isinstance(given, Sequence) else []
    if not found or not all(isinstance(each, torch.optim.Optimizer) for each in found):
        raise BadInput(f"optimizer: is a {type(given).__name__}; give a torch.optim.Optimizer, or a list of them")
    if any(isinstance(each, torch.optim.LBFGS) for each in found):
        raise BadInput(
            "LBFGS keeps one history of all parameters, which no unit can be removed from; use SGD, Adam or AdamW"
        )
    return found
