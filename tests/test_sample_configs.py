"""The files a new user starts from: `model.py` runs, `calib.pt` is what `make_calib.py` makes, each YAML prunes."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import package_imports
import pytest
import torch
import torch.nn.functional as F
from paths import SAMPLES

import ranp_cli as ranp
from ranp_cli import samples
from ranp_cli.cli.commands import PRUNE_COMMAND
from ranp_cli.cli.flags import FlagSpelling
from ranp_cli.cli.invocation import Run
from ranp_cli.core.errors import BadInput
from ranp_cli.core.spelling import spelling
from ranp_cli.io.batches import load_batches
from ranp_cli.io.losses import load_loss
from ranp_cli.io.model import load_model

CONFIGS = SAMPLES
EMPTY = 255
CLASSES = 6


@pytest.fixture(scope="module")
def calib():
    return torch.load(CONFIGS / "calib.pt", weights_only=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return runpy.run_path(str(CONFIGS / "model.py"))["UNet3D"]()


def test_calib_is_what_make_calib_makes(calib):
    made = runpy.run_path(str(CONFIGS / "make_calib.py"))["make_calib"]()
    assert len(calib) == len(made) == 4
    for (x, y), (made_x, made_y) in zip(calib, made, strict=True):
        assert torch.equal(x, made_x)
        assert torch.equal(y, made_y)


def test_calib_is_mostly_empty_and_shows_every_class_in_every_batch(calib):
    for x, y in calib:
        assert (x.shape, x.dtype) == ((2, 1, 24, 24, 24), torch.float32)
        assert (y.shape, y.dtype) == ((2, 24, 24, 24), torch.uint8)
        assert torch.equal(x[:, 0] == 1, y != EMPTY)
        assert torch.equal(x[:, 0] == 0, y == EMPTY)
        assert y.unique().tolist() == [*range(CLASSES), EMPTY]
        assert (y == EMPTY).float().mean() > 0.9


def test_calib_is_small():
    assert (CONFIGS / "calib.pt").stat().st_size <= 600_000


def test_model_trains_on_calib(model, calib):
    for x, y in calib:
        model.zero_grad()
        F.cross_entropy(model(x), y.long(), ignore_index=EMPTY).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(x).shape == (2, CLASSES, 24, 24, 24)


def test_model_layers_have_readable_names(model):
    layers = [name.removesuffix(".weight") for name, p in model.named_parameters() if p.ndim == 5]
    assert len(layers) == 18
    assert {"encoders.0.conv1", "ups.0", "decoders.2.conv2", "head"} <= set(layers)


# -- the YAML files

YAMLS = sorted(CONFIGS.glob("*.yaml"))

# The paper's rows: sparsity, lambda, and the network's MB of parameters, GFLOPs and MB of memory, as it counts them.
PAPER = {
    "unet3d_shapenet": (0.7824, 11, 62.26, 237.85, 997.00),
    "unet3d_brats": (0.7817, 15, 15.57, 478.13, 3628.00),
    "mobilenetv2_ucf101": (0.3315, 80, 9.47, 0.58, 157.47),
    "i3d_ucf101": (0.2532, 80, 47.27, 27.88, 201.28),
}

# slow, even in small; their networks are pruned in other tests, too
LARGE = {"psmnet_sceneflow", "mobilenetv2_ucf101", "i3d_ucf101"}

# The same networks and data in small: model arguments that change, the data.
SMALL: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "unet3d_shapenet": ({"layers": 7, "width": 8, "num_classes": 4}, lambda: samples.voxel_shapes(size=16, classes=4)),
    "unet3d_brats": ({"layers": 7, "width": 8}, lambda: samples.brain_volumes(size=16)),
    "mobilenetv2_ucf101": ({"width": 0.25}, lambda: samples.moving_patterns(size=32, frames=8, batch_size=2)),
    "i3d_ucf101": ({"width": 0.125}, lambda: samples.moving_patterns(size=64, frames=9, batch_size=2)),
    "psmnet_sceneflow": (
        {"max_disparity": 16, "width": 4},
        lambda: samples.stereo_pairs(size=(32, 64), max_disparity=16, batch_size=2),
    ),
    "monai_unet": ({"channels": [8, 16, 32], "strides": [2, 2]}, lambda: samples.brain_volumes(size=16)),
    "nnunet_plain": ({"features": [8, 16, 32]}, lambda: samples.brain_volumes(size=16)),
}


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def path(request):
    return request.param


def options(path):
    """What `ranp prune --config` makes of the file."""
    given = {**dict.fromkeys(PRUNE_COMMAND.names), "config": str(path)}
    with spelling(FlagSpelling()):
        return Run(PRUNE_COMMAND, given, {"mask"})


def model_args(run):
    return run.keywords().get("model_args", {})


def pruned(path, changes, batches):
    """The config, other than itself in the model's arguments and the data."""
    o = options(path)
    given = {key: o[key] for key in ("resource", "lambda_", "loss", "sparsity") if o[key] is not None}
    with package_imports.quietly():
        return ranp.prune(o["model"], batches, model_args={**model_args(o), **changes}, batch_limit=2, **given)


