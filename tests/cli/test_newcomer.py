"""What a newcomer types, and what it says: masks beside the output, next steps, names of files, completion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ranp_cli
from ranp_cli.cli import run

NET = """from torch import nn
class Net(nn.Sequential):
    def __init__(s): super().__init__(nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 2, 1))
"""
PRUNE = "prune net.py:Net --batch b.pt --sparsity 0.5".split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    torch.save((torch.rand(2, 1, 4, 4, 4), torch.randint(2, (2, 4, 4, 4))), "b.pt")
    return tmp_path


def files() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"net.py", "b.pt", "__pycache__", "conf.yaml"}


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("-o slim.safetensors", {"slim.safetensors", "slim.mask.json"}),
        ("-o a.v2.safetensors -o b.pt2", {"a.v2.safetensors", "b.pt2", "a.v2.mask.json"}),
        ("-o slim.safetensors --mask m.json", {"slim.safetensors", "m.json"}),
        ("-o slim.safetensors --mask none", {"slim.safetensors"}),
        ("--mask m.json", {"m.json"}),
        ("", set()),
    ],
)
def test_the_mask_goes_beside_the_first_output(here: Path, typed: str, written: set[str]) -> None:
    assert run([*PRUNE, *typed.split(), "--json", "-", "-q"]) == 0
    assert files() == written
    for name in written:
        if name.endswith(".json"):
            assert json.loads(Path(name).read_text())["format"] == "ranp-mask"


def test_mask_none_in_a_config_and_a_clash_of_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf.yaml").write_text("mask: none\noutput: slim.safetensors\n")
    assert run([*PRUNE, "--config", "conf.yaml", "-q"]) == 0
    assert files() == {"slim.safetensors"}
    assert run([*PRUNE, "-o", "s.safetensors", "--json", "s.mask.json", "-q"]) == 2
    assert "two outputs have the same name" in capsys.readouterr().err


def test_refine_goes_on_from_that_mask_and_writes_its_own(here: Path) -> None:
    assert run([*PRUNE, "-o", "slim.safetensors", "-q"]) == 0
    first = Path("slim.mask.json").read_bytes()
    refine = ["refine", "net.py:Net", "--mask", "slim.mask.json", "-q", "-o"]
    assert run([*refine, "again.safetensors"]) == 0
    assert json.loads(Path("again.mask.json").read_text())["layers"] == json.loads(first)["layers"]
    assert run([*refine, "slim.safetensors"]) == 0, "its input stays as it is"
    assert Path("slim.mask.json").read_bytes() == first


def test_python_writes_it_too(here: Path) -> None:
    sequential = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 2, 1))
    result = ranp_cli.prune(sequential, torch.load("b.pt"), sparsity=0.5)
    result.save("a.safetensors", mask=None)
    assert files() == {"a.safetensors"}
    result.save("a.safetensors")
    result.save("b.safetensors", mask="c.json")
    assert files() == {"a.safetensors", "a.mask.json", "b.safetensors", "c.json"}
    assert result.report.to_dict()["outputs"].keys() == files()
    assert ranp_cli.refine(sequential, "a.mask.json")[0].out_channels == result.model[0].out_channels


def test_the_last_lines_say_what_is_kept_and_what_is_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*argv: str) -> str:
        assert run(argv) == 0
        return " ".join(capsys.readouterr().out.split())

    assert said(*PRUNE).endswith("not written: the slim network; give -o slim.safetensors to keep it")
    text = said(*PRUNE, "-o", "slim.safetensors")
    assert "not written" not in text
    assert text.endswith("to count it: ranp profile slim.safetensors")
    assert "ranp_cli.load('slim.safetensors', model)" in text
    assert said("score", "net.py:Net", "--batch", "b.pt").endswith("give -o scores.safetensors to keep them")
    text = said("score", "net.py:Net", "--batch", "b.pt", "-o", "s.safetensors")
    following = text[text.rindex("next: ranp ") + len("next: ranp ") :]
    assert run([*following.split(), "-q"]) == 0, "what it says can be typed"


def test_what_is_fixed_is_named_once_and_a_budget_is_no_request(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PRUNE) == 0
    text = capsys.readouterr().out
    assert text.count("(network output)") == 1
    assert "requested" in text
    assert run(["prune", "net.py:Net", "--batch", "b.pt", "--budget", "macs=60%"]) == 0
    text = capsys.readouterr().out
    assert "(the largest network within the budget)" in text
    assert "requested" not in text


@pytest.mark.parametrize("name", ["slim.pth", "slim.pt", "slim.ckpt", "slim.bin"])
def test_names_of_pickles_are_told_the_better_one(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run([*PRUNE, "-o", name]) == 2
    assert "; give -o slim.safetensors, which holds the state dict, and no pickle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "offered"), [("ranp pr", {"prune", "profile"}), ("ranp prune --spars", {"--sparsity"})]
)
def test_shells_complete_it(words: str, offered: set[str]) -> None:
    asked = {"_RANP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    script = f"import os; os.environ.update({asked}); from ranp_cli.cli.main import main; import sys; sys.argv = ['ranp']; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_the_page_explains_itself(here: Path) -> None:
    assert run([*PRUNE, "--min-neurons", "12", "--allow-less", "--html", "page.html", "-q"]) == 0
    page = Path("page.html").read_text()
    for text in ("what goes", "what stays", '<span class="mark floor">', '<span class="mark fixed">', "fewest neurons of a layer: 12",
                 "<h2>Verification</h2>", "in fp32", "ops of the step, in order", "written 20", "Python 3.", "torch 2.", "device cpu"):  # fmt: skip
        assert text in page, text
    for key in ("min_neurons", "score_init", "max_rel"):
        assert key not in page
