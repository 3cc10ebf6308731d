"""The paper's Table 2 beside ours: `python -m tests.benchmarks.paper_rows [--json FILE] [--write README.md] [NETWORK ...]`.

Each network is the paper's, at its full size, scored on the procedural data of ranp_cli/samples (the paper scored on
ShapeNet, BraTS'18 and UCF101), cut at the paper's sparsity with the paper's lambda, and counted as the paper counts: MB of
parameters, GFLOPs, MB of memory. The BraTS network is scored at 96^3, as the authors' scripts do, and counted at 128^3.
Layer-wise does not depend on data. `--init` draws the weights first, as the paper does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import ranp_cli as ranp
from benchmarks.zoo_table import put
from ranp_cli import samples
from ranp_cli.models.i3d import i3d
from ranp_cli.models.mobilenetv2 import mobilenetv2_3d
from ranp_cli.models.psmnet import psmnet
from ranp_cli.models.unet3d import unet3d

MARKS = "<!-- paper rows -->", "<!-- end of paper rows -->"
VARIANTS = tuple(f"vanilla:{sign}-{over}" for sign in ("mpmg", "mnmg") for over in ("sum", "mean", "max"))
METHODS = ("full", "snip", "random", "layerwise", *VARIANTS, "weighted", "ranp-m", "ranp-f")
Row = tuple[float | None, float | None, float | None]  # MB of parameters, GFLOPs, MB of memory; None: not known to us


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    batches: Callable[[], Any]
    inputs: Any  # shape or shapes that the paper counts for
    lam: float
    sparsity: float
    paper: dict[str, Row]
    reductions: dict[str, tuple[float, float]] = field(default_factory=dict)  # method -> of GFLOPs, of memory
    loss: str | None = None


NETWORKS = {
    "3D-UNet, ShapeNet": Network(
        lambda: unet3d(15, 64, softmax=True), samples.voxel_shapes, (1, 1, 64, 64, 64), 11, 0.7824,
        {"full": (62.26, 237.85, 997.00), "layerwise": (2.99, 11.63, 296.22)}, {"ranp-flops": (0.968, 0.71)},
    ),
    "3D-UNet, BraTS": Network(
        lambda: unet3d(15, 32, 4, 5), lambda: samples.brain_volumes(size=96), (1, 4, 128, 128, 128), 15, 0.7817,
        {"full": (15.57, 478.13, 3628.00), "layerwise": (0.75, 24.09, 836.88), "ranp-mem": (None, 13.47, 506.97),
         "ranp-flops": (None, 16.97, 729.11)},
    ),
    "MobileNetV2, UCF101": Network(
        mobilenetv2_3d, samples.moving_patterns, (1, 3, 16, 112, 112), 80, 0.3315,
        {"full": (9.47, 0.58, 157.47)}, {"ranp-flops": (0.552, 0.441)},
    ),
    "I3D, UCF101": Network(
        i3d, samples.moving_patterns_224, (1, 3, 16, 224, 224), 80, 0.2532,
        {"full": (47.27, 27.88, 201.28), "layerwise": (26.67, 16.93, 150.95)}, {"ranp-flops": (0.499, 0.353)},
    ),
    "PSMNet, SceneFlow": Network(
        psmnet, samples.stereo_pairs, ((1, 3, 256, 512), (1, 3, 256, 512)), 100, 0.462, {}, loss="smooth_l1",
    ),
}  # fmt: skip


def rows_of(name: str, network: Network, count: int, init: str, seed: int) -> list[dict[str, Any]]:
    """Our rows of one network, each with the paper's where we know it."""
    start = time.perf_counter()
    table = ranp.compare(network.build(), list(islice(network.batches(), count)), sparsity=network.sparsity, methods=METHODS, min_neurons=1,
                         lambda_=network.lam, score_init=init, inputs=network.inputs, loss=network.loss, seed=seed)  # fmt: skip
    rows = []
    for row in table.rows:
        ours, known = row["after"]["paper"], network.paper.get(row["method"], (None, None, None))
        rows.append({
            "network": name, "method": row["method"], "sparsity": row["sparsity"], "floored": row["floored"],
            "ours": (ours["param_mb"], ours["gflops"], ours["memory_mb"]), "paper": known,
            "reduction": (row["reduction"]["paper"]["gflops"], row["reduction"]["paper"]["memory_mb"]),
            "paper_reduction": network.reductions.get(row["method"]), "seconds": round(time.perf_counter() - start, 1),
        })  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Ours, and the paper's in brackets."""
    lines = [
        "| network | method | neuron sparsity | parameters, MB | GFLOPs | memory, MB | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for k, row in enumerate(rows):
        first = k == 0 or rows[k - 1]["network"] != row["network"]
        cells = [row["network"] if first else "", row["method"], f"{row['sparsity']['achieved']:.1%}"]
        for value, theirs in zip(row["ours"], row["paper"], strict=True):
            cells.append(f"{value:.2f}" + (f" ({theirs:.2f})" if theirs is not None else ""))
        for at, theirs in enumerate(row["paper_reduction"] or ()):
            cells[4 + at] += f", -{row['reduction'][at]:.1%} (-{theirs:.1%})"
        cells.append(f"floor in {len(row['floored'])}" if row["floored"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "In brackets: the paper's number, where we know it."])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--batches", type=int, default=6, help="mini-batches to score (default 6)")
    parser.add_argument("--init", default="glorot", help="weights: keep, glorot, orthogonal, factory (default glorot)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--write", metavar="README", help="put the table between the marks of this file")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    rows = []
    for name in options.networks or NETWORKS:
        rows += rows_of(name, NETWORKS[name], options.batches, options.init, options.seed)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    if options.write:
        put(Path(options.write), markdown(rows), MARKS)
    print(markdown(rows))


if __name__ == "__main__":
    main()
