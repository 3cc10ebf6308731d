"""The state of a Pruner, as `state_dict` gives it and a file may have changed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core.documents import check_form, shown
from ..core.errors import BadInput

FORMAT = "ranp-pruner"
WRITE = "give what state_dict() of a Pruner returned"
REMOVAL = {
    "updates": int,
    "units": int,
    "removed": int,
    "neurons": int,
    "params": int,
    "macs": int,
    "loss?": float,
    "metric?": float,
    "layers": {str: int},
}
FORM = {
    "method": {"name": str},
    "kept": {str: object},
    "held": {str: {str: [int]}},
    "attributes": {str: {str: object}},
    "verified": {str: object},
    "sums": {str: {"high": object, "low": object}},
    "losses": [float],
    "spent": float,
    "finished": bool,
    "removals": [REMOVAL],
    "overwritten": {str: [int]},
}
NUMBERS = ("updates", "since", "batches")


def checked_state(state: Any, fingerprint: str, method: Mapping[str, Any]) -> dict[str, Any]:
    """The state, with kept indices as lists; BadInput where it is none, or of another network or method."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT or state.get("version") != 1:
        raise BadInput(f"this is no state of a Pruner, but {shown(state)}; {WRITE}")
    if state.get("fingerprint") != fingerprint:
        raise BadInput(
            "the state is of a Pruner of another network: its parameters differ; give the dense network that it was made of"
        )
    state = {"overwritten": {}, **state}  # which a state of an earlier version lacks
    check_form({key: state.get(key) for key in FORM}, FORM, "the Pruner's state", WRITE)
    if dict(state["method"]) != dict(method):
        raise BadInput(
            f"the state is of a Pruner with the method {shown(state['method'].get('name'))}, or of other settings of it; make the "
            "Pruner with the same ones"
        )
    for key in NUMBERS:
        if type(state.get(key)) is not int or state[key] < 0:
            raise BadInput(f"'{key}' of the Pruner's state is {shown(state.get(key))}; {WRITE}")
    if unknown := {name for row in state["removals"] for name in row} - {name.rstrip("?") for name in REMOVAL}:
        raise BadInput(f"a removal of the Pruner's state has {shown(min(unknown))}; {WRITE}")
    kept = {name: _indices(name, t) for name, t in state["kept"].items()}
    for name, pair in state["sums"].items():
        _check_sum(name, pair, len(kept.get(name, ())))
    return {**state, "kept": kept}


def _check_sum(name: str, pair: Mapping[str, Any], neurons: int) -> None:
    tensors = [pair["high"], pair["low"]]
    sound = all(isinstance(t, torch.Tensor) and t.is_floating_point() and t.ndim in (1, 2) for t in tensors)
    if not sound or tensors[0].shape != tensors[1].shape or len(tensors[0]) != neurons:
        raise BadInput(f"'sums' of the Pruner's state has no scores of the {neurons} neurons of {name[-80:]}; {WRITE}")


def _indices(name: str, t: Any) -> list[int]:
    found = indices_of(t)
    if found is None:
        raise BadInput(f"'kept' of the Pruner's state has no indices of {name[-80:]}; {WRITE}")
    return found


def indices_of(t: Any) -> list[int] | None:
    """A vector of whole numbers as a list; None for anything else."""
    if not isinstance(t, torch.Tensor) or t.dtype != torch.int64 or t.ndim != 1:
        return None
    return [int(i) for i in t]
