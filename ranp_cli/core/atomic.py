"""Write files whole or not at all, and all those of one run together; check first that they can be written.

Beside an output NAME there are, while a run is going to write it, hidden files:

    .NAME.ranp-lock    locked (flock) by that run, so that no other one writes to the same place
    .NAME.ranp-part    what it writes, renamed to NAME at the end

A run that is killed leaves them; the next run that writes to the same folder removes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import BadInput
from .signals import undivided

T = TypeVar("T")
PATIENCE = 2.0  # seconds, for another run that is about to end
LOCK, PART = ".ranp-lock", ".ranp-part"
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)  # file systems that cannot sync a folder

written: list[str] = []  # the files of this run of the command line, which tells it when it is stopped


def what_was_written() -> str:
    return f"written before: {', '.join(written)}" if written else "nothing was written"


# -- checks


def check_output(path: str | Path) -> Path:
    """BadInput when a file cannot be written there: asked before the long work, not after it. Where links lead to."""
    path = Path(path)
    try:
        place = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise BadInput(f"cannot write {short(path)}: it is a folder; give a file name")
            if not stat.S_ISREG(mode):
                return path  # a device or a pipe: written through, as it cannot be replaced
        if not place.parent.is_dir():
            raise BadInput(
                f"cannot write {short(path)}: the folder {short(path.parent)} does not exist; make it or give another path"
            )
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise BadInput(
                f"cannot write {short(path)}: the folder {short(place.parent)} is read-only; give another path"
            )
    except OSError as error:
        raise BadInput(f"cannot write {short(path)}: {error.strerror}; give another path") from error
    except BadInput:
        raise
    except ValueError as error:  # a NUL
        raise BadInput(f"cannot write {short(path)}: {error}; give another path") from error
    return place


def short(path: str | Path, most: int = 120) -> str:
    """A path on one line, and not endless."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 + 3 :]}"


# -- one output


@dataclass
class _Target:
    """One output of a run: where it goes, the lock on it, and what is to come there."""

    path: Path  # as it was given
    place: Path  # where links lead to
    lock: int | None = None  # file descriptors
    device: int | None = None
    waiting: bytes | None = None  # for a device
    part: Path | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn errors of the system into BadInput."""
        try:
            yield
        except OSError as error:
            already = f"; {what_was_written()}" if written else ""
            raise BadInput(
                f"cannot write {short(self.path)}: {error.strerror}; what was there is as it was{already}; "
                "free space or give another path"
            ) from error

    def reserve(self) -> None:
        """Lock the place, or open the device."""
        with self.writing():
            if os.path.lexists(self.place) and not self.place.is_file():
                self._open_device()
            else:
                _sweep(self.place.parent)
                self.lock = _lock(self._beside(LOCK), self.path)

    def stage(self, data: bytes) -> None:
        """Write the data to a temporary file in the same folder, and on to the disk."""
        if self.device is not None:
            self.waiting = data
            return
        part = self._beside(PART) if self.lock is not None else self._beside(f".{os.getpid()}.{id(self)}{PART}")
        with self.writing():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            old = None
            with contextlib.suppress(FileNotFoundError):
                old = os.stat(self.place)
            private = 0o666 if old is None else 0o600
            fd = again(os.open, part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), private)
            self.part = part
            try:
                _write_all(fd, data)
                if old is not None:
                    _like(fd, old)
                again(os.fsync, fd)
            finally:
                os.close(fd)

    def commit(self) -> None:
        """Bring what was staged into its place."""
        with self.writing():
            if self.waiting is not None and self.device is not None:
                _write_all(self.device, self.waiting)
                self.waiting = None
            elif self.part is not None:
                again(os.replace, self.part, self.place)
                self.part = None
            else:
                return
        written[:] = dict.fromkeys([*written, self.path.name])

    def drop(self) -> None:
        """Remove what was not committed."""
        if self.part is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.part)
            self.part = None

    def release(self) -> None:
        self.drop()
        if self.lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._beside(LOCK))
            os.close(self.lock)
            self.lock = None
        if self.device is not None:
            os.close(self.device)
            self.device = None

    def _open_device(self) -> None:
        try:
            self.device = os.open(self.place, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(self.place).st_mode):
                why = "nobody reads from this pipe; start its reader first, or give a file"
                raise BadInput(f"cannot write {short(self.path)}: {why}") from error
            raise
        os.set_blocking(self.device, True)

    def _beside(self, suffix: str) -> Path:
        return self.place.with_name(_hidden(self.place.name, suffix))


# -- the outputs of one run


@dataclass
class _Outputs:
    """The outputs of one run, by place."""

    targets: dict[Path, _Target] = field(default_factory=dict)

    def target(self, path: str | Path) -> _Target:
        place = check_output(path)
        if place not in self.targets:
            target = _Target(Path(path), place)
            self.targets[place] = target
            target.reserve()
        return self.targets[place]

    def commit(self, targets: Iterable[_Target]) -> None:
        """Rename one after the other, devices first; then sync the folders."""
        targets = sorted(targets, key=lambda target: target.device is None)
        folders = {target.place.parent: target for target in targets if target.part is not None}
        for target in targets:
            target.commit()
        for folder, target in folders.items():
            try:
                _sync_folder(folder)
            except OSError as error:
                raise BadInput(
                    f"{what_was_written()}, but the disk has not confirmed it ({short(target.path)}: {error.strerror}); "
                    "check the disk, then the files"
                ) from error

    def release(self) -> None:
        for target in self.targets.values():
            target.release()


_current: ContextVar[_Outputs | None] = ContextVar("outputs", default=None)
_at_work: list[_Outputs] = []


@contextlib.contextmanager
def together(paths: Iterable[str | Path] = ()) -> Iterator[None]:
    """Files written inside come to their places together, at the end, when nothing has failed; on an error none does.

    Args:
        paths: what will be written. These places are locked from the start; BadInput when another run has one.
    """
    if _current.get() is not None:
        yield
        return
    outputs = _Outputs()
    token = _current.set(outputs)
    _at_work.append(outputs)
    try:
        for path in paths:
            outputs.target(path)
        yield
        with undivided():
            outputs.commit(outputs.targets.values())
    finally:
        with undivided():
            outputs.release()
            _at_work.remove(outputs)
            _current.reset(token)


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a whole file or none: to a temporary file in the same folder, fsync, rename. Inside of `together`, at its end.

    Raises BadInput when the folder is missing or cannot be written, or the disk is full; an older file is then whole.
    """
    with together():
        outputs = _current.get()
        assert outputs is not None
        outputs.target(path).stage(data)


