"""Run the command line as a process: signals first, then the commands, then the exit code."""

from __future__ import annotations

import sys

from .process import ignore_signal_handlers, install_signal_handlers, is_main_process, stopped_by


def main() -> None:
    """Run the command line and leave with its exit code."""
    install_signal_handlers()
    try:
        from .commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the command line was imported, or an error shown
        name, code = stopped_by()
        if is_main_process():
            sys.stderr.write(f"ranp: error: stopped by {name}; nothing was written\n")
    ignore_signal_handlers()
    sys.exit(code)
