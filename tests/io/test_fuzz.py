"""Damaged files of every kind end in one line and exit code 2, whatever the damage: no traceback, hang, code or much memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest

CHUNK = 500


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    yield fuzzing.good_files()
    os.chdir(here)


def test_good_files_are_read(files):
    problems = {name: fuzzing.attempt(name, data, codes=(0,)) for name, data in files.items()}
    assert not any(problems.values()), problems


def test_300_damaged_files(files, one_thread):
    problems = fuzzing.fuzz(files, 300, seed=0)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 11_000, CHUNK))
def test_10_000_damaged_files(start, tmp_path):
    code = (
        f"import sys; sys.path[:0] = {[str(Path(fuzzing.__file__).parent)]!r}; import fuzzing; files = fuzzing.good_files(); "
        f"problems = fuzzing.fuzz(files, {CHUNK}, {start}); print(*problems, sep='\\n'); sys.exit(bool(problems))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
