"""nnU-Net with a slim network: its own code plans, preprocesses, trains, predicts and exports. Needs the extra nnunet."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import nnunet_data as data
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("nnunetv2") is None, reason="nnU-Net is not installed: pip install 'ranp-cli[nnunet]'"
    ),
]

CONFIGURATION = "3d_fullres"
INFERENCE = "nnunetv2.inference.predict_from_raw_data"
EXPORT = "nnunetv2.model_sharing.entry_points"
PRESETS = ["nnUNetPlans", "nnUNetResEncUNetMPlans"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nnunet")
    data.make(folder)
    return folder


@pytest.fixture(scope="module", params=PRESETS)
def slim(root, request) -> tuple[Path, str]:
    """The folders, and the name of slim plans that one command has made; it made nothing else."""
    before, name = data.files(root), f"{request.param}Slim"
    place = data.plans_of(root, name)
    done = data.ranp(
        root, "prune", data.plans_of(root, request.param), "--sparsity", 0.6, "--resource", "mem", "--trainer", "ShortTrainer",
        "-o", place, "-o", place.with_suffix(".pth"), "--json", "-",
    )  # fmt: skip
    report = json.loads(done.stdout)  # nothing of nnU-Net's is there
    assert report["sparsity"]["achieved"] > 0.55
    made = {str(Path(file).relative_to(root)) for file in report["outputs"]}
    assert data.files(root) - before == made
    assert any("draws all weights anew" in note for note in report["notes"])
    assert "nnUNetv2_train 501 3d_fullres 0" in done.stderr
    return root, name


def test_plans_stay_dense_but_for_the_record(slim):
    root, name = slim
    dense, written = (json.loads(data.plans_of(root, n).read_text()) for n in (name.removesuffix("Slim"), name))
    assert written.pop("plans_name") == name
    dense.pop("plans_name")
    architecture = written["configurations"][CONFIGURATION]["architecture"]
    record = architecture["arch_kwargs"].pop("ranp")
    assert set(record) == {"version", "network_class_name", "fingerprint", "shapes", "attributes", "mask_sha256"}
    assert architecture["network_class_name"] == "ranp_cli.integrations.nnunet.slim"
    architecture["network_class_name"] = record["network_class_name"]
    assert written == dense


def test_widths_are_sane(slim):
    root, name = slim
    layers = json.loads(data.plans_of(root, name).with_suffix(".mask.json").read_text())["layers"]
    kept = {layer: len(about["kept"]) / about["neurons"] for layer, about in layers.items()}
    assert all(share > 0.1 for share in kept.values()), kept
    assert 0.3 < sum(kept.values()) / len(kept) < 0.6


def test_it_trains_predicts_and_is_exported(slim, tmp_path):
    root, name = slim
    train = "nnunetv2.run.run_training"
    weights = data.plans_of(root, name).with_suffix(".pth")
    words = (data.DATASET, CONFIGURATION, 0, "-p", name, "-tr", "ShortTrainer", "-device", "cpu")
    done = data.run(root, train, "run_training_entry", *words, "-pretrained_weights", weights)
    assert "Loading pretrained weights" in done.stdout
    data.run(root, train, "run_training_entry", *words)
    trained = root / "results" / data.NAME / f"ShortTrainer__{name}__{CONFIGURATION}" / "fold_0"
    assert (trained / "checkpoint_final.pth").exists()
    assert (trained / "validation" / "summary.json").exists()

    predict = (
        "-i", root / "raw" / data.NAME / "imagesTs", "-d", data.DATASET, "-c", CONFIGURATION, "-p", name, "-tr", "ShortTrainer",
        "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta",
    )  # fmt: skip
    data.run(root, INFERENCE, "predict_entry_point", *predict, "-o", tmp_path / "here")
    package = tmp_path / "model.zip"
    data.run(
        root, EXPORT, "export_pretrained_model_entry", "-d", data.DATASET, "-o", package, "-c", CONFIGURATION, "-tr", "ShortTrainer",
        "-p", name, "-f", 0,
    )  # fmt: skip

    elsewhere = tmp_path / "elsewhere"  # another machine: no data, no plans but those in the zip
    for folder in ("raw", "preprocessed", "results"):
        (elsewhere / folder).mkdir(parents=True)
    shutil.copytree(root / "trainers", elsewhere / "trainers")
    data.run(elsewhere, EXPORT, "install_from_zip_entry_point", package)
    data.run(elsewhere, INFERENCE, "predict_entry_point", *predict, "-o", tmp_path / "there")
    here, there = (next((tmp_path / side).glob("ball_*.nii.gz")).read_bytes() for side in ("here", "there"))
    assert here == there


def test_a_data_set_and_a_configuration_name_it_too(root, tmp_path):
    before = data.files(root)
    slim = tmp_path / "other.json"
    data.ranp(
        root, "prune", f"{data.DATASET}:{CONFIGURATION}", "--budget", "params=50%", "-o", slim, "--mask", "none", "-q"
    )
    assert data.files(root) == before
    report = json.loads(data.ranp(root, "profile", data.plans_of(root), slim, "--json", "-").stdout)
    assert report["after"]["params"] <= 0.5 * report["before"]["params"]
    assert report["memory"]["before"]["samples"] == 2
    assert report["memory"]["before"]["optimizer"] == "sgd-momentum"
    assert "[2, 1, 32, 40, 40]" in json.dumps(report["model"]["input"])


def test_the_same_seed_gives_the_same_scores(root, tmp_path):
    for name in ("one", "two"):
        data.ranp(root, "score", data.plans_of(root), "-o", tmp_path / f"{name}.safetensors", "-q")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--configuration", "4d"], "has no configuration '4d'"),
        (["--fold", "-1"], "fold -1: give a whole number from 0 on, or all"),
        (["--trainer", "NoSuchTrainer"], "Could not find requested nnunet trainer NoSuchTrainer"),
        (["--configuration", "2d"], "type nnUNetv2_preprocess -d 501 -c 2d, or give --batch"),
        (["--model-arg", "a=1"], "leave out --model-arg"),
        (["--ignore-index", "3"], "the loss is that of MODEL"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(root, words, says):
    done = data.ranp(root, "prune", data.plans_of(root), "--sparsity", 0.5, "-q", *words, check=False)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_slim_plans_are_not_pruned_again_nor_named_like_the_dense(slim, tmp_path):
    root, name = slim
    done = data.ranp(root, "prune", data.plans_of(root, name), "--sparsity", 0.5, "-q", check=False)
    assert done.returncode == 2
    assert "is slim already" in done.stderr
    there = tmp_path / f"{PRESETS[0]}.json"
    done = data.ranp(root, "prune", data.plans_of(root), "--sparsity", 0.5, "-q", "-o", there, check=False)
    assert done.returncode == 2
    assert "give another name" in done.stderr
