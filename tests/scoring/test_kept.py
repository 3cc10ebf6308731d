"""A scoring that is killed, hangs or is stopped: what was done is kept, and going on from it gives the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import done, in_this_process, start

from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput
from ranp_cli.io.slim_file import SCORES, read_document

NET = """
import os, signal, time, torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1))

def loader():
    g = torch.Generator().manual_seed(0)
    for k in range(8):
        if os.environ.get("AT") == str(k) and os.environ.get("RANK", "0") == os.environ.get("OF", "0"):
            if "SENDS" in os.environ:
                os.kill(os.getpid(), getattr(signal, os.environ["SENDS"]))
            time.sleep(float(os.environ.get("SLEEPS", 0)))
        yield torch.rand(2, 1, 6, 6, 6, generator=g), torch.randint(3, (2, 6, 6, 6), generator=g)
"""
SCORE = ["score", "net.py:net", "--batch", "net.py:loader", "-q", "-o"]
OFTEN = ["--save-every", "0.000001"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the scores of a run that nobody stopped."""
    path = tmp_path_factory.mktemp("kept")
    (path / "net.py").write_text(NET)
    assert in_this_process([*SCORE, "whole.safetensors"], path) == (0, "")
    return path


def finish(folder: Path, name: str, least: int, processes: int = 0) -> None:
    """Go on from what was kept, to the bytes of the run that nobody stopped; nothing else is left in the folder."""
    about = read_document(folder / name, SCORES)
    assert about["unfinished"]
    assert least <= about["batches"] < 8
    again = [*SCORE, name, "--resume", name]
    code, err = done(start(again, folder, processes))[::2] if processes else in_this_process(again, folder)
    assert code == 0, err
    assert (folder / name).read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert not [each for each in os.listdir(folder) if each.startswith(".")]


def test_what_was_done_outlives_sigkill(folder):
    code, _, _ = done(start([*SCORE, "a.safetensors", *OFTEN], folder, AT="5", SENDS="SIGKILL"))
    assert code == -signal.SIGKILL
    finish(folder, "a.safetensors", 5)


@pytest.mark.slow
def test_nothing_is_kept_where_nothing_was_asked_for(folder):
    """A negative control."""
    code, _, _ = done(start([*SCORE, "b.safetensors", "--save-every", "0"], folder, AT="5", SENDS="SIGKILL"))
    assert code == -signal.SIGKILL
    assert not (folder / "b.safetensors").exists()


@pytest.mark.slow
def test_prune_says_that_the_scores_are_unfinished(folder):
    assert done(start([*SCORE, "u.safetensors", *OFTEN], folder, AT="5", SENDS="SIGKILL"))[0] == -signal.SIGKILL
    _, out, err = done(start(["prune", "net.py:net", "--scores", "u.safetensors", "--sparsity", "0.5"], folder))
    assert err == ""
    assert "scores of 5 mini-batches: ranp score was stopped before its end" in " ".join(out.split())


@pytest.mark.slow
def test_many_processes_keep_what_all_have_done(folder):
    code, _, _ = done(start([*SCORE, "c.safetensors", *OFTEN], folder, 2, AT="6", SENDS="SIGKILL"))
    assert code != 0
    finish(folder, "c.safetensors", 4)


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_all_and_keeps(folder):
    code, _, err = done(start([*SCORE, "d.safetensors"], folder, 2, AT="4", SENDS="SIGINT", OF="1"))
    assert code != 0
    assert "ranp: error: stopped by Ctrl-C; the scores of 6 mini-batches were written to d.safetensors" in err
    finish(folder, "d.safetensors", 6, processes=2)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_job_with_its_number(folder):
    began = time.monotonic()
    arguments = [*SCORE, "e.safetensors", *OFTEN, "--timeout", "3"]
    code, _, err = done(start(arguments, folder, 2, AT="5", SLEEPS="600", OF="1"))
    assert code != 0
    assert "ranp: error: process 1 of 2 hangs: the others have waited 3 s for it (--timeout)" in err
    assert time.monotonic() - began < 90
    finish(folder, "e.safetensors", 4)


@pytest.mark.parametrize("given", [["--save-every", "-1"], ["--save-every", "nan"], ["--timeout", "0"]])
def test_seconds_that_make_no_sense(given, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run([*SCORE, "f.safetensors", *given]) == 2
    assert given[0] in capsys.readouterr().err


def test_they_are_the_options_of_a_keyword_too():
    import ranp_cli as ranp

    with pytest.raises(BadInput, match="save_every=-1"):
        ranp.score("net.py:net", "calib.pt", save_every=-1)


# -- kills at random

FORKED = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"
import torch, ranp_cli as ranp
torch.set_num_threads(1)
from ranp_cli.cli import run
words = sys.argv[1:]
run([*words, "-o", "warm.safetensors"])  # so that what a fork does is short
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os._exit(run([*words, *line.split()]))
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


@pytest.fixture
def opened():
    """Open something that is closed after the test, however that ends."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prune", "score"])
def test_250_kills_at_random_lose_nothing(command, folder, tmp_path, opened):
    """The outputs are those of before or the new ones, as a pair; the next run leaves nothing but its outputs."""
    (tmp_path / "net.py").write_text(NET)
    words = [command, "net.py:net", "--batch", "net.py:loader", "-q"]
    words += ["--sparsity", "0.5"] if command == "prune" else OFTEN
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    forks = opened(subprocess.Popen([sys.executable, "-c", FORKED, *words], cwd=tmp_path, **pipes))
    assert forks.stdin is not None
    assert forks.stdout is not None
    assert forks.stdout.readline() == "ready\n"
    outputs = ["o.safetensors", "o.json"]
    second = "--mask" if command == "prune" else "--json"

    def fork(seconds: float | None) -> None:
        forks.stdin.write(f"-o {outputs[0]} {second} {outputs[1]}\n")
        forks.stdin.flush()
        pid = int(forks.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert forks.stdout.readline() == "ended\n"

    began = time.monotonic()
    fork(None)
    takes = time.monotonic() - began
    places = [tmp_path / name for name in outputs]
    whole, pair = (place.read_bytes() for place in places)
    rng, early, mixed = random.Random(1), 0, 0
    for k in range(250):
        for place in places:
            place.write_bytes(b"old")
        fork(rng.uniform(0.2, 1) * takes)
        first, other = (place.read_bytes() for place in places)
        if first not in (b"old", whole):
            assert command == "score"
            assert read_document(places[0], SCORES)["unfinished"]
        elif command == "prune":
            assert other in (b"old", pair)
            mixed += (first == whole) != (other == pair)
        early += first != whole
        if k % 25 == 0:
            fork(None)
            assert places[0].read_bytes() == whole
            left = {name for name in os.listdir(tmp_path) if not name.startswith("warm")} - {
                "net.py",
                "__pycache__",
                *outputs,
            }
            assert not left
    assert early > 25, "hardly any run was killed before its end: this test tests nothing"
    assert mixed <= 1  # between two renames; `profile` tells of it
    forks.stdin.close()
    assert forks.wait(60) == 0
