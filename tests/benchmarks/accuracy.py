"""Does a slim network learn? Every method cut to the same multiply-adds and trained from its own start, under several seeds.

    pip install -e '.[bench]'    # nilearn, whose wheel carries the anatomy of the task `tissue`
    python -m tests.benchmarks.accuracy shapes-16 tissue-16 --cells FOLDER [--seeds 3] [--write tests/benchmarks/RESULTS.md]

Each trained network is a line of FOLDER/TASK.jsonl; the same command goes on where it was stopped. Tasks: `shapes`, parts of
shapes (mean IoU); `tissue`, grey and white matter of the ICBM152 brain, trained on crops of one hemisphere and tested on the
other (mean Dice); `brains`, nested lesions (mean Dice of ET, TC, WT); `clips`, moving patterns (top-1). A number behind the
name is the width of the 3D-UNet.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ranp_cli as ranp
from ranp_cli.models.mobilenetv2 import mobilenetv2_3d
from ranp_cli.models.unet3d import unet3d
from ranp_cli.samples import brain_volumes, moving_patterns

from .first_table import mean_iou, outputs_of, shapes, train

METHODS = ("ranp-f", "full", "ranp-m", "weighted", "vanilla", "snip", "random", "layerwise", "flat", "shuffle:ranp-f")
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A network, what it is trained and tested on, and how a test is counted."""

    build: Callable[..., nn.Module]
    train: Batches
    test: Batches
    count: Callable[[list[Tensor], list[Tensor]], dict[str, float]]  # outputs and targets of the test
    width_arg: str | None
    steps: int
    ignored: int = -100


def fit(task: Task, net: nn.Module, seed: int) -> dict[str, float]:
    """Train as the README's first table does, then count the test."""
    train(net, task.train, task.steps, seed, task.ignored)
    return task.count(outputs_of(net, task.test), [y for _, y in task.test])


# -- how a test is counted


def iou(outputs: list[Tensor], targets: list[Tensor]) -> dict[str, float]:
    return {"miou": mean_iou(outputs, targets)}


