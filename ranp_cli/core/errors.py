"""Every error that a user may meet, and the exit code that goes with it.

    RanpError                 1  (never raised itself)
    |- RuleFailure            1  a rule of ours (or one that the user registered) raised: a bug in it
    |- BadInput               2  bad usage or bad input: what was given, what is wanted, what to do
    |  `- PeerGone            2  another process of a torchrun job ended: its own message says more
    |- Infeasible             3  what was asked for cannot be met; says the closest
    |- VerificationFailed     4  the slim network is not the masked one; nothing was written
    |- GateExceeded           5  a budget gate of `profile` is exceeded
    `- Stopped              130  Ctrl-C on the command line, or 143, SIGTERM; says what was written

A message is one line: what was given, what is wanted, what to do next.
"""

from __future__ import annotations

import difflib
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from typing import Any

from .paths import is_ours
from .spelling import spelled

MESSAGE = 287  # characters of a message at most: with `ranp: error: ` before it a line of 300
USER_EXCEPTIONS = (Exception, SystemExit)  # what the user's own code may raise, caught once and shown as one line


class RanpError(Exception):
    """Base of the errors that are shown as one line and an exit code."""

    exit_code = 1


class RuleFailure(RanpError):
    """The rule of an op raised; the message names the op, the cause is chained."""


class BadInput(RanpError, ValueError):
    """The user gave something that cannot be used. Of a message that is too long the middle is left out.

    Args:
        whole: leave nothing out, as the message holds a command to type.
    """

    exit_code = 2

    def __init__(self, message: object = "", whole: bool = False) -> None:
        super().__init__(message if whole else shortened(message))


class PeerGone(BadInput):
    """Another process of a torchrun job ended before its share was in."""


class Infeasible(RanpError):
    """The request is well-formed, but no network meets it; `kinds`: the budgets that none meets."""

    exit_code = 3

    def __init__(self, message: str, kinds: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.kinds = tuple(kinds)


class VerificationFailed(RanpError):
    """slim(x) differs from masked(x) by more than the law allows."""

    exit_code = 4


class GateExceeded(RanpError):
    """A `profile --max-...` bound is exceeded."""

    exit_code = 5


class Stopped(RanpError):
    """Ctrl-C or SIGTERM on the command line; says what was written."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while `score` was at work, with something done: `.scores` has what is there."""

    def __init__(self, scores: Any, batches: int) -> None:
        units = len(scores.begun)
        self.what = f"{batches} mini-batches" + f" and of {units} units on the next one" * bool(units)
        super().__init__(f"stopped after {batches} mini-batches{f' and {units} units' * bool(units)}")
        self.scores, self.batches = scores, batches


class FitsInterrupted(KeyboardInterrupt):
    """Ctrl-C while `compare` trained cells: `kept` of `total` are on file in `path` (None: nowhere)."""

    def __init__(self, kept: int, total: int, path: Any) -> None:
        where = (
            f" are kept in {path}"
            if path is not None
            else " were trained, and none is kept: there was no file of cells"
        )
        super().__init__(f"stopped; {kept} of {total} cells{where}")
        self.kept, self.total, self.path = kept, total, path


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that this machine's memory (or a GPU's) is not enough: of Python, numpy or torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def memory_advice(error: BaseException) -> str:
    """The line for an error of memory: how much was wanted, where it is known, and what helps."""
    text = str(error)
    amount = re.search(
        r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)|Unable to allocate ([\d.]+ [KMGT]?i?B)", text, re.I
    )
    wanted = ""
    if amount is not None:
        bytes_ = amount[1] if (amount[2] or "").lower() == "bytes" else None
        size = f"{int(bytes_) / 2**20:,.0f} MiB" if bytes_ else amount[3] or f"{amount[1]} {amount[2]}"
        wanted = f": {size} more were wanted"
    return (
        f"out of memory{wanted}; give smaller {spelled('batches')} or fewer samples in it, smaller {spelled('inputs')}, "
        f"{spelled('low_memory', True)} or {spelled('memory_limit')} where there is such an option, or a machine with more"
    )


_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|std::bad_alloc", re.I)


def nearest(given: str, known: Iterable[str]) -> str:
    """The tail of a message on an unknown name: `; did you mean 'mem'? (known: flops, mem)`."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    return f"{guess} (known: {', '.join(known)})"


def shortened(message: object, most: int = MESSAGE) -> str:
    """A message on one line of at most so many characters; its beginning and its end are kept."""
    text = " ".join(str(message).splitlines())
    if len(text) <= most:
        return text
    tail = (most - 5) // 3
    return f"{text[: most - 5 - tail]} ... {text[-tail:]}"


def one_line(error: BaseException, most: int = 300) -> str:
    """`ValueError: the message`, on one line and not endless."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    text = f"{text[:most]}..." if len(text) > most else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def in_words(error: BaseException, most: int = 200) -> str:
    """`TypeError: what it says (at model.py:12)`: what the user's code raised, and where in that code."""
    path, _, line = user_line(error).rpartition(":")
    return one_line(error, most) + (f" (at {os.path.basename(path)}:{line})" if path else "")


def user_line(error: BaseException) -> str:
    """`path/file.py:3`, the deepest line of the user's own code behind `error`, else of a library but torch; or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    libraries = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib", "platlib"))
    torch = tuple(os.path.join(library, "torch", "") for library in libraries)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", *torch))]
    frames = [f for f in frames if not is_ours(f.filename)]
    frames = [f for f in frames if not f.filename.startswith(libraries)] or frames
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
