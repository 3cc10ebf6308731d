"""Files are written whole or not at all, whatever system call fails, and all outputs of a run together."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ranp_cli.core import atomic
from ranp_cli.core.atomic import together, write_atomic, write_now
from ranp_cli.core.errors import BadInput

OPEN_FOLDER = "open of the folder"
FSYNC_FOLDER = "fsync of the folder"
CALLS = ["open", "write", "fsync", "replace", OPEN_FOLDER, FSYNC_FOLDER]
ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EINTR]


@contextlib.contextmanager
def failing(call: str, number: int, folder: Path, times: int = 1) -> Iterator[list[str]]:
    """The system call fails `times` times, where it is one of writing an output. Gives the calls that failed."""
    failed: list[str] = []
    name = call.split()[0]
    original: Callable[..., Any] = getattr(os, name)

    def is_meant(first: Any, rest: tuple[Any, ...]) -> bool:
        if name == "open":
            is_folder = os.path.isdir(first)
            return is_folder if call == OPEN_FOLDER else str(first).endswith(atomic.PART)
        if name == "fsync":
            return stat.S_ISDIR(os.fstat(first).st_mode) == (call == FSYNC_FOLDER)
        return name != "write" or first > 2

    def fails(first: Any, *rest: Any, **named: Any) -> Any:
        if len(failed) < times and is_meant(first, rest):
            failed.append(name)
            raise OSError(number, os.strerror(number))
        return original(first, *rest, **named)

    setattr(os, name, fails)
    try:
        yield failed
    finally:
        setattr(os, name, original)


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_a_system_call_that_fails_once(call, number, tmp_path):
    """The old file or the new one, whole; the right word; nothing else in the folder."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    said = None
    with failing(call, number, tmp_path) as failed:
        try:
            write_atomic(path, b"new" * 1000)
        except BadInput as error:
            said = str(error)
    assert failed, "the call was not made: this test tests nothing"
    assert os.listdir(tmp_path) == ["a.json"]
    harmless = number == errno.EINTR or (call == OPEN_FOLDER and number == errno.EACCES)
    if harmless:
        assert said is None
    else:
        assert said is not None
        assert os.strerror(number) in said
    replaced = harmless or call in (OPEN_FOLDER, FSYNC_FOLDER)
    assert path.read_bytes() == (b"new" * 1000 if replaced else b"old")
    if said and not replaced:
        assert "what was there is as it was" in said
    if said and replaced:
        assert said.startswith("written before:")


def test_a_failing_call_is_noticed_by_this_harness(tmp_path):
    """A negative control: a writer without a temporary file loses the old content."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with failing("write", errno.ENOSPC, tmp_path), contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, b"new")
    assert path.read_bytes() == b""


@pytest.mark.parametrize("at", range(3))
def test_outputs_of_a_run_come_together_or_not_at_all(at, tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(b"old")

    def run(stops: bool) -> None:
        with together([tmp_path / name for name in "abc"]):
            for k, name in enumerate("abc"):
                if stops and k == at:
                    raise KeyboardInterrupt
                write_atomic(tmp_path / name, b"new")
                assert (tmp_path / name).read_bytes() == b"old"

    with pytest.raises(KeyboardInterrupt):
        run(stops=True)
    assert [(tmp_path / name).read_bytes() for name in "abc"] == [b"old"] * 3
    run(stops=False)
    assert [(tmp_path / name).read_bytes() for name in "abc"] == [b"new"] * 3
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_what_is_written_now_is_there_at_once_and_its_place_stays_locked(tmp_path):
    path = tmp_path / "s"
    with together([path]):
        write_now(path, b"some")
        assert path.read_bytes() == b"some"
        assert another_says(path).startswith(f"cannot write {path}: another ranp is writing here")
        write_atomic(path, b"all")
        assert path.read_bytes() == b"some"
    assert path.read_bytes() == b"all"
    assert another_says(path) == "written"


def another_says(path: Path) -> str:
    code = f"""
from ranp_cli.core import atomic
atomic.PATIENCE = 0.1
try:
    atomic.write_atomic({str(path)!r}, b"another")
    print("written")
except ValueError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


KILLED = """
import os, signal, sys
from ranp_cli.core.atomic import together, write_atomic
with together(sys.argv[1:]):
    for path in sys.argv[1:]:
        write_atomic(path, b"new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_leaves_the_next_one_removes(tmp_path):
    names = ["a", "x" * 250]
    ran = subprocess.run([sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in names)], check=False)
    assert ran.returncode == -9
    left = os.listdir(tmp_path)
    assert len(left) == 4
    assert all(name.startswith(".") for name in left)
    (tmp_path / ".mine").write_text("a hidden file of the user's")
    write_atomic(tmp_path / "b", b"other")
    assert sorted(os.listdir(tmp_path)) == [".mine", "b"]


def test_what_another_run_is_writing_is_left_alone(tmp_path):
    with together([tmp_path / "a"]):
        write_atomic(tmp_path / "a", b"new")
        left = set(os.listdir(tmp_path))
        assert another_says(tmp_path / "b") == "written"
        assert set(os.listdir(tmp_path)) == left | {"b"}
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_the_mode_of_a_file_that_is_replaced_is_kept(mode, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomic(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_mode_that_the_umask_gives(mask, tmp_path):
    code = f"import os; os.umask({mask}); from ranp_cli.core.atomic import write_atomic; write_atomic('a', b'')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "there" / "b")
    for data in (b"one", b"two"):
        write_atomic(tmp_path / "a", data)
        assert (tmp_path / "there" / "b").read_bytes() == data
    assert (tmp_path / "a").is_symlink()
    assert os.listdir(tmp_path / "there") == ["b"]


@pytest.mark.parametrize(("name", "said"), [
    ("x" * 300, "File name too long"), ("nul\0.json", "null"), ("loop", "Too many levels of symbolic links"),
    ("folder", "it is a folder"), ("absent/a", "does not exist"), ("file/a", "Not a directory"),
    ("pipe", "nobody reads from this pipe"), ("/dev/full", "No space left on device"),
])  # fmt: skip
def test_what_cannot_be_written_is_one_line(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    Path("file").write_text("")
    os.mkfifo("pipe")
    with pytest.raises(BadInput) as error:
        write_atomic(name, b"data")
    assert said in str(error.value)
    assert len(str(error.value)) <= 300
    assert "\n" not in str(error.value)


def test_threads_that_write_to_one_place_wait_for_each_other(tmp_path):
    def write(k: int) -> None:
        write_atomic(tmp_path / "a", bytes([k]) * 100_000)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((tmp_path / "a").read_bytes())) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_pair_that_is_saved_from_python_comes_together(tmp_path):
    import torch
    from torch import nn

    import ranp_cli as ranp

    net = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 1))
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(2, 1, 6, 6, 6, generator=generator), torch.randint(2, (2, 4, 4, 4), generator=generator)
    pruned = ranp.prune(net, batch, sparsity=0.5)
    (tmp_path / "slim.mask.json").mkdir()
    with pytest.raises(BadInput, match="it is a folder"):
        pruned.save(tmp_path / "slim.safetensors")
    assert os.listdir(tmp_path) == ["slim.mask.json"]
