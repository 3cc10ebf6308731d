"""The files that commands write: what stands in them, that they load, and that they are whole or as they were."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from command_lines import NEURONS, ODD_NETS, PRUNE, error_line, net, outputs, ranp

import ranp_cli
from ranp_cli.core.errors import BadInput
from ranp_cli.pruning.mask import SCHEMA

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.jit as a whole


def test_mask_has_the_fixed_form(here: Path) -> None:
    mask = json.loads((here / "mask.json").read_text())
    jsonschema.validate(mask, json.loads(SCHEMA.read_text()))
    assert list(mask) == [
        *("format", "version", "model", "method", "sparsity", "neurons", "layers", "floored", "fixed", "run")
    ]
    assert (mask["format"], mask["version"]) == ("ranp-mask", 1)
    assert mask["model"]["spec"] == "net.py:Net"
    assert mask["model"]["args"] == {}
    assert (
        mask["method"].items() >= {"name": "ranp", "criterion": "mpmg-sum", "resource": "mem", "lambda": 11.0}.items()
    )
    assert {name: layer["neurons"] for name, layer in mask["layers"].items()} == NEURONS
    assert mask["fixed"] == {"head": "network output"}
    kept = sum(len(layer["kept"]) for layer in mask["layers"].values())
    assert mask["neurons"] == {"total": 33, "kept": kept}
    assert mask["sparsity"] == {"requested": 0.5, "achieved": pytest.approx(1 - kept / 33, abs=1e-6)}


@pytest.mark.parametrize("method", ["vanilla", "weighted", "random", "layerwise"])
def test_only_ranp_claims_a_resource(method: str, here: Path, tmp_path: Path) -> None:
    assert ranp(f"{PRUNE} --method {method} -q --mask {tmp_path / 'm.json'}") == 0
    how = json.loads((tmp_path / "m.json").read_text())["method"]
    assert "lambda" not in how
    assert how["resource"] == "none"


def test_same_seed_same_bytes(here: Path, tmp_path: Path) -> None:
    again, scored, other = (tmp_path / name for name in ("again", "scored", "other"))
    for folder in (again, scored, other):
        folder.mkdir()
    end = "--resource mem -q -o {0}/slim.safetensors --mask {0}/mask.json"
    assert ranp(f"{PRUNE} {end.format(again)}") == 0
    assert ranp(f"prune net.py:Net --scores scores.safetensors --sparsity 0.5 {end.format(scored)}") == 0
    assert ranp(f"{PRUNE} --seed 1 {end.format(other)}") == 0
    for name in ("slim.safetensors", "mask.json"):
        assert (here / name).read_bytes() == (again / name).read_bytes()
        assert (here / name).read_bytes() != (other / name).read_bytes()
    assert (here / "mask.json").read_bytes() == (scored / "mask.json").read_bytes()


@pytest.mark.parametrize("init", ["keep", "glorot", "orthogonal", "factory"])
def test_refine_builds_what_prune_built(init: str, here: Path, tmp_path: Path) -> None:
    out = tmp_path / "refined.safetensors"
    assert ranp(f"refine net.py:Net --mask mask.json --init {init} -q -o {out}") == 0
    pruned, refined = (ranp_cli.load(path, "net.py:Net").state_dict() for path in ("slim.safetensors", out))
    assert {k: v.shape for k, v in pruned.items()} == {k: v.shape for k, v in refined.items()}
    assert torch.equal(pruned["dec.weight"], refined["dec.weight"]) == (init == "keep")
    if init == "keep":
        assert all(torch.equal(value, refined[name]) for name, value in pruned.items())


def test_refine_takes_the_seed_of_the_mask(here: Path, tmp_path: Path) -> None:
    a, b, mask = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "m.json"
    assert ranp(f"{PRUNE} --seed 3 -q -o {a} --mask {mask}") == 0
    assert ranp(f"refine net.py:Net --mask {mask} -q -o {b}") == 0
    dense = net(here)
    first, second = (dict(ranp_cli.load(path, dense).named_parameters()) for path in (a, b))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_option_beats_file_beats_default(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # inputs are meant from the folder of the file, outputs from here
    assert ranp(f"prune --config {here / 'prune.yaml'} --resource params --mask mask.json") == 0
    mask = json.loads(Path("mask.json").read_text())
    assert mask["layers"]["enc"]["neurons"] == 4
    assert (mask["method"]["resource"], mask["method"]["name"]) == ("params", "ranp")
    assert mask["sparsity"]["requested"] == 0.5


def test_noise_at_95_percent_leaves_a_whole_network(here: Path, tmp_path: Path) -> None:
    slim, report = tmp_path / "slim.safetensors", tmp_path / "report.json"
    assert ranp(f"prune net.py:Net --batch noise.pt --sparsity 0.95 -q -o {slim} --json {report}") == 0
    told = json.loads(report.read_text())
    assert set(told["floored"]) >= {"enc", "up", "dec"}
    assert all(layer["kept"] >= 1 for layer in told["layers"])
    model = ranp_cli.load(slim, "net.py:Net").train()
    out = model(torch.randn(2, 1, 8, 8, 8))
    assert out.shape == (2, 3, 8, 8, 8)
    out.sum().backward()


@pytest.mark.parametrize("kind", ["traced.pt", "scripted.pt"])
def test_torchscript_is_pruned(kind: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Index for index as the eager module; the slim TorchScript and the slim file compute the same."""
    slim, mask = tmp_path / "slim.pt", tmp_path / "mask.json"
    assert (
        ranp(f"prune {kind} --batch calib.pt --sparsity 0.5 --mask {mask} -o {slim} -o {tmp_path / 's.safetensors'}")
        == 0
    )
    assert "such a file is code" in capsys.readouterr().out
    dense = net(here)
    dense.load_state_dict(torch.jit.load(here / kind).state_dict())
    eager = ranp_cli.prune(dense, "calib.pt", sparsity=0.5)
    found = json.loads(mask.read_text())["layers"]
    if kind.startswith("scripted"):  # a trace in eval mode has its norms frozen, so other gradients
        assert found == eager.mask.layers
    else:
        assert {name: row["neurons"] for name, row in found.items()} == NEURONS
    x = torch.randn(2, 1, 8, 8, 8)
    loaded = ranp_cli.load(tmp_path / "s.safetensors", torch.jit.load(here / kind)).eval()
    script = torch.jit.load(slim).eval()
    assert torch.equal(loaded(x), script(x))
    assert all(p.requires_grad for p in (*script.parameters(), *loaded.parameters()))
    assert ranp_cli.profile(script, x).to_dict()["memory"]["before"]["train_peak_bytes"] > 0
    assert sum(p.numel() for p in script.parameters()) < sum(p.numel() for p in net(here).parameters())


