"""The checkpoint of `prune(rounds=N)`: tensors, numbers and texts in a file of torch.save, read with weights_only."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.atomic import check_output, write_now
from ..core.documents import check_form, shown
from ..core.errors import BadInput
from ..core.spelling import spelled
from ..io.readers import read_torch
from .pruner_state import REMOVAL, indices_of

FORMAT = "ranp-rounds"
NETWORK = {
    "kept": {str: object},
    "held": {str: {str: [int]}},
    "attributes": {str: {str: object}},
    "verified": {str: object},
    "model": {str: object},
}
FORM = {**NETWORK, "rounds": [REMOVAL], "spent": float, "optimizers": [object]}
BEST = {**NETWORK, "round": int, "worth": float}


class RoundsFile:
    """The file; it is replaced as a whole after each round."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_output(self.path)

    def write(self, about: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """
        Args:
            about: what has to be the same for a run that goes on.
            state: where it goes on.
        """
        data = io.BytesIO()
        torch.save({"format": FORMAT, "version": 1, "about": dict(about), **state}, data)
        write_now(self.path, data.getvalue())

    def read(self, about: Mapping[str, Any]) -> dict[str, Any] | None:
        """What it holds; None where there is no file.

        Raises: BadInput for what is no such file, or of a run of another network or with other options.
        """
        if not self.path.exists():
            return None
        known = read_torch(self.path, f"{self.path}")
        if not isinstance(known, Mapping) or (known.get("format"), known.get("version")) != (FORMAT, 1):
            raise BadInput(f"{self.path}: this is no checkpoint of ranp prune with {spelled('rounds')}; {self._advice}")
        if not isinstance(known.get("about"), Mapping):
            raise self.broken("it does not say of which run")
        for key, now in about.items():
            then = known["about"].get(key)
            if then != now:
                parts = (
                    [k for k in now if not isinstance(then, Mapping) or then.get(k) != now[k]]
                    if isinstance(now, Mapping)
                    else []
                )
                what = {
                    "fingerprint": "network",
                    "weights": "weights",
                    "goal": "goal",
                    "fine_tuning": "fine-tuning",
                }.get(key, key)
                told = f" ({', '.join(parts)})" * bool(parts)
                raise BadInput(f"{self.path}: it is of a run with another {what}{told}; {self._advice}")
        self._check(known, FORM)
        if known.get("best") is not None:
            self._check(known["best"], BEST)
        rows = known["rounds"]
        if unknown := {name for row in rows for name in row} - {name.rstrip("?") for name in REMOVAL}:
            raise self.broken(f"a round has {shown(min(unknown))}")
        if len(rows) > about["goal"]["rounds"]:
            raise self.broken(f"it has {len(rows)} rounds")
        return dict(known)

    def _check(self, known: Any, form: Mapping[str, Any]) -> None:
        if not isinstance(known, Mapping):
            raise self.broken(f"it has {shown(known)} in place of a network")
        check_form({key: known.get(key) for key in form}, form, str(self.path), self._advice)
        for name, t in known["kept"].items():
            if indices_of(t) is None:
                raise self.broken(f"it has no indices of {name[-80:]}")

    def broken(self, why: Any) -> BadInput:
        return BadInput(
            f"{self.path}: the checkpoint cannot be gone on from ({str(why).splitlines()[0][:200]}); {self._advice}"
        )

    @property
    def _advice(self) -> str:
        return f"give the options of that run, or another {spelled('checkpoint')}"
