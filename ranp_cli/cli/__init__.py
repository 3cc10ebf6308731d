"""The command line: commands, their options, the config file, and signals.

`run(argv)` runs a command in this process and returns its exit code; it is the door for scripts and tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .commands import run

    return run
