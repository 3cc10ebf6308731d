"""This process: its place in a job of torchrun, its standard streams, and Ctrl-C and SIGTERM, which are one KeyboardInterrupt.

Under torchrun only one process should print an error: rank 0 immediately. The other ranks wait first: when rank 0 failed as
well, torchrun ends them in that time; otherwise the error is theirs alone and they print it. An error that only says that
another process is gone waits longest.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

from ..core.atomic import drop_unwritten, what_was_written
from ..core.errors import BadInput, PeerGone, Stopped
from ..core.job import Job, job

AGAIN = 2.0  # seconds in which a second signal counts as the first one again
WAIT, WAIT_LONGER = 3.0, 6.0  # seconds, for another process' message
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_last, _when = int(signal.SIGINT), -AGAIN
_came = False  # whether a signal has come since the command began


# -- the job


def _job() -> Job:
    """The job; this process alone where the environment makes no sense (`run` then says so)."""
    try:
        return job()
    except BadInput:
        return Job()


def launched() -> bool:
    """Whether torchrun (or what sets the same variables) started more than one process."""
    return _job().size > 1


def is_main_process() -> bool:
    """Whether this process is the one of its job that prints and writes."""
    return _job().rank == 0


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


# -- signals


def install_signal_handlers() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt in this process; forked children keep the default.

    Below an import the process ends at once instead: an import may swallow an exception or turn it into another one.
    SIGTERM is left alone in a job of torchrun, which ends with it what waits for a process that is gone.
    """
    process = os.getpid()

    def stop(signum: int, frame: FrameType | None) -> None:
        global _last, _when, _came
        if os.getpid() != process:
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            raise KeyboardInterrupt
        if time.monotonic() - _when < AGAIN:
            return
        _last, _when, _came = signum, time.monotonic(), True
        if _is_importing(frame):
            _leave()
        raise KeyboardInterrupt

    for signum in [signal.SIGINT] if launched() else _NAMES:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup, or in the background of a script
            signal.signal(signum, stop)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load" and frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave() -> None:
    """End this process from inside a signal handler, with its line and its exit code."""
    drop_unwritten()
    name, code = stopped_by()
    if is_main_process():
        say(f"stopped by {name}; {what_was_written()}")
    os._exit(code)


def ignore_signal_handlers() -> None:
    """Ignore signals during interpreter shutdown, so that the exit code is kept."""
    for signum in _NAMES:
        signal.signal(signum, signal.SIG_IGN)


def stopped_by() -> tuple[str, int]:
    """What the KeyboardInterrupt came from, and the exit code for it, as a shell gives it."""
    return _NAMES[signal.Signals(_last)], 128 + _last


def begin() -> None:
    """A command begins: no signal has come so far."""
    global _came
    _came = False


def signal_came() -> bool:
    """Whether a signal has come since the command began; what has failed since then may have failed of it."""
    return _came


# -- the standard streams


def open_standard_streams() -> None:
    """Give stdin, stdout and stderr a file where the caller has closed them, so that no output of ours takes their number.

    Writing to such a stdout fails then, as it should; what goes to such a stderr is lost.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def say(message: str) -> None:
    """Write one line to stderr, if anybody hears it."""
    with suppress(OSError):  # nobody does; the exit code says the same
        os.write(2, f"ranp: error: {message}\n".encode())


def mute(number: int) -> None:
    """What is written to stdout (1) or stderr (2) from now on is lost: nobody reads it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
