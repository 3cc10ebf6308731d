"""Sentences on the memory of a training step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.numbers import human_bytes

MOST_SAVED = 4  # modules that are named


def training_sentences(about: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a training step needs its memory for, and which modules save the most of it."""
    for error in [about[key] for key in ("error", "train_error") if key in about]:
        yield "memory:", "yellow", error
    if "train_parts" not in about:
        return
    parts, batch = about["train_parts"], about["samples"]
    names = {
        "parameters": "parameters",
        "gradients": "gradients",
        "optimizer": "optimiser state",
        "saved": "saved activations",
    }
    told = ", ".join(f"{name} {human_bytes(parts[key]).strip()}" for key, name in names.items() if parts[key])
    how = f"{about['optimizer']}, 16-bit autocast ({about['amp']['device']})" if "amp" in about else about["optimizer"]
    yield "training step:", "bold", f"batch of {batch}, {how}: {told}; peak at {about['train_peak_at']}"
    if rows := about.get("by_module"):
        most = [
            f"{row['module'] or 'the model itself'} {human_bytes(row['bytes']).strip()}" for row in rows[:MOST_SAVED]
        ]
        rest = sum(row["bytes"] for row in rows[MOST_SAVED:])
        most += [f"{len(rows) - MOST_SAVED} others {human_bytes(rest).strip()}"] * bool(rest)
        yield "saved by:", "bold", ", ".join(most)
