"""A tiny data set of nnU-Net's: bright balls in noise. Made, planned and preprocessed by nnU-Net's own code, in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

DATASET, NAME, CASES = 501, "Dataset501_Balls", 5
SIZE = (36, 40, 32)
HERE = Path(__file__).parent

TRAINER = '''import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortTrainer(nnUNetTrainer):
    """One epoch of three steps."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
'''


def environment(root: Path, loaders: int = 0) -> dict[str, str]:
    """nnU-Net's folders; one process for all that it does."""
    folders = {f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed", "results")}
    quick = {"nnUNet_n_proc_DA": str(loaders), "nnUNet_def_n_proc": "1", "nnUNet_compile": "false"}
    return {**folders, **quick, "nnUNet_extTrainer": str(root / "trainers")}


def run(
    root: Path, module: str, entry: str, *words: object, check: bool = True, loaders: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run an entry point of nnU-Net or ranp in a process of its own, with torchvision's ops declared as in conftest.py."""
    code = (
        "import sys; from package_imports import declare_torchvision_ops; declare_torchvision_ops(); "
        f"from {module} import {entry}; sys.exit({entry}())"
    )
    path = [str(HERE.parents[1]), str(HERE.parent / "laws"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, words)],
        env={**os.environ, **environment(root, loaders), "PYTHONPATH": os.pathsep.join(path)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check:
        assert done.returncode == 0, f"{entry} {words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def ranp(root: Path, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(root, "ranp_cli.__main__", "main", *words, check=check)


def make(root: Path) -> None:
    """Write the cases, plan twice (plain and with residual encoder), preprocess."""
    import nibabel

    for folder in ("raw", "preprocessed", "results", "trainers"):
        (root / folder).mkdir()
    (root / "trainers" / "short.py").write_text(TRAINER)
    raw = root / "raw" / NAME
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"))
    for case in range(CASES):
        labels = np.zeros(SIZE, np.uint8)
        for label in (1, 2):
            centre = rng.uniform(8, np.array(SIZE) - 8)
            labels[((grid - centre[:, None, None, None]) ** 2).sum(0) < 49] = label
        image = (rng.normal(0, 0.3, SIZE) + labels).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), raw / "imagesTr" / f"ball_{case:03}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), raw / "labelsTr" / f"ball_{case:03}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), raw / "imagesTs" / "ball_100_0000.nii.gz")
    about = {
        "channel_names": {"0": "noise"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(about))
    planning = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
    run(root, planning, "extract_fingerprint_entry", "-d", DATASET, "-np", 1)
    for planner in ("ExperimentPlanner", "nnUNetPlannerResEncM"):
        run(root, planning, "plan_experiment_entry", "-d", DATASET, "-pl", planner, loaders=1)
    run(root, planning, "preprocess_entry", "-d", DATASET, "-c", "3d_fullres", "-np", 1)


def plans_of(root: Path, name: str = "nnUNetPlans") -> Path:
    return root / "preprocessed" / NAME / f"{name}.json"


def files(root: Path) -> set[str]:
    """What lies there, but for the bytecode that Python keeps beside a trainer's code."""
    found = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {str(path.relative_to(root)) for path in found}
