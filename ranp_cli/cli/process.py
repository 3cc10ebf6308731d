"""This process: its place in a job of torchrun, and Ctrl-C and SIGTERM, which are one KeyboardInterrupt.

Under torchrun only one process should print an error: rank 0 immediately. The other ranks wait first: when rank 0 failed as
well, torchrun ends them in that time; otherwise the error is theirs alone and they print it. An error that only says that
another process is gone waits longest.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from ..core.errors import PeerGone, Stopped

AGAIN = 2.0  # seconds in which a second signal counts as the first one again
WAIT, WAIT_LONGER = 3.0, 6.0  # seconds, for another process' message
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_last, _when = int(signal.SIGINT), -AGAIN


def launched() -> bool:
    """Whether torchrun (or what sets the same variables) started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this process is the one of its job that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0 or not launched()


def should_report(error: BaseException) -> bool:
    """Whether this rank reports the error; blocks until ranks with priority have had time to."""
    if not launched():
        return True
    if isinstance(error, PeerGone):
        time.sleep(WAIT_LONGER)
    elif not is_main_process():
        if isinstance(error, Stopped) or hasattr(error, "format_message"):  # signals and typer's: the same in all
            return False
        time.sleep(WAIT)
    return True


def install_signal_handlers() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt in this process; forked children keep the default.

    SIGTERM is left alone in a job of torchrun, which ends with it what waits for a process that is gone.
    """
    process = os.getpid()

    def stop(signum: int, frame: FrameType | None) -> None:
        global _last, _when
        if os.getpid() != process and signum == signal.SIGTERM:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        if time.monotonic() - _when >= AGAIN:
            _last, _when = signum, time.monotonic()
            raise KeyboardInterrupt

    for signum in [signal.SIGINT] if launched() else _NAMES:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup, or in the background of a script
            signal.signal(signum, stop)


def ignore_signal_handlers() -> None:
    """Ignore signals during interpreter shutdown, so that the exit code is kept."""
    for signum in _NAMES:
        signal.signal(signum, signal.SIG_IGN)


def stopped_by() -> tuple[str, int]:
    """What the KeyboardInterrupt came from, and the exit code for it, as a shell gives it."""
    return _NAMES[signal.Signals(_last)], 128 + _last
