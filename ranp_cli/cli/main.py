"""Run the command line as a process: signals first, then the commands, then the exit code."""

from __future__ import annotations

import sys

from .process import deafen, leads, listen, stopped_by


def main() -> None:
    """Run the command line and leave with its exit code."""
    listen()
    try:
        from .commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the command line was imported, or an error shown
        name, code = stopped_by()
        if leads():
            sys.stderr.write(f"ranp: error: stopped by {name}; nothing was written\n")
    deafen()
    sys.exit(code)
