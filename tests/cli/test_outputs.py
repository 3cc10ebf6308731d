"""What the command line writes: never over an input, never half a pair, and the right code when stdout is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ranp_cli as ranp
from ranp_cli.cli import run

NET = """
from torch import nn
import parts

def net():
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1))

def fit(model, seed):
    return 0.5
"""
PRUNE = "prune net.py:net --batch calib.pt --sparsity 0.5 -q"
PROFILE = "profile net.py:net"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "parts.py").write_text("")
    (tmp_path / "c.yaml").write_text("model: net.py:net\n")
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(2, 1, 6, 6, 6, generator=generator), torch.randint(3, (2, 6, 6, 6), generator=generator)
    torch.save(batch, "calib.pt")
    return tmp_path


@pytest.fixture
def files(here):
    """One good file of each kind that a command reads."""
    save_file({f"{k}.{name}": t for k, layer in ((0, torch.nn.Conv3d(1, 8, 3)), (2, torch.nn.Conv3d(8, 8, 3)), (4, torch.nn.Conv3d(8, 3, 1)))
               for name, t in layer.state_dict().items()}, "w.safetensors")  # fmt: skip
    assert run("score net.py:net --batch calib.pt -q -o s.safetensors".split()) == 0
    assert run(f"{PRUNE} --mask mask.json -o slim.safetensors".split()) == 0
    return here


COMMANDS = {
    "w.safetensors": f"{PRUNE} --weights w.safetensors -o {{}}",
    "net.py": f"{PROFILE} -q --json {{}}",
    "parts.py": f"{PROFILE} -q --json {{}}",
    "calib.pt": f"{PRUNE} --mask {{}}",
    "c.yaml": "profile --config c.yaml -q --json {}",
    "s.safetensors": "prune net.py:net --scores s.safetensors --sparsity 0.5 -q -o {}",
    "mask.json": "refine net.py:net --mask mask.json -q --json {}",
    "slim.safetensors": "profile net.py:net slim.safetensors -q --json {}",
}


def test_an_output_is_never_an_input_under_whatever_name(files, capsys):
    for name, line in COMMANDS.items():
        before = Path(name).read_bytes()
        os.link(name, f"hard-{name}")
        os.symlink(name, f"soft-{name}")
        for output in (name, f"./{name}", f"hard-{name}", f"soft-{name}"):
            code = run(line.format(output).split())
            said = capsys.readouterr().err
            assert (code, Path(name).read_bytes() == before) == (2, True), (line, output, said)
            assert "would be overwritten" in said
    assert run(f"{PROFILE} -q --json other.json".split()) == 0  # its valid neighbour
    assert run("score net.py:net --batch calib.pt -q --resume s.safetensors -o s.safetensors".split()) == 0


@pytest.mark.parametrize("name", ["calib.pt", "net.py", "w.safetensors", "soft.safetensors"])
def test_nor_is_it_in_python(files, name):
    os.symlink("calib.pt", "soft.safetensors")
    pruned = ranp.prune("net.py:net", "calib.pt", sparsity=0.5, weights="w.safetensors")
    before = Path(name).read_bytes()
    with pytest.raises(
        ranp.BadInput, match=f"{name} is read as `.*` and would be overwritten; give the output another"
    ):
        pruned.save_mask(name)
    if name.endswith(".safetensors"):
        with pytest.raises(ranp.BadInput, match="would be overwritten"):
            pruned.save(name)
        with pytest.raises(ranp.BadInput, match="would be overwritten"):
            ranp.score("net.py:net", "calib.pt", weights="w.safetensors").save(name)
    assert Path(name).read_bytes() == before
    pruned.save("slim.safetensors")


def test_a_mask_of_another_run_beside_a_slim_file_is_told(here, capsys):
    assert run(f"{PRUNE} -o slim.safetensors --mask slim.mask.json".split()) == 0
    assert run("profile slim.safetensors".split()) == 0
    assert "another run" not in capsys.readouterr().out
    first = Path("slim.mask.json").read_bytes()
    assert (
        run("prune net.py:net --batch calib.pt --sparsity 0.2 -q -o slim.safetensors --mask slim.mask.json".split())
        == 0
    )
    assert json.loads(first)["run"] != json.loads(Path("slim.mask.json").read_bytes())["run"]
    Path("slim.mask.json").write_bytes(first)
    assert run("profile slim.safetensors".split()) == 0
    assert "slim.mask.json is of another run" in " ".join(capsys.readouterr().out.split())


# -- processes


def ended(line: str, **variables: str) -> tuple[int, str]:
    """A shell line, in which `ranp` is the command; its exit code, and what it says on stderr."""
    ranp = f"{sys.executable} -m ranp_cli"
    ran = subprocess.run(["bash", "-c", line.replace("ranp ", f"{ranp} ")], capture_output=True, text=True, check=False,
                         timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", **variables})  # fmt: skip
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(("line", "code", "said"), [
    ("ranp --version >/dev/full", 2, "cannot write to stdout: No space left on device"),
    ("ranp profile slim.safetensors >/dev/full", 2, "cannot write to stdout: No space left on device; nothing was written"),
    ("ranp profile slim.safetensors --json a.json >/dev/full", 2, "cannot write to stdout: No space left on device; written before: a.json"),
    ("ranp profile slim.safetensors -q --json - >&-", 2, "cannot write to stdout: Bad file descriptor"),
    ("ranp profile slim.safetensors -q --json a.json >&-", 0, ""),
    ("set -o pipefail; ranp profile slim.safetensors | head -1", 0, ""),
    ("set -o pipefail; ranp profile slim.safetensors --max-params 1 | head -1", 5, "params"),
    ("ranp profile absent.safetensors 2>/dev/full", 2, ""),
    ("test -z \"$(ranp profile absent.safetensors 2>&-)\"; ranp profile absent.safetensors 2>&-", 2, ""),
])  # fmt: skip
def test_standard_streams_that_are_full_closed_or_read_no_more(line, code, said, files):
    found = ended(line)
    assert found[0] == code, found
    assert said in found[1]
    assert "bug" not in found[1]
    assert len(found[1].splitlines()) == bool(said)


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "abc"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "2", "RANK": "2"},
                                       {"WORLD_SIZE": "2", "RANK": "-1"}, {"WORLD_SIZE": "²"}])  # fmt: skip
def test_an_environment_that_no_launcher_makes_is_bad_input(variables, here, capsys, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["--version"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert any(name in said for name in variables)


SIGNALLED = """
import os, sys
from ranp_cli.__main__ import main

left = [int(os.environ["IMPORTS"])]

def hook(event, arguments):
    if event == "import":
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), int(os.environ["SENDS"]))

sys.addaudithook(hook)
main()
"""


@pytest.mark.parametrize("imports", [1, 50, 500, 1000])
@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_signal_during_an_import_is_one_line_and_a_shells_code(imports, number, code, name, here):
    """Of the command line, of torch, of the model: after so many imports, from our first line on."""
    words = PRUNE.split() if imports > 50 else PROFILE.split()
    ran = subprocess.run(
        [sys.executable, "-c", SIGNALLED, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", "IMPORTS": str(imports), "SENDS": str(int(number))},
    )
    assert (ran.returncode, ran.stderr) == (code, f"ranp: error: stopped by {name}; nothing was written\n")
