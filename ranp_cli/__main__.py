"""`ranp` and `python -m ranp_cli`.

Nothing is imported here but what the interpreter has loaded: a signal that comes while the rest is imported ends the process
at once, with one line and the exit code of a shell.
"""

from __future__ import annotations

import os
import signal


def _leave(signum: int, frame: object) -> None:
    """End the process: nothing has begun yet."""
    name = b"Ctrl-C" if signum == signal.SIGINT else b"SIGTERM"
    if os.environ.get("RANK", "0") == "0":
        try:  # noqa: SIM105  contextlib is not imported yet
            os.write(2, b"ranp: error: stopped by " + name + b"; nothing was written\n")
        except OSError:
            pass  # nobody reads it; the exit code says the same
    os._exit(128 + signum)


def main() -> None:
    """Run the command line and leave with its exit code."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        # SIGTERM is left to torchrun, which ends its processes with it; what is ignored (nohup) stays so
        if signal.getsignal(signum) is not signal.SIG_IGN and not (signum == signal.SIGTERM and "RANK" in os.environ):
            signal.signal(signum, _leave)
    from .cli.main import main as run

    run()


if __name__ == "__main__":
    main()
