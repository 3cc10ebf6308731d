"""One scoring by several processes (torchrun, gloo): the same bytes as by one, and nothing when one of them dies."""

from __future__ import annotations

import json
import os

import pytest
from paths import SAMPLES
from processes import done, in_this_process, start
from safetensors import safe_open

from ranp_cli.scoring.distributed import WorkerGroup

MODEL = f"{SAMPLES / 'model.py'}:UNet3D"
LOADER = """
import os, torch

def loader(n=5):
    g = torch.Generator().manual_seed(0)
    for k in range(n):
        if k == 2 and os.environ.get("RANK", "alone") == os.environ.get("DIES"):
            os._exit(9)
        yield torch.rand(2, 1, 8, 8, 8, generator=g), torch.randint(6, (2, 8, 8, 8), generator=g)

def three():
    return loader(3)

def uneven():
    return loader(3 if os.environ.get("RANK") == "1" else 5)

class Sized:
    def __len__(self):
        return 3 if os.environ.get("RANK") == "1" else 5
    def __iter__(self):
        yield from loader(1)
        raise ValueError("this is not read so far")

sized = Sized()

def broken():
    yield from loader(1)
    raise ValueError("the disk is gone")

def broken_once():
    yield from loader(2)
    if os.environ.get("RANK") == "1":
        raise ValueError("the disk is gone")
    yield from three()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the scores of one process."""
    path = tmp_path_factory.mktemp("spread")
    (path / "loader.py").write_text(LOADER)
    code, err = in_this_process(["score", MODEL, "--batch", "loader.py:loader", "-o", "one.safetensors"], path)
    assert code == 0, err
    return path


def test_shares_are_all_and_none_twice():
    for size in (1, 2, 3, 7):
        each = [list(WorkerGroup(rank, size).mine("abcde", start=1)) for rank in range(size)]
        assert sorted(pair for share in each for pair in share) == [(1, "b"), (2, "c"), (3, "d"), (4, "e")]
        assert [len(share) for share in each] == [WorkerGroup(rank, size).share(4) for rank in range(size)]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_many_processes_give_the_bytes_of_one(processes, folder):
    name = f"of{processes}.safetensors"
    code, out, err = done(
        start(["score", MODEL, "--batch", "loader.py:loader", "-o", name, "--json", "-"], folder, processes)
    )
    assert code == 0, err
    assert (folder / name).read_bytes() == (folder / "one.safetensors").read_bytes()
    assert json.loads(out)["method"]["batches"] == 5  # one document: of process 0 alone


@pytest.mark.slow
def test_they_go_on_together(folder):
    some = ["--batches", "1", "-o", "some.safetensors", "-q"]
    assert done(start(["score", MODEL, "--batch", "loader.py:loader", *some], folder))[0] == 0
    more = ["--resume", "some.safetensors", "-o", "whole.safetensors", "-q"]
    code, _, err = done(start(["score", MODEL, "--batch", "loader.py:loader", *more], folder, 2))
    assert code == 0, err
    assert (folder / "whole.safetensors").read_bytes() == (folder / "one.safetensors").read_bytes()


@pytest.mark.slow
def test_a_process_without_a_share_does_no_harm(folder):
    few = ["score", MODEL, "--batch", "loader.py:three", "--batches", "1", "-q", "-o"]
    assert done(start([*few, "alone.safetensors"], folder))[0] == 0
    assert done(start([*few, "idle.safetensors"], folder, 2))[0] == 0
    assert (folder / "idle.safetensors").read_bytes() == (folder / "alone.safetensors").read_bytes()
    with safe_open(folder / "idle.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ranp"])["batches"] == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_under_torchrun(folder):
    arguments = ["score", MODEL, "--batch", "loader.py:loader", "-o", "none.safetensors"]
    code, _, err = done(start(arguments, folder, 2, DIES="1"))
    assert code != 0
    assert "rank      : 1" in err
    assert not list(folder.glob("*none*"))


@pytest.mark.slow
def test_the_others_say_that_one_is_gone(folder):
    """Without torchrun, which would stop them: each finds out for itself."""
    port = 29500 + os.getpid() % 2000
    arguments = ["score", MODEL, "--batch", "loader.py:loader", "-o", "none.safetensors"]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DIES": "1"}
    first, second = (start(arguments, folder, RANK=str(rank), **job) for rank in range(2))
    assert done(second)[0] == 9
    code, _, err = done(first)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("ranp: error: process 0 of 2: another process of this job ended before its share was")
    assert "nothing more was written" in line
    assert not (folder / "none.safetensors").exists()
    assert not list(folder.glob("*none*"))


def test_other_commands_are_the_work_of_one_process(folder):
    arguments = ["prune", MODEL, "--batch", "loader.py:loader", "--sparsity", "0.5", "-o", "none.safetensors"]
    code, err = in_this_process(arguments, folder, RANK="0", WORLD_SIZE="2")
    assert code == 2
    assert "ranp prune is the work of one process, torchrun started 2: run ranp score with torchrun" in err


def test_auto_is_no_matter_for_many(folder):
    arguments = ["score", MODEL, "--batch", "loader.py:loader", "--precision", "auto", "-o", "none.safetensors"]
    code, err = in_this_process(arguments, folder, RANK="0", WORLD_SIZE="2")
    assert code == 2
    assert "--precision auto decides on one process' first mini-batch" in err


UNEVEN = "process 0 is given 5 mini-batches and process 1 is given 3; every process must see the same ones"


@pytest.mark.slow
@pytest.mark.parametrize(("loader", "line"), [
    ("sized", UNEVEN), ("uneven", UNEVEN),
    ("broken", "mini-batch 1: ValueError: the disk is gone"),
    ("broken_once", "mini-batch 2: ValueError: the disk is gone"),
])  # fmt: skip
def test_torchrun_shows_one_line(loader, line, folder):
    """Whether every process has it to say or one of them."""
    code, out, err = done(
        start(["score", MODEL, "--batch", f"loader.py:{loader}", "-o", "none.safetensors"], folder, 2)
    )
    assert code == 1  # torchrun's own
    assert [line in said for said in err.splitlines() if said.startswith("ranp:")] == [True]
    assert not out
    assert not list(folder.glob("*none*"))
