"""Does a slim network learn? Every method cut to the same multiply-adds and trained from its own start, under several seeds.

    pip install -e '.[bench]'    # nilearn, whose wheel carries the anatomy of the task `tissue`
    python -m tests.benchmarks.accuracy shapes-16 tissue-16 --cells FOLDER [--seeds 3] [--device cuda]
    python -m tests.benchmarks.accuracy shapes-16 tissue-16 --cells FOLDER --write tests/benchmarks/RESULTS.md    # of these tasks

Each trained network is a line of FOLDER/TASK.jsonl; the same command goes on where it was stopped. Tasks: `shapes`, parts of
shapes (mean IoU); `tissue`, grey and white matter of the ICBM152 brain, trained on crops of one hemisphere and tested on the
other (mean Dice); `brains`, nested lesions (mean Dice of ET, TC, WT); `clips`, moving patterns (top-1). A number behind the
name is the width of the 3D-UNet; `nnunet-16` is nnU-Net's PlainConvUNet on the tissue. Where torch-pruning is installed, it has
a row (`torch_pruning_row.py`). `--seed 1 --seeds 1` trains those of one seed alone: the lines of such files may be joined.
On a GPU, which one so small network leaves idle, `torchrun --nproc-per-node 15 -m tests.benchmarks.accuracy clips --cells FOLDER
--device cuda --distributed` trains many at a time; torch-pruning's row is made by a run without it.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ranp_cli as ranp
from ranp_cli.io.losses import load_loss
from ranp_cli.models.mobilenetv2 import mobilenetv2_3d
from ranp_cli.models.unet3d import unet3d
from ranp_cli.samples import brain_volumes, moving_patterns

from .accuracy_page import section, write
from .first_table import SAMPLES, mean_iou, outputs_of, settle_batch_norm, shapes, train
from .page import Lines
from .torch_pruning_row import NAME as RIVAL
from .torch_pruning_row import rival_row

METHODS = ("ranp-f", "full", "ranp-m", "weighted", "vanilla", "snip", "random", "layerwise", "flat", "shuffle:ranp-f")
MARKS, PROBE = 8, 200
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
    loss: str = "cross_entropy"

    def on(self, device: str) -> Task:
        """The same with its data on a device."""
        train, test = ([(x.to(device), y.to(device)) for x, y in data] for data in (self.train, self.test))
        return replace(self, train=train, test=test)

    def loss_of(self, output: Tensor, target: Tensor) -> Tensor:
        return load_loss(self.loss, self.ignored)(output, target)

    def test_metrics(self, net: nn.Module, test: Batches, settle: int = 0) -> dict[str, float]:
        """The test, after batch norm has seen so many training batches; 0: with the statistics of the training."""
        if settle:
            settle_batch_norm(net, self.train[-settle:])
        return self.count([output.cpu() for output in outputs_of(net, test)], [y.cpu() for _, y in test])


def fit(task: Task, net: nn.Module, seed: int) -> dict[str, float]:
    """Train as the README's first table does, then count the test; on the way a part of the test, at MARKS marks.

    `probe_first` and `probe_last` are the losses of a probe: PROBE steps on the calibration batches (`--probe`).
    """
    probe_first, probe_last = probe(task, copy.deepcopy(net), seed)
    marks = {round(task.steps * (k + 1) / MARKS): 0.0 for k in range(MARKS)}

    def mark(step: int) -> None:
        if step in marks:
            marks[step] = next(iter(task.test_metrics(net, task.test[:8], 8).values()))
            net.train()

    train(net, task.train, task.steps, seed, after=mark, loss=task.loss_of)
    curve = {f"at_{step}": value for step, value in marks.items()}
    return {**task.test_metrics(net, task.test, 20), "probe_first": probe_first, "probe_last": probe_last, **curve}


def probe(task: Task, net: nn.Module, seed: int) -> tuple[float, float]:
    """The mean loss over the calibration batches, before and after PROBE steps on them."""
    data = task.train[:4]

    def loss() -> float:
        net.train()
        with torch.no_grad():
            return float(np.mean([task.loss_of(net(x), y).item() for x, y in data]))

    first = loss()
    train(net, data, PROBE, seed, decay=False, loss=task.loss_of)
    return first, loss()


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
    return Task(build, *data, partial(mean_dice, regions=regions), "width", 1600, loss="dice_ce")


def clips() -> Task:
    patterns = partial(moving_patterns, size=32, frames=8, classes=20)
    data = list(patterns(batch_size=16, batches=150, seed=1234)), list(patterns(batch_size=20, batches=10, seed=99))
    return Task(partial(mobilenetv2_3d, num_classes=20, width=0.5), *data, top_k, None, 2400)


def nnunet(width: int) -> Task:
    """nnU-Net's plain network (instance norm, leaky ReLU, biases) in place of the 3D-UNet; no deep supervision."""
    tissue = unet("tissue", width)
    return replace(tissue, build=partial(plain_unet, width=width))