def write_now(path: str | Path, data: bytes) -> None:
    """`write_atomic`, but for inside of `together`, where the file is written at once and its place stays locked."""
    with together():
        outputs = _current.get()
        assert outputs is not None
        target = outputs.target(path)
        target.stage(data)
        with undivided():
            outputs.commit([target])


def drop_unwritten() -> None:
    """Remove the temporary files and locks of this process, which is about to end."""
    for outputs in _at_work:
        outputs.release()


# -- the system


def again(call: Callable[..., T], *arguments: Any) -> T:
    """Make a system call, and once more when a signal has interrupted it."""
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            continue


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[again(os.write, fd, rest) :]


def _like(fd: int, old: os.stat_result) -> None:
    """Give a new file the owner, where that is allowed, and the mode of the one that it replaces."""
    new = os.fstat(fd)
    if hasattr(os, "fchown") and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(fd, old.st_uid, old.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(fd, stat.S_IMODE(old.st_mode))


def _sync_folder(folder: Path) -> None:
    try:
        fd = again(os.open, folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not read, or Windows: there is nothing to sync by
        return
    try:
        again(os.fsync, fd)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(fd)


def _hidden(name: str, suffix: str) -> str:
    """`.NAME.ranp-lock`; of a long name its hash."""
    hidden = f".{name}{suffix}"
    return hidden if len(os.fsencode(hidden)) <= 255 else f".{hashlib.sha256(os.fsencode(name)).hexdigest()}{suffix}"


def _lock(lock: Path, path: Path) -> int | None:
    """A file that is locked for this run; None where the system has no such locks."""
    end = time.monotonic() + PATIENCE
    while True:
        fd = again(os.open, lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            has = _flock(fd)
        except OSError:  # some network file systems, and Windows
            os.close(fd)
            os.unlink(lock)
            return None
        if has and _is_same(fd, lock):
            return fd
        os.close(fd)
        if not has and time.monotonic() > end:
            raise BadInput(
                f"cannot write {short(path)}: another ranp is writing here; wait for it to end, or give another path"
            )
        time.sleep(0.02)


def _flock(fd: int) -> bool:
    """Whether the lock could be had; OSError where there are none."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOTSUP, "no locks") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(fd: int, path: Path) -> bool:
    """Whether the open file still has that name: the run before has removed its lock."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _sweep(folder: Path) -> None:
    """Remove what killed runs have left in a folder: the temporary files whose lock nobody holds."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(".") and name.endswith(LOCK)]
    except PermissionError:
        return
    for name in names:
        lock = folder / name
        try:
            fd = os.open(lock, os.O_RDWR)
        except (FileNotFoundError, PermissionError):  # gone by now, or another user's
            continue
        try:
            if _flock(fd) and _is_same(fd, lock):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(folder / f"{name.removesuffix(LOCK)}{PART}")
                os.unlink(lock)
        except OSError:  # no locks here, or not ours to remove
            continue
        finally:
            os.close(fd)


# -- JSON


def strict(value: Any) -> Any:
    """`value` (nested dicts and lists) as strict JSON has it: no NaN, no infinities."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
