"""Cells on file: what was trained is kept, gone on from and shared between processes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compared_nets import ARGS, FIT, UNET, WORDS, batch, net

import ranp_cli as ranp
from ranp_cli.api.comparison.training import HIDDEN, alone
from ranp_cli.cli import run
from ranp_cli.core.errors import FitsInterrupted


def table_of(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(name).read_text())))


def calls() -> int:
    return len(Path("calls.txt").read_text().splitlines())


def test_ctrl_c_keeps_the_cells_and_a_resumed_run_trains_the_rest(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f", "--seeds", "2", "-q"]
    assert run([*words, "--fit", "fit.py:stops_at_3", "-o", "c.jsonl"]) == 130
    line = "ranp: error: stopped by Ctrl-C; 2 of 4 cells are kept in c.jsonl: go on with --resume c.jsonl\n"
    assert capsys.readouterr().err == line
    assert calls() == 3
    assert run([*words, "--fit", "fit.py:stops_at_3", "--resume", "c.jsonl", "--csv", "t.csv"]) == 0
    assert calls() == 3 + 2
    assert run([*words, "--fit", "fit.py:size", "-o", "whole.jsonl", "--csv", "whole.csv"]) == 0
    means = [
        [(line["method"], line["mean"], line["macs"]) for line in table_of(name)] for name in ("t.csv", "whole.csv")
    ]
    assert means[0] == means[1]


def test_ctrl_c_in_python(here):
    with pytest.raises(KeyboardInterrupt) as stopped:
        ranp.compare(net(), batch(), sparsity=0.5, methods=["full"], fit="fit.py:stops_at_3", cells="c.jsonl")
    assert isinstance(stopped.value, FitsInterrupted)
    assert (stopped.value.kept, stopped.value.total) == (2, 3)


def test_an_error_of_fit_names_the_cell_and_the_line(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f", "--seeds", "2", "-o", "c.jsonl"]
    assert run([*words, "--fit", "fit.py:breaks_at_3"]) == 2
    err = capsys.readouterr().err
    assert "full at sparsity 0.0, seed 1: ValueError: no data (at fit.py:38); 2 of 4 cells are kept" in err
    assert "go on with --resume c.jsonl" in err
    assert err.count("\n") == 1


def test_a_torn_last_line_is_dropped_and_trained_again(here):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f", "--fit", "fit.py:counted", "--seeds", "2", "-q"]
    assert run([*words, "-o", "c.jsonl", "--csv", "a.csv"]) == 0
    whole = Path("c.jsonl").read_bytes()
    Path("c.jsonl").write_bytes(whole[:-20])
    assert run([*words, "--resume", "c.jsonl", "--csv", "b.csv"]) == 0
    assert calls() == 4 + 1
    assert len(Path("c.jsonl").read_bytes().splitlines()) == 5
    assert [json.loads(line).get("seed") for line in Path("c.jsonl").read_text().splitlines()] == [None, 0, 0, 1, 1]


def test_more_seeds_methods_and_sparsities_may_follow(here):
    words = [*WORDS, "--fit", "fit.py:counted", "-q"]
    assert run([*words, "--sparsity", "0.5", "--methods", "ranp-f", "--seeds", "1", "-o", "c.jsonl"]) == 0
    assert (
        run([*words, "--sparsity", "0.5,0.7", "--methods", "ranp-f,full", "--seeds", "2", "--resume", "c.jsonl"]) == 0
    )
    assert calls() == 1 + 5


@pytest.fixture
def trained(here):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "ranp-f", "--fit", "fit.py:size", "--seeds", "1", "-q"]
    assert run([*words, "-o", "c.jsonl"]) == 0
    return words


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["-o", "c.jsonl"], "c.jsonl exists, and hours of work are not overwritten; go on with --resume c.jsonl"),
        (["-o", "d.jsonl", "--resume", "c.jsonl"], "--resume goes on in the file that it names; leave out -o"),
        (["--resume", "none.jsonl"], "--resume none.jsonl: no such file"),
        (["--resume", "fit.py"], "fit.py, line 1: is no header of ranp compare with --fit"),
        (["--resume", "c.jsonl", "--lambda", "5"], "its cells were trained with --lambda 11.0, not with --lambda 5.0"),
        (["--resume", "c.jsonl", "--init", "glorot"], "trained with --init keep, not with --init glorot"),
        (["--resume", "c.jsonl", "--model-arg", "in_channels=1"], "trained with --model-arg"),
        (["--resume", "c.jsonl", "--fit", "fit.py:two"], "trained with --fit fit.py:size, not with --fit fit.py:two"),
        (["-o", "c.json"], "-o c.json: ranp compare writes .jsonl"),
        (["-o", "a.jsonl", "-o", "b.jsonl"], "-o: the cells lie in one file"),
    ],
)  # fmt: skip
def test_files_that_do_not_go(trained, more, says, capsys):
    before = Path("c.jsonl").read_bytes()
    assert run([*trained, *more]) == 2
    assert says in capsys.readouterr().err
    assert Path("c.jsonl").read_bytes() == before
    assert run([*trained, "--resume", "c.jsonl"]) == 0  # the valid neighbour


def test_cells_of_other_weights_or_another_network_are_not_gone_on_with(here):
    same = {"sparsity": 0.5, "methods": ["ranp-f"], "fit": "fit.py:size", "seeds": 1}
    ranp.compare(net(), batch(), cells="c.jsonl", **same)
    ranp.compare(net(), batch(), resume="c.jsonl", **same)
    shaken = net()
    with torch.no_grad():
        shaken.head.weight.add_(1)
    with pytest.raises(ranp.BadInput, match="cut from other weights"):
        ranp.compare(shaken, batch(), resume="c.jsonl", **same)
    with pytest.raises(ranp.BadInput, match="of another network"):
        ranp.compare(net(8), batch(), resume="c.jsonl", **same)


def test_cells_say_the_lambda_that_was_used(here):
    """Not given, it is another one for each way to count the resource."""
    same = {"sparsity": 0.5, "methods": ["ranp-f"], "fit": "fit.py:size", "seeds": 1, "resource_term": "unit"}
    ranp.compare(net(), batch(), cells="c.jsonl", **same)
    ranp.compare(net(), batch(), resume="c.jsonl", lambda_=1.0, **same)
    for other in ({**same, "lambda_": 11.0}, {**same, "resource_term": "layer"}):
        with pytest.raises(ranp.BadInput, match="cells were trained with lambda_"):
            ranp.compare(net(), batch(), resume="c.jsonl", **other)


def test_a_line_that_is_no_cell_is_named(trained, capsys):
    with open("c.jsonl", "a") as file:
        file.write('{"method": "full"}\n')
    assert run([*trained, "--resume", "c.jsonl"]) == 2
    assert "c.jsonl, line 3: is no cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--fit", "fit.py:text"], "fit returned an object of type str; wants a number (higher is better)"),
        (["--fit", "fit.py:nothing"], "fit returned None"),
        (["--fit", "fit.py:empty"], "fit returned an empty dict"),
        (["--fit", "fit.py:other"], "seed 1: fit returned a dict with the keys 'b', and a dict with the keys 'a' before"),
        (["--fit", "fit.py:one"], "cannot be called as fit(model, seed)"),
        (["--fit", "fit.py:value"], "wants a function fit(model, seed)"),
        (["--fit", "fit.py:sise"], "there is no 'sise' in it; did you mean 'size'"),
        (["--fit", "dice"], "--fit dice: wants file.py:fit"),
        (["--fit", "fit.py:size", "--seeds", "0"], "--seeds 0: give 1 or more"),
        (["--fit", "fit.py:size", "--init", "xavier"], "unknown init 'xavier'"),
        (["--fit", "fit.py:size", "--methods", "ranp-f,ranp"], "method 'ranp-flops' is named twice"),
        (["--seeds", "2"], "--seeds has no effect without --fit"),
        (["-o", "c.jsonl"], "-o has no effect without --fit"),
        (["--match", "flops"], "unknown match 'flops'"),
        (["--methods", "ranp-f,width"], "method 'width' needs --width-arg NAME"),
        (["--width-arg", "width"], "--width-arg names the argument of method 'width'"),
        (["--methods", "width", "--width-arg", "width"], "is cut to the size of the first one"),
        (["--methods", "ranp-f,width", "--width-arg", "widht"], "takes no argument 'widht'; did you mean 'width'"),
        (["--methods", "ranp-f,width", "--width-arg", "softmax"], "--width-arg softmax: is False; wants a whole number"),
        (["--methods", "layerwise,ranp-f", "--match", "macs", "--sparsity", "max"], "has no sparsity max"),
        (["--methods", "shuffle:full"], "only what ranks neurons can be shuffled"),
        (["--methods", "shuffle:rnap-f"], "did you mean 'ranp-f'"),
    ],
)  # fmt: skip
def test_bad_input(here, more, says, capsys):
    words = [*WORDS, *([] if "--methods" in more else ["--methods", "ranp-f"]), "--sparsity", "0.5", "-q"]
    assert run([*words, *more]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_options_of_a_fit_in_a_config_file(here):
    (here / "config").mkdir()
    (here / "config" / "fit.py").write_text(FIT)
    text = f"model: {UNET}\nmodel-arg: {json.dumps(ARGS)}\nbatch: ../calib.pt\nsparsity: 0.5\nmethods: ranp-f\nfit: fit.py:size\nseeds: 1\n"
    (here / "config" / "c.yaml").write_text(text)
    assert (
        run(["compare", "--config", "config/c.yaml", "-o", "c.jsonl", "-q"]) == 0
    )  # inputs from the file's folder, outputs here
    assert Path("c.jsonl").exists()


def test_fit_sees_nothing_of_torchrun(monkeypatch):
    for name in (*HIDDEN, "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    with alone():
        assert not {*HIDDEN, "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    assert {*HIDDEN, "TORCHELASTIC_RUN_ID"} <= os.environ.keys()


def start(arguments, folder, processes):
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    known = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([sys.executable, *many, "-m", "ranp_cli", *arguments], cwd=folder, text=True, capture_output=True,
                          timeout=300, check=False, env={**known, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.mark.slow
def test_two_processes_share_the_cells(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f,random", "--fit", "fit.py:counted", "--seeds", "2"]
    ran = start([*words, "-o", "c.jsonl", "--csv", "two.csv"], here, 2)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("ranp compare") == 1
    assert Path("calls.txt").read_text().split() == ["None"] * 6  # none twice, and none sees the other process
    lines = [json.loads(line) for line in Path("c.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + 6
    assert run([*words, "-o", "one.jsonl", "--csv", "one.csv", "-q"]) == 0
    same = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in table_of(name)]
        for name in ("one.csv", "two.csv")
    ]
    assert same[0] == same[1]
    again = start([*words, "-o", "c.jsonl", "-q"], here, 2)
    assert again.returncode != 0
    assert sum("c.jsonl exists" in line for line in again.stderr.splitlines() if line.startswith("ranp:")) == 1
    broken = start([*words[:-4], "--fit", "fit.py:text", "--seeds", "2", "-o", "d.jsonl", "-q"], here, 2)
    assert broken.returncode != 0
    assert "fit returned an object of type str" in broken.stderr


def test_compare_without_fit_is_the_work_of_one_process(here, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run([*WORDS, "--sparsity", "0.5"]) == 2
    assert "ranp compare is the work of one process" in capsys.readouterr().err
