"""What long work calls as it goes on: a bar on a terminal, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], Any]]]


def silent(description: str, total: int | None) -> AbstractContextManager[Callable[[], Any]]:
    """No bar."""
    return nullcontext(lambda: None)
