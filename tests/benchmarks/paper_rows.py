"""The paper's Table 2 beside ours, as far as it counts resources: each row over several seeds, nothing is trained.

    python -m tests.benchmarks.paper_rows --cells FOLDER --write tests/benchmarks/RESULTS.md    # `--seeds 5`, all networks

Each network is the paper's, at its full size, with Glorot weights, scored on procedural data of ranp_cli/samples (the paper
scored on ShapeNet, BraTS'18 and UCF101), cut at the paper's sparsity with the paper's lambda and a floor of one neuron, and
counted as the paper counts. A seed draws the weights and the data. The BraTS network is scored at 96^3, as the authors'
scripts do, and counted at 128^3. SNIP's sparsity is that of the parameters. Each network and seed is a line of
FOLDER/paper_rows.jsonl; the same command goes on where it was stopped, and the page gets each network whose seeds are all there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

import ranp_cli as ranp
from ranp_cli import samples
from ranp_cli.models.i3d import i3d
from ranp_cli.models.mobilenetv2 import mobilenetv2_3d
from ranp_cli.models.psmnet import psmnet
from ranp_cli.models.unet3d import unet3d

from .page import Lines, put

MARKS = "<!-- paper rows -->", "<!-- end of paper rows -->"
NAMES = {"full": "full", "snip": "SNIP", "random": "random", "layerwise": "layer-wise", "vanilla": "vanilla", "weighted": "weighted",
         "ranp-mem": "RANP-m", "ranp-flops": "RANP-f"}  # fmt: skip
NEAR = 0.1  # a median within so much of the paper's number is near it
Row = tuple[float, float, float]  # MB of parameters, GFLOPs, MB of memory


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    batches: Callable[..., Any]  # of `batches` and `seed`
    inputs: Any  # shape or shapes that the paper counts for
    lam: float
    sparsity: float
    snip: float | None = None  # the sparsity of the parameters; None: the paper has no such row
    paper: dict[str, Row] = field(default_factory=dict)
    loss: str | None = None


# Table 2 of Xu et al., "RANP", 3DV 2020, with the sparsities of its section 5.3 and the lambdas of section 5.1
NETWORKS = {
    "3D-UNet, ShapeNet": Network(
        partial(unet3d, 15, 64, softmax=True), samples.voxel_shapes, (1, 1, 64, 64, 64), 11, 0.7824, 0.9898,
        {"full": (62.26, 237.85, 997.00), "snip": (5.31, 126.22, 833.20), "random": (3.05, 10.36, 267.95),
         "layerwise": (2.99, 11.63, 296.22), "vanilla": (2.54, 55.69, 557.32), "weighted": (2.97, 12.06, 301.56),
         "ranp-mem": (3.39, 6.68, 214.95), "ranp-flops": (2.94, 7.54, 262.66)},
    ),
    "3D-UNet, BraTS": Network(
        partial(unet3d, 15, 32, 4, 5), partial(samples.brain_volumes, size=96), (1, 4, 128, 128, 128), 15, 0.7817, 0.9888,
        {"full": (15.57, 478.13, 3628.00), "snip": (1.09, 233.11, 2999.64), "random": (0.75, 22.59, 817.59),
         "layerwise": (0.75, 24.09, 836.88), "vanilla": (0.55, 104.50, 1936.44), "weighted": (0.79, 22.40, 860.64),
         "ranp-mem": (0.87, 13.47, 506.97), "ranp-flops": (0.76, 16.97, 729.11)},
    ),
    "MobileNetV2, UCF101": Network(
        mobilenetv2_3d, samples.moving_patterns, (1, 3, 16, 112, 112), 80, 0.3315, 0.8626,
        {"full": (9.47, 0.58, 157.47), "snip": (3.67, 0.54, 155.35), "random": (4.58, 0.34, 106.68),
         "layerwise": (4.56, 0.33, 106.92), "vanilla": (6.35, 0.55, 155.17), "weighted": (4.82, 0.30, 100.33),
         "ranp-mem": (4.87, 0.27, 84.51), "ranp-flops": (4.83, 0.26, 88.01)},
    ),
    "I3D, UCF101": Network(
        i3d, partial(samples.moving_patterns, size=224), (1, 3, 16, 224, 224), 80, 0.2532, 0.8109,
        {"full": (47.27, 27.88, 201.28), "snip": (30.06, 26.31, 195.62), "random": (26.36, 16.45, 145.07),
         "layerwise": (26.67, 16.93, 150.95), "vanilla": (29.93, 25.76, 192.42), "weighted": (26.57, 15.56, 142.57),
         "ranp-mem": (26.75, 14.08, 130.44), "ranp-flops": (26.69, 13.98, 130.22)},
    ),
    "PSMNet, SceneFlow": Network(
        psmnet, samples.stereo_pairs, ((1, 3, 256, 512), (1, 3, 256, 512)), 100, 0.462, loss="smooth_l1",
    ),
}  # fmt: skip


def cell(network: Network, count: int, seed: int) -> dict[str, Any]:
    """One network under one seed: method -> its share of neurons removed, the layers at their floor, and the paper's counts."""
    start = time.perf_counter()
    batches = list(network.batches(batches=count, seed=1000 + seed))
    levels = [network.sparsity] + [network.snip] * (network.snip is not None)
    methods = [name for name in NAMES if name != "snip" or network.snip is not None]
    table = ranp.compare(network.build, batches, sparsity=levels, methods=methods, min_neurons=1, lambda_=network.lam,
                         score_init="glorot", inputs=network.inputs, loss=network.loss, seed=seed)  # fmt: skip
    rows = {}
    for row in table.rows:
        wanted = {"full": 0.0, "snip": network.snip}.get(row["method"], network.sparsity)
        if row["sparsity"]["requested"] == wanted:
            ours = row["after"]["paper"]
            rows[row["method"]] = {"removed": row["sparsity"]["achieved"], "floored": len(row["floored"]),
                                   "ours": [ours["param_mb"], ours["gflops"], ours["memory_mb"]]}  # fmt: skip
    return {"rows": rows, "seconds": round(time.perf_counter() - start, 1)}


