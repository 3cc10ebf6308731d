"""Streams of mini-batches that stop and go on; the scores stay what they are."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from paths import SAMPLES
from scored_nets import Blocks, batches, blocks, same
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput, Interrupted
from ranp_cli.models.unet3d import unet3d
from ranp_cli.scoring import scorer

CONFIGS = SAMPLES


def test_no_gradient_of_the_whole_model_is_alive():
    """A hook frees each gradient before the next layer's comes."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    alive, most = [], 0
    take = scorer.WeightGradientCollector._take

    def watching(self, p, ks):
        nonlocal most
        alive.append(p)
        most = max(most, sum(q.grad is not None for q in alive))
        take(self, p, ks)

    scorer.WeightGradientCollector._take = watching
    try:
        ranp.score(model, [(torch.randn(2, 64), torch.randn(2, 64))], loss="mse")
    finally:
        scorer.WeightGradientCollector._take = take
    assert (len(alive), most) == (8, 1)


def stream(n):
    for k in range(n):
        yield torch.full((1, 2), float(k % 7)), torch.tensor([[0.0]])


@pytest.mark.parametrize("n", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_stream_takes_no_memory_and_gives_the_mean(n):
    """y = w1 x + w2 x with both 0.5, loss y^2: |w dL/dw| = 0.5 * 2 y x = x^2 for each of the two, 2 x^2 for the neuron."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 0.5)
    nn.init.constant_(model[1].weight, 1.0)
    sizes = []

    def watched():
        for k, batch in enumerate(stream(n)):
            if k in (n // 4, n - 1):
                gc.collect()
                sizes.append(len(gc.get_objects()))
            yield batch

    found = ranp.score(model, watched(), loss="mse")
    assert found.about["batches"] == n
    assert sizes[1] - sizes[0] < 200
    assert found.layers["0"][0] == pytest.approx(sum(2.0 * (k % 7) ** 2 for k in range(n)) / n, rel=1e-12)


@pytest.mark.parametrize("criterion", ["mpmg-sum", "mpmg-max", "mnmg-sum", "neuron", "snip"])
def test_going_on_gives_what_one_run_gives(criterion, tmp_path):
    whole = ranp.score(blocks(), batches(5), criterion=criterion)
    path, end = tmp_path / "some.safetensors", tmp_path / "all.safetensors"
    ranp.score(blocks(), batches(5), criterion=criterion, batch_limit=2).save(path)
    resumed = ranp.score(blocks(), batches(5), criterion=criterion, resume=path)
    assert resumed.about["batches"] == 5
    assert same(whole, resumed)
    resumed.save(end)
    whole.save(path)
    assert end.read_bytes() == path.read_bytes()


def test_one_goes_on_with_the_same_only(tmp_path):
    path = tmp_path / "scores.safetensors"
    ranp.score(blocks(), batches(2), loss="cross_entropy").save(path)
    with pytest.raises(BadInput, match="criterion 'neuron' was asked, the scores are of 'mpmg-sum'"):
        ranp.score(blocks(), batches(), criterion="neuron", resume=path)
    with pytest.raises(BadInput, match="taken with seed=0, not with seed=1; go on with seed=0"):
        ranp.score(blocks(), batches(), seed=1, resume=path)
    with pytest.raises(BadInput, match="taken with loss='cross_entropy', not with loss='dice'"):
        ranp.score(blocks(), batches(), loss="dice", resume=path)
    with pytest.raises(BadInput, match="of another network"):
        ranp.score(unet3d(7, 4, 1, 3), batches(), resume=path)
    with pytest.raises(BadInput, match="of other weights"):
        ranp.score(Blocks(), batches(), resume=path)


def own_loss(output, target):
    return F.cross_entropy(output, target)


HOW = [{}, {"loss": "dice"}, {"loss": own_loss}, {"precision": "fp64"}, {"ignore_index": 0}, {"score_init": "glorot"}]


@pytest.mark.parametrize("then", HOW, ids=["nothing", "loss", "own-loss", "precision", "ignore-index", "score-init"])
def test_sums_of_two_kinds_are_never_mixed(then, tmp_path):
    path = tmp_path / "scores.safetensors"
    ranp.score(blocks(), batches(1), **then).save(path)
    assert ranp.score(blocks(), batches(2), resume=path, **then).about["batches"] == 2
    for now in HOW:
        if now != then:
            with pytest.raises(BadInput, match=r"these scores were taken with(out)? .*; go on with(out)? "):
                ranp.score(blocks(), batches(2), resume=path, **now)


def test_the_default_loss_by_its_name_is_the_same():
    some = ranp.score(blocks(), batches(1))
    assert same(ranp.score(blocks(), batches(2), loss="cross_entropy", resume=some), ranp.score(blocks(), batches(2)))


def test_scores_of_an_older_ranp_are_gone_on_from():
    some = ranp.score(blocks(), batches(1))
    some.about = {**some.about, "loss": None}
    del some.about["precision"], some.about["ignore_index"]
    assert same(ranp.score(blocks(), batches(2), resume=some), ranp.score(blocks(), batches(2)))
    with pytest.raises(BadInput, match="taken with precision='model', not with precision='bf16'"):
        ranp.score(blocks(), batches(2), precision="bf16", resume=some)


def test_scores_by_auto_are_not_gone_on_from():
    some = ranp.score(blocks(), batches(1), precision="auto")
    with pytest.raises(BadInput, match="taken with precision='auto', which decides once"):
        ranp.score(blocks(), batches(2), precision="bf16", resume=some)


def test_there_are_no_fewer_mini_batches_than_before():
    some = ranp.score(blocks(), batches(2))
    assert same(ranp.score(blocks(), batches(2), resume=some), some)
    for source, limit in ((batches(3), 1), (lambda: iter(batches(3)), 1), (batches(1), None)):
        with pytest.raises(BadInput, match="these are the scores of 2 mini-batches, and `batches` gives 1"):
            ranp.score(blocks(), source, batch_limit=limit, resume=some)


def stopping(after):
    yield from batches(after)
    raise KeyboardInterrupt


def test_ctrl_c_leaves_what_is_there():
    with pytest.raises(Interrupted) as stopped:
        ranp.score(blocks(), stopping(2))
    assert stopped.value.batches == 2
    assert same(stopped.value.scores, ranp.score(blocks(), batches(2)))
    whole = ranp.score(blocks(), batches(4))
    for _ in range(2):  # what one goes on from stays what it is
        assert same(whole, ranp.score(blocks(), batches(4), resume=stopped.value.scores))


def test_ctrl_c_before_the_first_mini_batch_leaves_nothing():
    with pytest.raises(KeyboardInterrupt) as stopped:
        ranp.score(blocks(), stopping(0))
    assert not isinstance(stopped.value, Interrupted)


def test_ctrl_c_in_a_pass_does_not_count_half_of_it():
    calls = []

    def loss(output, target):
        calls.append(1)
        value = F.cross_entropy(output, target)
        if len(calls) == 3:
            value.register_hook(lambda g: (_ for _ in ()).throw(KeyboardInterrupt))
        return value

    with pytest.raises(Interrupted) as stopped:
        ranp.score(blocks(), batches(), loss=loss)
    assert same(stopped.value.scores, ranp.score(blocks(), batches(2)))


LOADER = """
import torch

def loader():
    g = torch.Generator().manual_seed(0)
    for k in range({n}):
        {before}
        yield torch.rand(2, 1, 8, 8, 8, generator=g), torch.randint(6, (2, 8, 8, 8), generator=g)
"""


def test_ctrl_c_on_the_command_line_writes_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loader.py").write_text(LOADER.format(n=3, before="pass"))
    (tmp_path / "stops.py").write_text(LOADER.format(n=3, before="if k == 2: raise KeyboardInterrupt"))
    model = f"{CONFIGS / 'model.py'}:UNet3D"
    assert run(["score", model, "--batch", "stops.py:loader", "-o", "scores.safetensors", "-q"]) == 130
    assert (
        "the scores of 2 mini-batches were written to scores.safetensors: go on with --resume"
        in capsys.readouterr().err
    )
    more = ["--resume", "scores.safetensors", "-o", "scores.safetensors", "-q"]
    assert run(["score", model, "--batch", "loader.py:loader", *more]) == 0
    assert run(["score", model, "--batch", "loader.py:loader", "-o", "whole.safetensors", "-q"]) == 0
    assert Path("scores.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_the_command_line_takes_the_options(tmp_path, capsys):
    model = f"{CONFIGS / 'model.py'}:UNet3D"
    batch = f"{CONFIGS / 'calib.pt'}"
    out = str(tmp_path / "scores.safetensors")
    assert run(["score", model, "--batch", batch, "--batches", "1", "--memory-limit", "1MiB", "-o", out]) == 3
    assert "a memory limit of 1 MiB cannot be kept" in capsys.readouterr().err
    assert not Path(out).exists()
    assert run(["score", model, "--batch", batch, "--precision", "half", "-o", out]) == 2
    assert "unknown precision 'half'" in capsys.readouterr().err
