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
from collections.abc import Iterable
from typing import Any

USER_EXCEPTIONS = (Exception, SystemExit)  # what the user's own code may raise, caught once and shown as one line


class RanpError(Exception):
    """Base of the errors that are shown as one line and an exit code."""

    exit_code = 1


class RuleFailure(RanpError):
    """The rule of an op raised; the message names the op, the cause is chained."""


class BadInput(RanpError, ValueError):
    """The user gave something that cannot be used."""

    exit_code = 2


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
    """Ctrl-C while `score` was at work, with at least one mini-batch done: `.scores` has what is there."""

    def __init__(self, scores: Any, batches: int) -> None:
        super().__init__(f"stopped after {batches} mini-batches")
        self.scores, self.batches = scores, batches


def nearest(given: str, known: Iterable[str]) -> str:
    """The tail of a message on an unknown name: `; did you mean 'mem'? (known: flops, mem)`."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    return f"{guess} (known: {', '.join(known)})"


def in_words(error: BaseException, most: int = 200) -> str:
    """`TypeError: what it says (at model.py:12)`: what the user's code raised, and where in that code."""
    where, text = user_line(error), " ".join(str(error).split())[:most]
    return f"{type(error).__name__}: {text}{f' (at {where})' if where else ''}"


def user_line(error: BaseException) -> str:
    """The innermost line of the user's code that an exception passed, as file:line."""
    where, tb = "", error.__traceback__
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        if (
            "/torch/" not in file
            and "ranp_cli/" not in file.replace("ranp_cli/models", "")
            and not file.startswith("<")
        ):
            where = f"{file.rpartition('/')[2]}:{tb.tb_lineno}"
        tb = tb.tb_next
    return where
