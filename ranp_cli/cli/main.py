"""Run the command line as a process: signals first, then the commands, then the exit code."""

from __future__ import annotations

import gc
import sys

from ..core.atomic import what_was_written
from ..core.start_up import own_process, uncollected
from .process import (
    ignore_signal_handlers,
    install_signal_handlers,
    is_main_process,
    mute,
    open_standard_streams,
    say,
    stopped_by,
)


def main() -> None:
    """Run the command line and leave with its exit code."""
    open_standard_streams()
    install_signal_handlers()
    own_process()
    try:
        with uncollected():
            from .commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while an error was shown
        name, code = stopped_by()
        if is_main_process():
            say(f"stopped by {name}; {what_was_written()}")
    ignore_signal_handlers()
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            mute(number)
        except OSError as error:
            mute(number)
            if number == 1 and not code:
                say(f"cannot write to stdout: {error.strerror}; {what_was_written()}")
                code = 2
    gc.freeze()  # the process ends: its last collection would look through all that goes anyway
    sys.exit(code)
