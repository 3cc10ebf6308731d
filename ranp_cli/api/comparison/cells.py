"""Cells: what was trained, one network under one seed each, kept in a file from which a later run goes on.

The file has one JSON object a line: a header, then a cell a line, appended whole, under a lock, and on the disk before
the next one is trained. Numbers that JSON has no form for are null (NaN) and the texts "inf" and "-inf".
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ... import __version__
from ...core.atomic import strict
from ...core.errors import BadInput
from ...core.signals import undivided
from ...core.spelling import spelled
from ..options import COMPARE

FORMAT, VERSION = "ranp-cells", 1
KEYWORDS = {"--batch": "batches", **{option.flag: option.keyword for option in COMPARE.options}}
TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")

Key = tuple[str, str, int]  # method, sparsity, seed
Cell = dict[str, Any]


def key_of(method: str, level: float | str, seed: int) -> Key:
    return method, str(level), seed


def named(key: Key) -> str:
    """A cell in words: `ranp-mem at sparsity 0.5, seed 1`."""
    return f"{key[0]} at sparsity {key[1]}, seed {key[2]}"


def number(value: Any) -> float:
    """A number as `strict` wrote it."""
    return math.nan if value is None else float(value)


class Cells:
    """The cells that are held, in memory and (with a path) on file.

    Args:
        path: the file, or None for a run that keeps none.
        about: the header: what the network is, and with which options the cells are trained.
        resume: go on from what is on file; without, a file that exists already is an error.
        total: how many cells the run has.
        shared: other processes of the same torchrun job append to the same file.

    Raises: BadInput for a file that is no such file, was trained otherwise, or is in the way.
    """

    def __init__(
        self, path: str | Path | None, about: dict[str, Any], resume: bool, total: int, shared: bool = False
    ) -> None:
        self.path = None if path is None else Path(path)
        self.total = total
        job = ":".join(os.environ.get(name, "") for name in TORCHRUN) if shared else None
        self.header = json.loads(
            json.dumps(
                {"format": FORMAT, "version": VERSION, "ranp": __version__, **strict(about), "job": job}, default=str
            )
        )
        self.held: dict[Key, Cell] = {}
        if self.path is None or not self.path.exists():
            if resume:
                raise BadInput(
                    f"{spelled('resume', self.path)}: no such file; check the path, or give it as {spelled('cells')} to begin"
                )
            return
        first = self._read()
        mine = first is not None and job is not None and first.get("job") == job
        if not resume and not mine and (first is not None or self.path.stat().st_size):
            raise BadInput(
                f"{self.path} exists, and hours of work are not overwritten; go on with {spelled('resume', self.path)}, "
                f"or give another {spelled('cells')}"
            )
        if first is not None:
            self._check(first)

    def add(self, cell: Cell) -> None:
        """Keep a cell: it is on the disk when this returns; a signal waits until then."""
        cell = json.loads(json.dumps(strict(cell)))
        if self.path is None:
            self._hold(cell)
            return
        with undivided():
            try:
                with locked(self.path, "a+b") as file:
                    _drop_torn(file)
                    text = "" if file.seek(0, os.SEEK_END) else json.dumps(self.header) + "\n"
                    file.write((text + json.dumps(cell) + "\n").encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise BadInput(
                    f"cannot write {self.path}: {error.strerror}; free space, and go on with {spelled('resume', self.path)}"
                ) from error
            self._hold(cell)

    def refresh(self) -> int:
        """Hold what other processes have appended since; how many cells are held."""
        if self.path is not None and self.path.exists():
            self._read()
        return len(self.held)

    def advice(self, keys: set[Key]) -> str:
        """The end of a message when a run stops: what is kept of these cells, and how to go on."""
        if self.path is None:
            return "mend it and start again"
        kept = len(keys & self.held.keys())
        if not kept:
            return "no cell was trained so far: mend it and start again"
        return f"{kept} of {self.total} cells are kept: mend it and go on with {spelled('resume', self.path)}"

    def _hold(self, cell: Cell) -> None:
        self.held.setdefault(key_of(cell["method"], cell["sparsity"], cell["seed"]), cell)

    def _read(self) -> dict[str, Any] | None:
        """The header on file (None: nothing whole is there); its cells are held. What a torn last line says is not read."""
        assert self.path is not None
        try:
            with locked(self.path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]
        except OSError as error:
            raise BadInput(f"cannot read {self.path}: {error.strerror}; give a file of cells") from error
        first: dict[str, Any] | None = None
        for k, line in enumerate(lines):
            try:
                content = json.loads(line)
                if k == 0:
                    if (content["format"], content["version"]) != (FORMAT, VERSION):
                        raise ValueError
                    first = content
                else:
                    self._hold({**content, "metrics": dict(content["metrics"]), "row": dict(content["row"])})
            except (ValueError, KeyError, TypeError):
                raise BadInput(
                    f"{self.path}, line {k + 1}: is no {'header' if k == 0 else 'cell'} of ranp compare with {spelled('fit')}; "
                    f"give a file that it wrote, or another {spelled('cells')}"
                ) from None
        return first

    def _check(self, first: dict[str, Any]) -> None:
        """BadInput when the cells on file were trained otherwise."""
        if first["model"]["fingerprint"] != self.header["model"]["fingerprint"]:
            raise BadInput(
                f"{self.path}: its cells are of another network: the parameters differ; give the same model, or another {spelled('cells')}"
            )
        for name, now in self.header["options"].items():
            then = first["options"].get(name)
            if then != now:
                raise BadInput(
                    f"{self.path}: its cells were trained {_given(name, then)}, not {_given(name, now)}; "
                    f"go on {_given(name, then)}, or give another {spelled('cells')}"
                )


def _given(name: str, value: Any) -> str:
    """An option of the header as it was given; `name` is its flag there, or words."""
    keyword = KEYWORDS.get(name, name.removeprefix("--").replace("-", "_"))
    is_option = name.startswith("--")
    if value is None or value in ([], {}):
        return f"without {spelled(keyword) if is_option else name}"
    return f"with {spelled(keyword, value) if is_option else f'{name} {value}'}"


@contextmanager
def locked(path: Path, mode: str) -> Iterator[BinaryIO]:
    """The open file, for this process alone; where there are no such locks (Windows) there is one process only."""
    with open(path, mode) as file:
        assert isinstance(file, (io.BufferedRandom, io.BufferedReader))
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # goes with the file
        yield file


def _drop_torn(file: BinaryIO) -> None:
    """Cut off a last line that has no end: its process was killed while it wrote."""
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