def mean_dice(outputs: list[Tensor], targets: list[Tensor], regions: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """Dice of regions, each a union of classes, and first their mean."""
    found, y = torch.cat([output.argmax(1) for output in outputs]), torch.cat(targets)
    dice = {}
    for name, classes in regions.items():
        p, t = (torch.isin(labels, torch.tensor(classes)) for labels in (found, y))
        dice[name] = 2 * int((p & t).sum()) / max(1, int(p.sum()) + int(t.sum()))
    return {"dice": float(np.mean(list(dice.values()))), **dice}


def top_k(outputs: list[Tensor], targets: list[Tensor]) -> dict[str, float]:
    best, y = torch.cat(outputs).topk(5, 1).indices, torch.cat(targets)
    return {"top1": float((best[:, 0] == y).float().mean()), "top5": float((best == y[:, None]).any(1).float().mean())}


# -- real anatomy


def volume(name: str) -> np.ndarray:
    """One of nilearn's ICBM152 volumes (NIfTI-1, little endian), as float32."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise SystemExit("the task tissue needs the package nilearn: pip install -e '.[bench]'")
    path = Path(spec.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data[42:48], "<i2")
    kind = {2: "u1", 4: "<i2", 16: "<f4", 64: "<f8", 512: "<u2"}[int(np.frombuffer(data[70:72], "<i2")[0])]
    start = int(np.frombuffer(data[108:112], "<f4")[0])
    return np.frombuffer(data[start:], kind).reshape(shape, order="F").astype(np.float32)


@cache
def anatomy() -> tuple[np.ndarray, np.ndarray]:
    """T1 of mean 0 and deviation 1 in the brain, and the tissue: 1 grey matter, 2 white matter, 0 all else."""
    t1, grey, white = volume("t1"), volume("gm"), volume("wm")
    grey, white = grey / grey.max(), white / white.max()
    tissue = np.where(white > np.maximum(grey, 0.5), 2, np.where(grey >= 0.5, 1, 0))
    brain = t1 > 0
    image = (t1 - t1[brain].mean()) / t1[brain].std()
    image[~brain] = image.min()
    return image, tissue


def crops(batches: int, left: bool, seed: int, size: int = 24) -> Batches:
    """Pairs of crops of one hemisphere, each at least a quarter tissue."""
    image, tissue = anatomy()
    rng, half = np.random.default_rng(seed), image.shape[0] // 2
    low, high = (0, half - size) if left else (half, image.shape[0] - size)
    found = []
    while len(found) < 2 * batches:
        at = [rng.integers(low, high), *(rng.integers(0, n - size) for n in image.shape[1:])]
        cut = tuple(slice(a, a + size) for a in at)
        if (tissue[cut] > 0).mean() >= 0.25:
            found.append((torch.tensor(image[cut])[None], torch.tensor(tissue[cut])))
    pairs = [found[k : k + 2] for k in range(0, len(found), 2)]
    return [(torch.stack([x for x, _ in pair]), torch.stack([y for _, y in pair])) for pair in pairs]


# -- the tasks


def unet(task: str, width: int) -> Task:
    if task == "shapes":
        build, data = partial(unet3d, width=width, in_channels=1, num_classes=6), (shapes(100, 1234), shapes(24, 99))
        return Task(build, *data, iou, "width", 600, 255)
    if task == "tissue":
        build, data = (
            partial(unet3d, width=width, in_channels=1, num_classes=3),
            (crops(150, True, 1234), crops(24, False, 7)),
        )
        return Task(build, *data, partial(mean_dice, regions={"grey": (1,), "white": (2,)}), "width", 400)
    volumes = partial(brain_volumes, size=24, classes=4, batch_size=2)
    regions = {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}
    build = partial(unet3d, width=width, in_channels=4, num_classes=4)
    data = list(volumes(batches=60, seed=1234)), list(volumes(batches=12, seed=99))
    return Task(build, *data, partial(mean_dice, regions=regions), "width", 400)


def clips() -> Task:
    patterns = partial(moving_patterns, size=32, frames=8, classes=20)
    data = list(patterns(batch_size=16, batches=150, seed=1234)), list(patterns(batch_size=20, batches=10, seed=99))
    return Task(partial(mobilenetv2_3d, num_classes=20, width=0.5), *data, top_k, None, 600)


def task_of(name: str) -> Task:
    kind, _, width = name.partition("-")
    if kind == "clips" and not width:
        return clips()
    if kind not in ("shapes", "tissue", "brains") or not width.isdigit():
        raise SystemExit(
            f"unknown task {name}: give clips, or shapes, tissue or brains with a width, such as shapes-16"
        )
    return unet(kind, int(width))


def run(name: str, options: argparse.Namespace) -> ranp.Comparison:
    """Train what is not in the file of cells yet, and lay all rows side by side."""
    task = task_of(name)
    path = options.cells / f"{name}.jsonl"
    given = {"resume": path} if path.exists() else {"cells": path}
    methods = [*METHODS, *(["width"] if task.width_arg else [])]
    return ranp.compare(task.build, task.train[:4], sparsity=options.sparsity, methods=methods, match="macs", width_arg=task.width_arg,
                        fit=partial(fit, task), seeds=options.seeds, ignore_index=task.ignored, **given)  # fmt: skip


def table(name: str, rows: Iterable[dict[str, Any]]) -> str:
    """Best first; the worst seed beside the mean, since a class that is lost shows there."""
    rows = sorted(rows, key=lambda row: -row["accuracy"]["mean"])
    metric = rows[0]["accuracy"]["metric"]
    lines = [f"### {name}\n", f"| method | multiply-adds | {metric} | worst seed |", "|---|---:|---:|---:|"]
    for row in rows:
        accuracy = row["accuracy"]
        spread = f" ± {accuracy['std']:.3f}" if accuracy["std"] is not None else ""
        lines.append(
            f"| {row['method']} | -{row['reduction']['macs']:.1%} | {accuracy['mean']:.3f}{spread} | {accuracy['worst']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--cells", type=Path, required=True, help="a folder for what was trained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--sparsity", type=float, default=0.78, help="of the first method; the others get its multiply-adds"
    )
    parser.add_argument("--write", type=Path, help="a page to append the tables to")
    options = parser.parse_args()
    options.cells.mkdir(parents=True, exist_ok=True)
    for name in options.tasks:
        text = table(name, run(name, options).rows)
        print(text)
        if options.write:
            with options.write.open("a") as page:
                page.write(f"\n{text}")


if __name__ == "__main__":
    main()