def test_neuron_criterion_scores_each_layer(here: Path) -> None:
    scores = ranp_cli.score("net.py:Net", "calib.pt", criterion="neuron").layers
    assert {name: len(values) for name, values in scores.items()} == NEURONS


# -- load


@pytest.mark.parametrize("name", ["Net", *ODD_NETS])
def test_loaded_is_what_was_pruned(name: str, here: Path, tmp_path: Path) -> None:
    dense, path = net(here, name), here / f"{name}.pt"
    path = path if path.exists() else here / "calib.pt"
    batch = torch.load(path, weights_only=True)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    result = ranp_cli.prune(dense, batch, sparsity=0.5)
    result.save(tmp_path / "slim.safetensors")
    loaded = ranp_cli.load(tmp_path / "slim.safetensors", dense)
    assert type(loaded).__name__ == type(dense).__name__
    assert isinstance(loaded, type(net(here)))
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in dense.parameters()]
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in dense.parameters())
    for one, two in zip(outputs(result.model, batch), outputs(loaded, batch), strict=True):
        assert torch.equal(one, two)


def test_load_with_trust_builds_the_recorded_one(here: Path) -> None:
    generator = torch.get_rng_state()
    alone = ranp_cli.load("slim.safetensors", trust=True)
    assert torch.equal(torch.get_rng_state(), generator)
    given = ranp_cli.load("slim.safetensors", net(here))
    x = torch.randn(2, 1, 8, 8, 8)
    assert torch.equal(alone.eval()(x), given.eval()(x))
    assert type(alone) is type(given)


def test_load_refuses_what_does_not_fit(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"made from another network: enc.weight was \(6, 1, 3, 3, 3\), is \(4, 1"):
        ranp_cli.load("slim.safetensors", net(here, width=4))
    with pytest.raises(BadInput, match="no such file"):
        ranp_cli.load("slim.safetensors", "absent.py:Net")
    ranp_cli.prune(net(here), "calib.pt", sparsity=0.5).save(tmp_path / "memory.safetensors")
    with pytest.raises(BadInput, match="records no model spec"):
        ranp_cli.load(tmp_path / "memory.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"net\.py:Net: no such file"):
        ranp_cli.load(here / "slim.safetensors", trust=True)


# -- writing


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_full_disk_leaves_the_old_file_whole(
    where: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "slim.safetensors"
    out.write_text("old")
    monkeypatch.setattr(where, full)
    assert ranp(f"{PRUNE} -q -o {out}") == 2
    assert "No space left on device; what was there is as it was" in error_line(capsys)
    assert os.listdir(tmp_path) == ["slim.safetensors"]
    assert out.read_text() == "old"


def test_read_only_folder_is_noticed_before_the_work(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as m:  # the tests may run as root, whom chmod does not stop
        m.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
        assert ranp(f"prune absent.py:Net --batch calib.pt --sparsity 0.5 -o {tmp_path}/s.safetensors") == 2
        assert f"the folder {tmp_path} is read-only" in error_line(capsys)

    opened = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr("os.open", refuse)
    assert ranp(f"{PRUNE} -q --mask {tmp_path}/mask.json") == 2
    assert "Read-only file system" in error_line(capsys)
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_to_and_not_replaced_by_a_file(here: Path, tmp_path: Path) -> None:
    """As a device is: both are no regular files."""
    pipe, came = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: came.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert ranp(f"{PRUNE} -q --json {pipe}") == 0
    reader.join(10)
    assert json.loads(came[0])["command"] == "prune"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
