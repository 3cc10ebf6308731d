"""What the planning of `--low-memory` costs beside the scoring that it plans: `python -m tests.benchmarks.planning [--write tests/benchmarks/RESULTS.md]`.

For each network one mini-batch of two samples is scored plainly and with `--low-memory`; the time of the plan is measured inside the
latter. Medians, in turns. The peaks are those that the plan estimates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from ranp_cli.core.example import Example
from ranp_cli.costs.latency_table import processor
from ranp_cli.graph.analyse import analyse
from ranp_cli.io.batches import Batch
from ranp_cli.models.unet3d import unet3d
from ranp_cli.scoring import recompute_plan, scorer
from ranp_cli.scoring.criteria import criterion
from ranp_cli.scoring.over_batches import score
from ranp_cli.scoring.setup import GradientSetup

from .page import put
from .runtimes import SAMPLES, plain_conv_unet

MARKS = "<!-- planning -->", "<!-- end of planning -->"
CPU = torch.device("cpu")
MINI_BATCHES = 4  # as many as the sample has


def sample() -> nn.Module:
    sys.path.insert(0, str(SAMPLES))
    from model import UNet3D

    return UNet3D()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "the sample, 24^3": (sample, 24),
    "3D-UNet of width 16, 48^3": (lambda: unet3d(15, 16, 1, 4), 48),
    "PlainConvUNet, 48^3": (plain_conv_unet, 48),
}


def measured(build: Callable[[], nn.Module], size: int, repeats: int) -> dict[str, float]:
    """Seconds of scoring a mini-batch plainly, with low memory, and of its plan; the share of a plain pass' peak that is left."""
    torch.manual_seed(0)
    model, x = build().train(), torch.randn(2, 1, size, size, size)
    with torch.no_grad():
        classes = model(x).shape[1]
    batches = [Batch((x,), {}, torch.randint(classes, (2, size, size, size)))]
    graph = analyse(model, Example((x,)))
    plans: list[recompute_plan.RecomputePlan] = []
    seconds: dict[str, list[float]] = {"plain": [], "low": [], "plan": []}

    def timed_plan(*args: Any) -> recompute_plan.RecomputePlan:
        start = time.perf_counter()
        plans.append(recompute_plan.plan(*args))
        seconds["plan"].append(time.perf_counter() - start)
        return plans[-1]

    with mock.patch.object(scorer, "plan", timed_plan):
        for _ in range(1 + repeats):  # the first warms up
            for way in ("plain", "low"):
                start = time.perf_counter()
                score(
                    model,
                    graph,
                    batches,
                    F.cross_entropy,
                    [criterion("mpmg-sum")],
                    CPU,
                    way=GradientSetup(low_memory=way == "low"),
                )
                seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(some[1:]) for way, some in seconds.items()}
    return {**medians, "left": plans[-1].peak / plans[-1].plain}


def markdown(rows: dict[str, dict[str, float]], about: str) -> str:
    lines = [
        "| network | plain | `--low-memory` | its peak | the plan | of one mini-batch | of four |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        work = row["low"] - row["plan"]
        lines.append(
            f"| {name} | {row['plain']:.2f} s | {work:.2f} s | {row['left']:.0%} | {row['plan']:.2f} s | {row['plan'] / work:.0%} | "
            f"{row['plan'] / (MINI_BATCHES * work):.0%} |"
        )
    return "\n".join([*lines, "", f"Seconds of one mini-batch of two samples, without the plan; the estimated peak as a share of a plain pass'; the plan, made once, beside the scoring of as many mini-batches. {about}."])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    rows = {name: measured(*network, options.repeats) for name, network in NETWORKS.items()}
    table = markdown(
        rows,
        f"{processor(CPU)}, torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {options.repeats}",
    )
    if options.write:
        put(Path(options.write), table, MARKS)
    print(table)


if __name__ == "__main__":
    main()
