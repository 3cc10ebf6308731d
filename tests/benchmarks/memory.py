"""Memory as estimated on meta tensors against what torch's allocator reports: `python -m tests.benchmarks.memory`.

Over the networks of tests/laws/packages.py: the peak of a forward pass and of a forward and backward, parameters apart. Prints
a Markdown table; `--json FILE` writes the rows; `--write tests/benchmarks/RESULTS.md` puts it between the marks there. `--amp`: both under
16-bit autocast, and no more than the summary is written. `--device cuda`: on a GPU, whose convolutions take a workspace
that no estimate knows. `--full`: four networks of the size at which they are used. What `--write` writes on a GPU is of these.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packages
import torch
import zoo
from allocator import allocated, squares
from torch import nn

from ranp_cli.core.example import Example
from ranp_cli.costs.memory import forward_memory, training_memory

from .page import put
from .scoring import NETWORKS as FULL

MARKS = {
    ("cpu", False): ("<!-- memory table -->", "<!-- end of memory table -->"),
    ("cpu", True): ("<!-- memory in 16 bits -->", "<!-- end of memory in 16 bits -->"),
    ("cuda", False): ("<!-- memory on a GPU -->", "<!-- end of memory on a GPU -->"),
    ("cuda", True): ("<!-- memory on a GPU in 16 bits -->", "<!-- end of memory on a GPU in 16 bits -->"),
}


def row(name: str, model: nn.Module, x: torch.Tensor, amp: bool = False, device: str = "cpu") -> dict[str, Any]:
    example, there = Example((x,)), x.to(device)
    forward = forward_memory(model, example, device, amp)
    training = training_memory(model, example, loss=squares, device=device, amp=amp)
    return {
        "network": name,
        "forward": (forward.working, allocated(model, there, False, amp)),
        "training": (training.working, allocated(model, there, True, amp)),
    }


def networks(full: bool) -> dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]]:
    """Name -> how to make a model and its input."""
    if full:
        return {name: (lambda build=build, make=make: (build(), make()[0])) for name, (build, make) in FULL.items()}
    return {case.name: (lambda case=case: (zoo.build(case), torch.randn(case.shape))) for case in packages.CASES}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | forward, MiB | measured | ratio | training, MiB | measured | ratio |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for r in rows:
        cells = [r["network"]]
        for told, seen in (r["forward"], r["training"]):
            cells += [f"{told / 2**20:.2f}", f"{seen / 2**20:.2f}", f"{told / seen:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", summary(rows)])


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for kind in ("forward", "training"):
        off = [abs(told / seen - 1) for told, seen in (r[kind] for r in rows)]
        worst = max(zip(off, (r["network"] for r in rows), strict=True))
        far = sum(each > 0.15 for each in off)
        lines += [
            "",
            f"{kind}: off by {statistics.median(off):.1%} at the median, {worst[0]:.0%} at worst ({worst[1]}); "
            f"{far} of {len(off)} by more than 15 %.",
        ]
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names of tests/laws/packages.py; all by default")
    parser.add_argument(
        "--full", action="store_true", help="the networks of scoring.py, at the size at which they are used"
    )
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    parser.add_argument("--amp", action="store_true", help="under 16-bit autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    known = networks(options.full)
    if unknown := set(options.networks) - set(known):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    rows = [row(name, *known[name](), options.amp, options.device) for name in options.networks or known]
    if options.json:
        Path(options.json).write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")
    if options.write:
        text = summary(rows) if options.amp else markdown(rows)
        put(Path(options.write), text, MARKS[options.device, options.amp])
    print(markdown(rows))


if __name__ == "__main__":
    main()