def listed(names: list[str]) -> str:
    return ", ".join(name.replace(", ", " on ") for name in names)


def verdict(cells: dict[str, list[dict[str, Any]]]) -> str:
    """How often the paper's GFLOPs and memory lie in the range of our seeds, or near their median; `full` is left out."""
    inside, near, total = 0, 0, 0
    far: dict[str, list[str]] = {}
    for name, held in cells.items():
        for method, theirs in NETWORKS[name].paper.items():
            if method == "full":
                continue
            close = []
            for at in (1, 2):
                values = [each["rows"][method]["ours"][at] for each in held]
                within = round(min(values), 2) <= theirs[at] <= round(max(values), 2)
                close.append(within or abs(median(values) / theirs[at] - 1) <= NEAR)
                inside, near, total = inside + within, near + close[-1], total + 1
            if not all(close):
                far.setdefault(NAMES[method], []).append(name)
    text = (f"Of the paper's {total} numbers for pruned networks, {inside} lie in the range of our seeds, and {near} there or "
            f"within {NEAR:.0%} of our median.")  # fmt: skip
    parts = [f"{method} ({listed(names)})" for method, names in far.items()]
    if parts:
        text += f" Ours differ by more for {'; '.join(parts)}."
    return text


def claim(cells: dict[str, list[dict[str, Any]]]) -> str:
    """The paper's claim: RANP needs less of both resources than weighted and vanilla pruning at the same sparsity."""
    parts = []
    for name, held in cells.items():
        middle = {method: [median(each["rows"][method]["ours"][at] for each in held) for at in (1, 2)]
                  for method in ("vanilla", "weighted", "ranp-mem", "ranp-flops")}  # fmt: skip
        ours = [min(middle["ranp-mem"][at], middle["ranp-flops"][at]) for at in (0, 1)]
        ahead = all(ours[at] < middle[rival][at] for at in (0, 1) for rival in ("vanilla", "weighted"))
        parts.append((name, ahead))
    yes, no = ([name for name, ahead in parts if ahead is wanted] for wanted in (True, False))
    text = f"RANP (RANP-m or RANP-f, whichever needs less) takes fewer GFLOPs and less memory than vanilla and weighted pruning on {listed(yes) or 'no network'}, as the paper says"
    return f"{text}{'; **not** on ' + listed(no) if no else ''}."


def markdown(cells: dict[str, list[dict[str, Any]]]) -> str:
    """One row a network and method: the median of the seeds, their least and most, and the paper's number."""
    lines = [f"{claim(cells)} {verdict(cells)}", "",
             "| network, seeds | method | neurons removed | parameters, MB | paper | GFLOPs | paper | memory, MB | paper |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, held in cells.items():
        network = NETWORKS[name]
        dense = held[0]["rows"]["full"]["ours"]
        for k, method in enumerate(held[0]["rows"]):
            rows = [each["rows"][method] for each in held]
            floored = max(row["floored"] for row in rows)
            removed = f"{median(row['removed'] for row in rows):.1%}" + f" (floor in up to {floored})" * bool(floored)
            label = NAMES[method] + (f", {network.snip:.2%} of the weights masked" if method == "snip" else "")
            texts = [f"{name}, {len(held)}" if k == 0 else "", label, removed]
            theirs = network.paper.get(method)
            for at in range(3):
                values = [row["ours"][at] for row in rows]
                texts.append(spread(values, dense[at] if method != "full" else None, at > 0))
                texts.append(spread([theirs[at]], network.paper["full"][at] if method != "full" else None) if theirs else "")  # fmt: skip
            lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def spread(values: list[float], dense: float | None, ends: bool = False) -> str:
    """`7.85 (7.31 to 8.40), -96.7%`: the median, the least and most where they differ, and what that is less than dense."""
    middle, low, high = (f"{f(values):.2f}" for f in (median, min, max))
    text = middle + f" ({low} to {high})" * (ends and low != high)
    return text if dense is None else f"{text}, -{1 - median(values) / dense:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"which to score, in this order, of {', '.join(NETWORKS)}")
    parser.add_argument("--cells", type=Path, required=True, help="a folder for what was counted")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="mini-batches to score (default 6)")
    parser.add_argument("--write", type=Path, help="put the table between the marks of this page")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    lines = Lines(options.cells / "paper_rows.jsonl", ("network", "seed", "batches"))
    for name in options.networks or NETWORKS:
        for seed in range(options.seeds):
            key = {"network": name, "seed": seed, "batches": options.batches}
            found = lines.get(partial(cell, NETWORKS[name], options.batches, seed), **key)
            print(f"{name}, seed {seed}: {found['seconds']} s", flush=True)
        held = {
            each: [lines.held.get((each, seed, options.batches)) for seed in range(options.seeds)] for each in NETWORKS
        }
        text = markdown({each: found for each, found in held.items() if all(found)})
        if options.write:
            put(options.write, text, MARKS)
    print(text)


if __name__ == "__main__":
    main()
