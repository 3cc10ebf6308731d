"""Ctrl-C and SIGTERM: one line, the exit code of a shell, no half-written file; and who speaks in a job of torchrun."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import PRUNE
from paths import SAMPLES
from processes import in_this_process

from ranp_cli.cli import process, run
from ranp_cli.core.atomic import write_atomic
from ranp_cli.core.errors import BadInput, PeerGone, Stopped
from ranp_cli.pruning.mask import Mask

MODEL = f"{SAMPLES / 'model.py'}:UNet3D"
LOADER = """
import atexit, os, signal, time, torch

def send(name):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.1)

def at_the_end():
    send("SIGINT")

def loader(n=3, stops=None):
    g = torch.Generator().manual_seed(0)
    for k in range(n):
        if k == stops:
            try:
                send(os.environ["SENDS"])
            finally:
                send("SIGINT")
                atexit.register(at_the_end)
        yield torch.rand(2, 1, 8, 8, 8, generator=g), torch.randint(6, (2, 8, 8, 8), generator=g)

def stops():
    return loader(stops=2)

def stops_at_once():
    return loader(stops=0)

def interrupted():
    raise KeyboardInterrupt
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "loader.py").write_text(LOADER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(*arguments, sends="SIGINT"):
    env = {**os.environ, "SENDS": sends, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-m", "ranp_cli", *arguments], capture_output=True, text=True, timeout=120,
                         check=False, env=env)  # fmt: skip
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    ("sends", "code", "name"),
    [("SIGINT", 130, "Ctrl-C"), pytest.param("SIGTERM", 143, "SIGTERM", marks=pytest.mark.slow)],
)
def test_score_saves_what_is_there_and_hears_it_once(sends, code, name, here):
    """Ctrl-C follows at once, and once more while the interpreter ends."""
    saved = ended("score", MODEL, "--batch", "loader.py:stops", "-o", "s.safetensors", sends=sends)
    wanted = f"ranp: error: stopped by {name}; the scores of 2 mini-batches were written to s.safetensors: go on with"
    assert saved == (code, f"{wanted} --resume s.safetensors\n")
    more = ["--resume", "s.safetensors", "-o", "s.safetensors", "-q"]
    assert in_this_process(["score", MODEL, "--batch", "loader.py:loader", *more], here) == (0, "")


def test_what_does_not_score_says_so_too(here):
    prune = ["prune", MODEL, "--batch", "loader.py:stops_at_once", "--sparsity", "0.5", "-o", "slim.safetensors"]
    assert ended(*prune, sends="SIGTERM") == (143, "ranp: error: stopped by SIGTERM; nothing was written\n")
    assert not Path("slim.safetensors").exists()


@pytest.mark.parametrize("line", ["score {} --batch loader.py:interrupted", "compare {} --batch loader.py:interrupted --sparsity 0.5",
                                  "prune {} --batch loader.py:interrupted --sparsity 0.5"])  # fmt: skip
def test_every_command_says_a_word(line, here, capsys):
    assert run(line.format(MODEL).split()) == 130
    assert capsys.readouterr().err == "ranp: error: stopped by Ctrl-C; nothing was written\n"


def test_what_was_written_before_is_named(here, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ranp_cli.reporting.show.show_report", stopped)
    arguments = ["--batch", "loader.py:loader", "--sparsity", "0.5", "--mask", "mask.json", "-o", "slim.safetensors"]
    for _ in range(2):  # the second run knows nothing of the first
        assert run(["prune", MODEL, *arguments]) == 130
        assert (
            capsys.readouterr().err == "ranp: error: stopped by Ctrl-C; written before: slim.safetensors, mask.json\n"
        )


def test_what_is_stopped_between_two_outputs_writes_none(here, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Mask, "save", stopped)
    before = set(os.listdir())
    arguments = ["--batch", "loader.py:loader", "--sparsity", "0.5", "--mask", "mask.json", "-o", "slim.safetensors"]
    assert run(["prune", MODEL, *arguments]) == 130
    assert capsys.readouterr().err == "ranp: error: stopped by Ctrl-C; nothing was written\n"
    assert set(os.listdir()) - {"__pycache__"} == before - {"__pycache__"}


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_stopped_write_leaves_no_temporary_file(where, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(where, stopped)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.json", b"new")
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


FORKS = """
import os, signal, time
from ranp_cli.cli.process import install_signal_handlers
install_signal_handlers()
child = os.fork()
if not child:
    time.sleep(60)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
"""


def test_what_a_loader_forks_is_ended_as_ever():
    ran = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(("rank", "error", "reports", "waits"), [
    ("0", BadInput("no"), True, []), ("1", BadInput("no"), True, [process.WAIT]),
    ("0", PeerGone("no"), True, [process.WAIT_LONGER]), ("1", PeerGone("no"), True, [process.WAIT_LONGER]),
    ("0", Stopped("no", 130), True, []), ("1", Stopped("no", 130), False, []),
])  # fmt: skip
def test_process_0_speaks_first(rank, error, reports, waits, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process.should_report(error) == reports
    assert slept == waits
    monkeypatch.setenv("WORLD_SIZE", "1")  # alone: at once
    assert process.should_report(error)
    assert slept == waits


@pytest.mark.parametrize(("line", "code"), [("score --help", 0), ("--version", 0), ("score --qq", 2)])
def test_usage_is_told_by_process_0_alone(line, code, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(line.split()) == code
        assert bool("".join(capsys.readouterr())) == (rank == "0")


# -- what needs a process of its own

WITHOUT_TORCH = """
import contextlib, io, sys
from ranp_cli.cli import run
for argv in (["--help"], ["--version"], *([name, "--help"] for name in ("score", "prune", "refine", "profile")),
             ["profile", "slim.safetensors"], ["profile", "slim.safetensors", "--json", "-"]):
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        assert run(argv) == 0, argv
    assert "torch" not in sys.modules, argv
    assert "Example: ranp" in page.getvalue() or "--help" not in argv, argv
print(page.getvalue())
"""


def python(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, timeout=120, **options)


def test_help_and_the_profile_of_a_slim_file_need_no_torch_and_no_source(home: Path, tmp_path: Path) -> None:
    (tmp_path / "slim.safetensors").write_bytes((home / "slim.safetensors").read_bytes())
    ran = python("-c", WITHOUT_TORCH, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    wanted = json.loads((home / "report.json").read_text())
    report = json.loads(ran.stdout)
    assert all(report[key] == wanted[key] for key in ("before", "after", "reduction", "layers", "sparsity", "neurons"))


def test_streams_and_exit_code_of_a_process(home: Path) -> None:
    env = {**os.environ, "NO_COLOR": "1"}
    ran = python("-m", "ranp_cli", *shlex.split(f"{PRUNE} --json -"), cwd=home, env=env)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["sparsity"]["requested"] == 0.5
    assert ran.stderr.startswith("ranp prune  net.py:Net")
    assert "\x1b" not in ran.stderr
    ran = python("-m", "ranp_cli", "prune", "--qq", cwd=home)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "ranp: error: No such option: --qq; see ranp --help\n"
