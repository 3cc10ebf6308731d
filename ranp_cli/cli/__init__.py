"""The command line: commands, their options, the config file, and signals."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Run a command in this process and return its exit code: the door for scripts and tests.

    Args:
        argv: the words of the command line behind `ranp`, such as `["profile", "model.py:Net"]`.
    """
    from .commands import run as run_command

    return run_command(argv)