def plain_unet(width: int) -> nn.Module:
    if str(SAMPLES) not in sys.path:
        sys.path.insert(0, str(SAMPLES))
    from nnunet import plain_unet as sample

    return sample(1, 3, [width, 2 * width, 4 * width, 8 * width], deep_supervision=False)


def task_of(name: str) -> Task:
    kind, _, width = name.partition("-")
    if kind == "clips" and not width:
        return clips()
    if kind not in ("shapes", "tissue", "brains", "nnunet") or not width.isdigit():
        raise SystemExit(
            f"unknown task {name}: give clips, or shapes, tissue, brains or nnunet with a width, such as shapes-16"
        )
    return nnunet(int(width)) if kind == "nnunet" else unet(kind, int(width))


def run(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is not in the file of cells yet, and lay all rows side by side."""
    task = task_of(name).on(options.device)
    path = options.cells / f"{name}.jsonl"
    given = {"resume": path} if path.exists() else {"cells": path}
    methods = options.methods or [*METHODS, *(["width"] if task.width_arg else [])]
    if options.trained:
        methods = [each for each in methods if cells_of(path)[each] == options.seeds]
    found = ranp.compare(task.build, task.train[:4], sparsity=options.sparsity, methods=methods, match="macs", width_arg=task.width_arg if "width" in methods else None,
                        fit=partial(fit, task), seed=options.seed, seeds=options.seeds, device=options.device, distributed=options.distributed,
                        loss=None if task.loss == "cross_entropy" else task.loss, ignore_index=task.ignored, init=options.init, **given)  # fmt: skip
    rows = list(found.rows)
    lines = Lines(options.cells / f"{name}.{RIVAL}.jsonl", ["seed"])
    is_made = len(lines.held) == options.seeds
    if is_made or (importlib.util.find_spec("torch_pruning") and not options.trained and not options.distributed):
        rival = rival_row(task, lines, rows, rows[0]["accuracy"]["metric"], fit)
        rows += [rival] if rival else []
    return rows


def cells_of(path: Path) -> Counter[str]:
    """How many networks of each method a file of cells has, by the names of METHODS."""
    found = (json.loads(line)["method"] for line in path.read_text().splitlines()[1:])
    return Counter(name.replace("ranp-flops", "ranp-f").replace("ranp-mem", "ranp-m") for name in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--cells", type=Path, required=True, help="a folder for what was trained")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--sparsity", type=float, default=0.78, help="of the first method; the others get its multiply-adds"
    )
    parser.add_argument("--init", default="keep", help="what the slim networks start from")
    parser.add_argument("--methods", nargs="+", help="the first method and others, in place of all")
    parser.add_argument("--distributed", action="store_true", help="this is one of torchrun's processes")
    parser.add_argument("--trained", action="store_true", help="only the methods whose networks are all trained")
    parser.add_argument("--write", type=Path, help="the page to put the tables into")
    options = parser.parse_args()
    options.cells.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True  # on a GPU: the fastest convolutions for these sizes
    tables = {}
    for name in options.tasks:
        tables[name] = run(name, options)
        print(section(name, tables[name]), flush=True)
    if options.write:
        write(options.write, tables)


if __name__ == "__main__":
    main()
