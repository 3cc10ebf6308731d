"""This process: its place in a job of torchrun, and Ctrl-C and SIGTERM, which are one KeyboardInterrupt.

Of all messages under torchrun one is wanted. Process 0 speaks at once. The others wait a little: when process 0 failed
as well, torchrun has ended them by then, and else what they say is theirs alone. What a process has only to say because
another is gone waits longest.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from ..core.errors import PeerGone, Stopped

AGAIN = 2.0  # seconds in which a second signal is the same wish as the first
WAIT, WAIT_LONGER = 3.0, 6.0  # seconds, for another process' message
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_last, _when = int(signal.SIGINT), -AGAIN


def launched() -> bool:
    """Whether torchrun (or what sets the same variables) started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process is the one of its job that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0 or not launched()


def speaks(error: BaseException) -> bool:
    """Whether this process is to say what went wrong; returns when it is its turn, if torchrun lets it live so long."""
    if not launched():
        return True
    if isinstance(error, PeerGone):
        time.sleep(WAIT_LONGER)
    elif not leads():
        if isinstance(error, Stopped) or hasattr(error, "format_message"):  # signals and typer's: the same in all
            return False
        time.sleep(WAIT)
    return True


def listen() -> None:
    """From now on both raise KeyboardInterrupt here, and kill as ever what the user's code forks.

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


def deafen() -> None:
    """The exit code stands: what is sent while the interpreter ends does not change it."""
    for signum in _NAMES:
        signal.signal(signum, signal.SIG_IGN)


def stopped_by() -> tuple[str, int]:
    """What the KeyboardInterrupt came from, and the exit code for it, as a shell gives it."""
    return _NAMES[signal.Signals(_last)], 128 + _last
