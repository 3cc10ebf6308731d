"""Does the README's example learn? Its network, dense and slim, trained on its shapes: the README's first table.

    python -m tests.benchmarks.first_table --write README.md    # about 6 minutes on two cores

For each seed the network is drawn, pruned with the README's options, and both are trained with the same steps on 200
shapes; the mean intersection over union (mIoU) is that of the six parts of 48 other shapes. The slim network starts from
its surviving weights, as the slim file holds them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ranp_cli as ranp

SAMPLES = Path(__file__).parents[2] / "sample_configs"
START, END = "<!-- first table -->\n", "<!-- end of first table -->\n"
Batches = list[tuple[Tensor, Tensor]]
CLASSES, IGNORED = 6, 255


def shapes(batches: int, seed: int) -> Batches:
    """Mini-batches of one chair and one airplane, as `calib.pt` has them: (2, 1, 24, 24, 24) and (2, 24, 24, 24)."""
    if str(SAMPLES) not in sys.path:
        sys.path.insert(0, str(SAMPLES))
    from make_calib import make_calib  # the sample that users read

    return [(x, y.long()) for x, y in make_calib(batches, seed)]


def train(net: nn.Module, data: Batches, steps: int, seed: int, ignored: int = IGNORED,
          after: Callable[[int], None] = lambda step: None, decay: bool = True,
          loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:  # fmt: skip
    """Adam at 3e-3, with cosine decay; each pass over the data in another order. `after` is called after each step; `loss` is cross-entropy by default."""
    rng, order = random.Random(seed), []
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for step in range(1, steps + 1):
        if not order:
            order = rng.sample(range(len(data)), len(data))
        x, y = data[order.pop()]
        optimizer.zero_grad()
        (loss(net(x), y) if loss else F.cross_entropy(net(x), y, ignore_index=ignored)).backward()
        optimizer.step()
        if decay:
            schedule.step()
        after(step)


def mean_iou(outputs: list[Tensor], targets: list[Tensor], classes: int = CLASSES, ignored: int = IGNORED) -> float:
    """The mean over the classes of intersection over union, of all voxels that count."""
    counts = np.zeros((classes, classes))
    for output, y in zip(outputs, targets, strict=True):
        known = y != ignored
        pairs = y[known] * classes + output.argmax(1)[known]
        counts += np.bincount(pairs.numpy(), minlength=classes**2).reshape(classes, classes)
    both = np.diag(counts)
    return float(np.mean(both / np.maximum(counts.sum(0) + counts.sum(1) - both, 1)))


def settle_batch_norm(net: nn.Module, data: Batches) -> None:
    """Take the running statistics of batch norm anew, as plain means over these mini-batches.

    torch's are those of the last ten or so, here 20 crops: they alone moved the Dice of a trained network by 0.1.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    with torch.no_grad():
        for x, _ in data:
            net(x)
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before


def outputs_of(net: nn.Module, data: Batches) -> list[Tensor]:
    """What the network says of each mini-batch, in eval mode."""
    net.eval()
    with torch.no_grad():
        return [net(x) for x, _ in data]


def measure(seeds: int, steps: int, progress: Any = print) -> dict[str, Any]:
    """The report of the pruning of seed 0, and the mIoU of both networks under each seed."""
    data, test, calibration = shapes(100, 1234), shapes(24, 99), shapes(4, 0)
    from model import UNet3D  # of sample_configs, beside make_calib

    found: dict[str, Any] = {"dense": [], "slim": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        dense = UNet3D()
        pruned = ranp.prune(dense, calibration, sparsity=0.78, resource="mem", seed=seed)
        found.setdefault("report", pruned.report.to_dict())
        for name, net in (("slim", pruned.model), ("dense", dense)):
            train(net, data, steps, seed)
            found[name].append(mean_iou(outputs_of(net, test), [y for _, y in test]))
            progress(f"seed {seed} {name} mIoU {found[name][-1]:.3f}")
    return found


def table(found: dict[str, Any]) -> str:
    before, after, memory = found["report"]["before"], found["report"]["after"], found["report"]["memory"]

    def row(label: str, was: float, now: float, unit: float, name: str) -> str:
        return f"| {label} | {was / unit:.3g} {name} | {now / unit:.3g} {name} | -{1 - now / was:.1%} |"

    def spread(values: list[float]) -> str:
        deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{deviation}"

    change = statistics.mean(found["slim"]) - statistics.mean(found["dense"])
    return "\n".join([
        "| | dense | slim | |",
        "|---|---:|---:|---:|",
        row("parameters", before["params"], after["params"], 1e6, "M"),
        row("multiply-adds of a forward pass", before["macs"], after["macs"], 1e9, "G"),
        row("peak of a training step", memory["before"]["train_peak_bytes"], memory["after"]["train_peak_bytes"], 2**20, "MiB"),
        f"| mIoU after the same training, {len(found['dense'])} seeds | {spread(found['dense'])} | {spread(found['slim'])} "
        f"| {change:+.3f} |",
    ]) + "\n"  # fmt: skip


def write(path: Path, text: str) -> None:
    """Put the table between its marks."""
    page = path.read_text()
    head, rest = page.split(START)
    path.write_text(head + START + "\n" + text + "\n" + END + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--write", type=Path, help="a page with the marks of the table")
    options = parser.parse_args()
    text = table(measure(options.seeds, options.steps))
    print(text)
    if options.write:
        write(options.write, text)


if __name__ == "__main__":
    main()