def test_every_yaml_is_known_here():
    assert {path.stem for path in YAMLS} == SMALL.keys()
    assert PAPER.keys() <= SMALL.keys()


def test_a_yaml_resolves(path):
    o = options(path)
    o.need("model", "batch", "sparsity", "resource", "output")
    o.check_outputs((".safetensors",))
    assert o["output"] == [f"{path.stem}.safetensors"]
    assert 1 <= o["batches"] <= 4
    load_loss(o["loss"])
    assert load_batches(o["batch"], o["batches"]).limit == o["batches"]
    with package_imports.quietly(), torch.device("meta"):
        assert sum(p.numel() for p in load_model(o["model"], model_args(o)).module.parameters()) > 1e6


def test_a_wrong_key_would_be_noticed(tmp_path):
    text = (CONFIGS / "unet3d_shapenet.yaml").read_text()
    (tmp_path / "typo.yaml").write_text(text.replace("resource:", "resuorce:"))
    with pytest.raises(BadInput, match="no option 'resuorce'; did you mean 'resource'"):
        options(tmp_path / "typo.yaml")


def test_a_yaml_says_what_it_is_and_how_to_run_it(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"#     ranp prune --config {path.name}" in comment
    assert any(re.search(r"Takes about .* GiB", line) for line in comment)


@pytest.mark.parametrize("name", PAPER)
def test_a_yaml_of_the_paper_has_its_numbers(name):
    o = options(CONFIGS / f"{name}.yaml")
    sparsity, weight, *full = PAPER[name]
    assert (o["sparsity"], o["lambda_"]) == (sparsity, weight)
    x = load_batches(o["batch"], 1).first.args[0]
    paper = ranp.profile(o["model"], tuple(x.shape), model_args=model_args(o)).to_dict()["before"]["paper"]
    assert [paper["param_mb"], paper["gflops"], paper["memory_mb"]] == pytest.approx(full, abs=0.0051)
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert all(f"{number:.2f}" in text for number in full)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow if p.stem in LARGE else ()) for p in YAMLS],
    ids=lambda path: path.stem,
)
def test_a_yaml_prunes_in_small(path):
    changes, batches = SMALL[path.stem]
    report = pruned(path, changes, batches()).report.to_dict()
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    assert report["sparsity"]["achieved"] > 0.6 * report["sparsity"]["requested"]
    assert report["reduction"]["macs"] > 0.05
    assert not report.get("uncounted_ops")


@pytest.mark.slow
def test_a_yaml_runs_as_it_lies_there(path, tmp_path):
    command = [sys.executable, "-m", "ranp_cli", "prune", "--config", str(path), "--json", "-"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    assert {file.name for file in tmp_path.iterdir()} == {f"{path.stem}.safetensors", f"{path.stem}.mask.json"}


def test_the_plain_nnunet_is_supervised_at_every_stage():
    plain_unet = runpy.run_path(str(CONFIGS / "nnunet.py"))["plain_unet"]
    x = torch.zeros(1, 3, 16, 16, 16)
    outputs = plain_unet(3, 2, features=(4, 8, 16))(x)
    assert [y.shape for y in outputs] == [(1, 2, 16, 16, 16), (1, 2, 8, 8, 8)]
    assert plain_unet(3, 2, features=(4, 8), deep_supervision=False)(x).shape == (1, 2, 16, 16, 16)
