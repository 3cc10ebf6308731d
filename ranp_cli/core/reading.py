"""Read files of unknown origin: regular files only, no more than a bound, and nothing that unfolds to far more than it is."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import BadInput
from .numbers import human_bytes

VARIABLE = "RANP_MAX_READ"
TENSORS, DOCUMENT, YAML = 64 << 30, 64 << 20, 1 << 18  # bytes; PyYAML reads some 100 kB a second
HEAD_ROOM, UNFOLDS = 64 << 20, 100  # a file may unfold to so many bytes, and to so many times its size on top
MOST_NODES, MOST_LEVELS = 1_000_000, 100  # of nested lists and dicts
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def physical_memory() -> int:
    """Bytes of memory that this machine has; those of the largest file that is read, where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return TENSORS


def bound(most: int = TENSORS) -> int:
    """How many bytes may be read of one file: `most`, or what RANP_MAX_READ says; of a document no more than its own bound."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return most
    match = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise BadInput(f"{VARIABLE}={text[:40]!r}: wants a size in bytes, or one such as 8GiB; mend it or leave it out")
    chosen = int(match[1]) * _UNITS[match[2].upper()]
    return chosen if most == TENSORS else min(most, chosen)


@contextmanager
def opened(
    path: str | os.PathLike[str], what: str, most: int = TENSORS, wanted: str = ""
) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size; BadInput unless it is a regular file of at most `most` bytes.

    A FIFO or a device is refused at once: opening one would wait, and reading one may never end.

    Args:
        wanted: what to give instead, for a message in other words: `cannot read slim.safetensors: No such file or directory`.
    """
    try:
        place = Path(os.path.expanduser(path))
        handle = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if wanted:
            raise BadInput(f"cannot read {what}: {error.strerror}; {wanted}") from None
        if isinstance(error, FileNotFoundError):
            raise BadInput(f"{what}: no such file (looked in {place.resolve().parent}); check the path") from None
        raise BadInput(f"{what}: cannot be read ({error.strerror}); give a readable file") from None
    except (ValueError, RuntimeError) as error:  # a NUL in the name; the home of a user who is not known
        raise BadInput(f"{what}: is not a path ({error}); check its name") from None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        kind = os.strerror(errno.EISDIR) if stat.S_ISDIR(about.st_mode) else "a pipe, a socket or a device"
        raise BadInput(f"{what}: cannot be read ({kind}); give a readable file")
    with os.fdopen(handle, "rb") as file:
        allowed = bound(most)
        if about.st_size > allowed:
            advice = f"set {VARIABLE} to read more" if most == TENSORS else "check the path"
            raise BadInput(f"{what}: has {_size(about.st_size)}, and no more than {_size(allowed)} are read; {advice}")
        try:
            yield file, about.st_size
        except OSError as error:
            raise BadInput(f"{what}: cannot be read ({error.strerror or error}); give a readable file") from None


def readable(path: str | os.PathLike[str], what: str, wanted: str = "") -> Path:
    """`path` as a file that can be read, or one line that says why not."""
    with opened(path, what, wanted=wanted):
        return Path(os.path.expanduser(path))


def read_bytes(path: str | os.PathLike[str], what: str, most: int = DOCUMENT, wanted: str = "") -> bytes:
    """All bytes of a file; one that grows meanwhile is read to the bound."""
    with opened(path, what, most, wanted) as (file, _):
        data = file.read(bound(most) + 1)
    if len(data) > bound(most):
        raise BadInput(f"{what}: is longer than {_size(bound(most))}; check the path")
    return data


def check_unfolded(declared: int, size: int, what: str, holds: str) -> None:
    """BadInput where a file of `size` bytes declares so many bytes of content that it can only be damaged or a trap."""
    allowed = min(HEAD_ROOM + UNFOLDS * size, bound())
    if declared > allowed:
        raise BadInput(
            f"{what}: {holds} of {_size(declared)} in a file of {_size(size)}; at most {_size(allowed)} are taken from it: "
            "save the tensors whole and uncompressed (clone() before torch.save, numpy.savez)"
        )


def check_tree(tree: Any, what: str, seen: Callable[[Any], None]) -> None:
    """Call `seen` with each leaf of nested lists, tuples and dicts; BadInput where there are too many, or too deep.

    What is shared counts each time, so that a few lists that hold one another cannot keep us busy for ever.
    """
    level, nodes = [tree], 0
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, (list, tuple, set, frozenset)):
                below += value
            else:
                seen(value)
            if nodes + len(below) > MOST_NODES:
                raise BadInput(f"{what}: holds more than {MOST_NODES:,} values; give a file that holds less")
        nodes += len(below)
        level = below
        if not level:
            return
    raise BadInput(f"{what}: is nested more than {MOST_LEVELS} levels deep; give a flatter one")


def _size(count: int) -> str:
    return human_bytes(count).strip()
