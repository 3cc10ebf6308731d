"""An output is never an input: weights, mini-batches, scores, masks, config and source code are not overwritten."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import PathFinder

from ..core.atomic import short
from ..core.errors import BadInput


def refuse_inputs(outputs: Iterable[str], inputs: Iterable[tuple[str, str]]) -> None:
    """BadInput when an output is the file of an input, under whatever name.

    Args:
        inputs: (what it was given as, such as `--batch`; a path, or a spec such as `file.py:Name` or `package.module:Name`).
    """
    sources = [(given, file) for given, value in inputs for file in files_of(value)]
    for output in outputs:
        for given, file in sources:
            if file_id(output) is not None and file_id(output) == file_id(file):
                raise BadInput(
                    f"{short(output)} is read as {given} and would be overwritten; give the output another name"
                )


def refuse_loaded(outputs: Iterable[str]) -> None:
    """BadInput when an output is the source of a module that was imported meanwhile, such as a sibling of the model's."""
    there = {file_id(output): output for output in outputs}
    there.pop(None, None)
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())] if there else []
    for file in files:
        if isinstance(file, str) and (output := there.get(file_id(file))):
            raise BadInput(
                f"{short(output)} is imported by MODEL and would be overwritten; give the output another name"
            )


def file_id(path: str) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def files_of(value: str) -> list[str]:
    """The files that a path or a spec may stand for; a module is looked for without being imported."""
    target, _, name = value.rpartition(":")
    path = os.path.expanduser(target if target.endswith(".py") else value)
    return [path, *([] if not name or target.endswith(".py") else _module_files(target))]


def _module_files(module: str) -> list[str]:
    """The source of a module, and the `__init__.py` of each package above it."""
    found: list[str] = []
    path: Sequence[str] | None = [os.getcwd(), *sys.path]
    for part in module.split(".") if module else ():
        spec = PathFinder.find_spec(part, path) if path is not None else None
        if spec is None:
            return found
        if spec.origin:
            found.append(spec.origin)
        path = spec.submodule_search_locations
    return found
