"""A slim file and the mask beside it, which one run has written, or two: a kill between the two leaves a mixed pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST = 64 * 2**20  # bytes of a document that are read


def pair_note(path: str | Path, mask: dict[str, Any]) -> list[str]:
    """What is to be said of the mask beside a slim file: nothing, or that it is of another run.

    Args:
        mask: the mask that the slim file itself holds.
    """
    slim = Path(path)
    notes = []
    for beside in (slim.with_suffix(".mask.json"), slim.with_name("mask.json")):
        run = _run_of(beside)
        if run is not None and mask.get("run") is not None and run != mask["run"]:
            notes.append(
                f"{beside.name} is of another run ({run}) than {slim.name} ({mask['run']}): one was stopped between "
                "the two; the slim file holds its own mask"
            )
    return notes


def _run_of(path: Path) -> str | None:
    """The run that a mask is of; None where there is no mask, or none that can be read."""
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            return None
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    run = document.get("run") if isinstance(document, dict) and document.get("format") == "ranp-mask" else None
    return run if isinstance(run, str) else None
