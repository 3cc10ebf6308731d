"""Real speed of a dense 3D-UNet against slim ones, beside what the multiply-adds promise: `python -m tests.benchmarks.speed`.

The 15-layer UNet on procedural voxel shapes of 64^3, pruned at initialization to a sparsity of 0.78. All networks are
timed turn by turn in one loop, forward and training step, so that what else the machine does hits all of them. Prints a
Markdown table; `--json FILE` writes the rows; `--write tests/benchmarks/RESULTS.md` puts the table between the marks there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.costs.latency_table import processor
from ranp_cli.costs.timing import Benchmark
from ranp_cli.models.unet3d import unet3d
from ranp_cli.samples import voxel_shapes

from .page import put

MARKS = "<!-- speed -->", "<!-- end of speed -->"
SLIM: dict[str, dict[str, Any]] = {
    "RANP-f": {"resource": "flops"},
    "RANP-f, `--round-to 8`": {"resource": "flops", "round_to": 8},
    "RANP-f, `--round-to 16`": {"resource": "flops", "round_to": 16},
    "RANP by latency": {"resource": "latency"},
    "RANP by latency, `--round-to 16`": {"resource": "latency", "round_to": 16},
}


def measured(width: int, size: int, batches: int, sparsity: float, device: torch.device) -> dict[str, Any]:
    """The rows, the dense network first, and what they were measured on."""
    torch.manual_seed(0)
    dense = unet3d(layers=15, width=width, num_classes=50)
    data = list(voxel_shapes(size=size, batches=batches))
    scores = ranp.score(dense, data, device=str(device))
    found = {
        name: ranp.prune(dense, scores=scores, sparsity=sparsity, device=str(device), min_neurons=1, **how)
        for name, how in SLIM.items()
    }
    models = [dense, *(each.model for each in found.values())]
    stand = Benchmark(Example((data[0][0],)), device)
    forward, step = stand.forward(*models), stand.step(*models)
    report = next(iter(found.values())).report.to_dict()
    kept = [report["neurons"]["total"], *(each.mask.kept for each in found.values())]
    macs = [report["before"]["macs"], *(each.report.to_dict()["after"]["macs"] for each in found.values())]
    rows = [
        {"network": name, "neurons": kept[k], "macs": macs[k], "forward_s": forward.seconds[k], "step_s": step.seconds[k],
         "theoretical_speedup": macs[0] / macs[k], "forward_speedup": forward.seconds[0] / forward.seconds[k],
         "step_speedup": step.seconds[0] / step.seconds[k]} for k, name in enumerate(["dense", *found])
    ]  # fmt: skip
    return {"device": device.type, "width": width, "size": size, "sparsity": sparsity, "threads": torch.get_num_threads(), "processor": processor(device),
            "repeats": [forward.repeats, step.repeats], "torch": torch.__version__, "rows": rows}  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    lines = [
        "| network | neurons | multiply-adds, G | promised | forward, s | faster | training step, s | faster |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in found["rows"]:
        gains = [f"{r[key]:.1f} x" for key in ("theoretical_speedup", "forward_speedup", "step_speedup")]
        promised, forward, step = gains if r is not found["rows"][0] else ("", "", "")
        cells = [r["network"], r["neurons"], f"{r['macs'] / 1e9:.2f}", promised, f"{r['forward_s']:.3f}", forward,
                 f"{r['step_s']:.3f}", step]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    threads = f", {found['threads']} thread{'s' * (found['threads'] != 1)}" if found["device"] == "cpu" else ""
    lines += ["", f"3D-UNet of 15 layers, {found['width']} maps, 50 classes, one sample of {found['size']}^3 in fp32, sparsity "
              f"{found['sparsity']}; {found['processor']}{threads}, torch {found['torch']}; medians of "
              f"{found['repeats'][0]} (forward) and {found['repeats'][1]} (step) rounds of one loop over all rows."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=32, help="maps of the UNet; 64 in the paper")
    parser.add_argument("--size", type=int, default=64, help="voxels along each edge")
    parser.add_argument("--batches", type=int, default=2, help="mini-batches that are scored")
    parser.add_argument("--sparsity", type=float, default=0.78)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="torch's own number by default")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measured(options.width, options.size, options.batches, options.sparsity, options.device)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.write:
        put(Path(options.write), markdown(found), MARKS)
    print(markdown(found))


if __name__ == "__main__":
    main()
