"""Whether other threads are alive that a seed for the whole process would disturb."""

from __future__ import annotations

import threading


class DrawsNothing(threading.Thread):
    """A thread of ours that draws no random numbers, so that it need not be shielded from a seed."""


# packages whose threads show or send what there is: progress bars, notebooks, debuggers
HARMLESS = frozenset("tqdm ipykernel IPython zmq debugpy pydevd _pydevd_bundle tensorboard".split())


def is_alone() -> bool:
    """Whether no other thread is alive that might draw random numbers."""
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    return all(isinstance(thread, DrawsNothing) or package_of(thread) in HARMLESS for thread in others)


def package_of(thread: threading.Thread) -> str:
    """The package whose class a thread is of, or whose function a plain one runs."""
    of = type(thread) if type(thread) is not threading.Thread else getattr(thread, "_target", None)
    return str(getattr(of, "__module__", "")).partition(".")[0]
