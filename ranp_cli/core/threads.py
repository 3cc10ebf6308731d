"""Whether other threads are alive that a seed for the whole process would disturb."""

from __future__ import annotations

import threading


class DrawsNothing(threading.Thread):
    """A thread of ours that draws no random numbers, so that it need not be shielded from a seed."""


def is_alone() -> bool:
    """Whether no other thread is alive that might draw random numbers."""
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    return all(isinstance(thread, DrawsNothing) for thread in others)
