"""Write files whole or not at all, and check first that they can be written."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadInput

written: list[str] = []  # the files of this run of the command line, which tells it when it is stopped


# -- bytes


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a whole file or none: to a temporary file in the same folder, fsync, rename.

    Raises BadInput when the folder is missing or cannot be written, or the disk is full; an older file is then whole.
    """
    path = Path(path)
    check_output(path)
    if path.exists() and not path.is_file():  # a device or a pipe: written through, as it cannot be replaced
        path.write_bytes(data)
        return
    path = path.resolve()
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        written.append(path.name)
    except BaseException as error:  # Ctrl-C too
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise BadInput(
            f"cannot write {path}: {error.strerror}; what was there is as it was; free space or give another path"
        ) from error


def strict(value: Any) -> Any:
    """`value` (nested dicts and lists) as strict JSON has it: no NaN, no infinities."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def check_output(path: str | Path) -> None:
    """BadInput when a file cannot be written there: asked before the long work, not after it."""
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"cannot write {path}: the folder {path.parent} does not exist; make it or give another path")
    if path.is_dir():
        raise BadInput(f"cannot write {path}: it is a folder; give a file name")
    if not os.access(path.parent, os.W_OK):
        raise BadInput(f"cannot write {path}: the folder {path.parent} is read-only; give another path")
