"""The place of this process in a job of torchrun, as the environment variables have it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import BadInput


@dataclass(frozen=True)
class Job:
    """`rank` of `size` processes; `local_rank` on its machine, None without torchrun."""

    rank: int = 0
    size: int = 1
    local_rank: int | None = None


def job() -> Job:
    """The job that WORLD_SIZE, RANK and LOCAL_RANK describe; BadInput for values that no launcher sets."""
    size, rank, local = _number("WORLD_SIZE", 1), _number("RANK", 0), _number("LOCAL_RANK", None)
    size = 1 if size is None else size
    if size < 1:
        raise BadInput(
            f"WORLD_SIZE={size} in the environment: wants a whole number from 1; unset it, or start with torchrun"
        )
    rank = rank if rank is not None and size > 1 else 0
    if rank >= size:
        raise BadInput(
            f"RANK={rank} in the environment, with WORLD_SIZE={size}: wants less; unset both, or start with torchrun"
        )
    return Job(rank, size, local)


def _number(name: str, default: int | None) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadInput(f"{name}={text[:40]} in the environment: wants a whole number; unset it, or start with torchrun")
    return int(text)
