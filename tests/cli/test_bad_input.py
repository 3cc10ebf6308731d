"""The command line given something wrong: one telling line, the exit code, nothing written; and its valid neighbour."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_command_lines import BAD
from command_lines import PRUNE, error_line, ranp

# Everything else that has to work: command lines
GOOD = [
    *(f"prune net.py:Net --batch {b} --sparsity 0.5" for b in ("list.pt", "calib.npz", "calib.safetensors")),
    "prune net.py:Net --batch 'one sample ü.pt' --sparsity 0.5",
    "prune net.py:Net --batch net.py:endless --batches 2 --sparsity 0.5",
    "prune net:Net --batch ./calib.pt --sparsity 0.5",
    "prune 'späce d/nët work.py' --batch calib.pt --sparsity 0.5 -o 'späce d/slïm.safetensors'",
    *(f"{PRUNE} --method {method}" for method in ("weighted", "vanilla", "random", "layerwise")),
    *(f"{PRUNE} --criterion {criterion}" for criterion in ("mpmg-max", "mnmg-sum", "neuron")),
    *(f"{PRUNE} --resource {resource}" for resource in ("none", "flops", "mem", "params")),
    f"{PRUNE} --loss net.py:mean --min-neurons 2 --lambda 0 --seed 3 --device cpu",
    f"{PRUNE} --weights weights.pt --keep enc --only enc --only mid --allow-less",
    "refine net.py:Net --mask mask.json --input 2x1x16x8x8",
    "profile net.py:Net --input 1x1x16x16x16 --depth 0",
    "profile slim.safetensors --input 1x1x16x16x16 --model net.py:Net",
    "profile slim.safetensors slim.safetensors",
]


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.jit as a whole


@pytest.mark.parametrize(
    ("line", "part"),
    [(form.format(bad), part) for form, _, rows in BAD for bad, part in rows.items()],
    ids=lambda text: text[:60] if text else "-",
)
def test_bad_input_is_one_telling_line(line: str, part: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = ranp(line)
    assert part in error_line(capsys)
    assert code == 2
    assert not (here / "PWNED").exists()


@pytest.mark.parametrize("line", [*(form.format(good) for form, good, _ in BAD), *GOOD])
def test_its_neighbour_works(line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp(line) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_no_cuda(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp(f"{PRUNE} --device cuda") == 2
    assert "device 'cuda' is not available here" in error_line(capsys)


def test_without_anything_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp("") in (0, 2)
    shown = "".join(capsys.readouterr())
    assert shown.startswith("Usage: ranp")
    assert "\n  prune " in shown


# -- exit codes


def test_keeping_nearly_everything_is_infeasible(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp(f"{PRUNE} --keep '*'") == 3
    assert "only 0.0% of the neurons could be removed where 50.0% was asked" in error_line(capsys)
    assert ranp(f"{PRUNE} --keep '*' --allow-less -q") == 0


def test_failed_verification_writes_nothing(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ranp_cli.api import select_and_refine

    build = select_and_refine.slim_model

    def corrupt(*args: Any) -> Any:
        slim, changed = build(*args)
        with torch.no_grad():
            slim.dec.weight.mul_(1.1)
        return slim, changed

    monkeypatch.setattr(select_and_refine, "slim_model", corrupt)
    end = f"-o {tmp_path}/s.safetensors --json {tmp_path}/r.json"
    assert ranp(f"{PRUNE} {end} --mask {tmp_path}/m.json") == 4
    assert "slim(x) differs from masked(x)" in error_line(capsys)
    assert ranp(f"refine net.py:Net --mask mask.json {end}") == 4
    assert os.listdir(tmp_path) == []


def test_bug_of_ours(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def bug(*args: Any, **kwargs: Any) -> None:
        raise KeyError("our own\nfault")

    monkeypatch.setattr("ranp_cli.api.ranking.select", bug)
    monkeypatch.delenv("RANP_DEBUG", raising=False)
    assert ranp(PRUNE) == 1
    assert "a bug of ranp: KeyError" in error_line(capsys)
    monkeypatch.setenv("RANP_DEBUG", "1")
    assert ranp(PRUNE) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


# -- scores and masks belong to weights


def test_scores_of_other_weights_are_refused(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = tmp_path / "scores.safetensors"
    assert ranp(f"score net.py:Net --batch calib.pt --seed 1 -q -o {scores}") == 0
    assert ranp(f"prune net.py:Net --scores {scores} --sparsity 0.5 -q") == 2
    assert "the scores are of other weights" in error_line(capsys)
    assert ranp(f"prune net.py:Net --scores {scores} --sparsity 0.5 --seed 1 -q") == 0


def test_a_mask_of_another_network_says_what_differs(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranp("refine net.py:Net --model-arg width=7 --mask mask.json -q") == 2
    assert "the mask is of another network: layer enc has 7 neurons, 6 in the mask" in error_line(capsys)
