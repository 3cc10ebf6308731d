"""A network pruned to a memory budget, and what its training step really takes: `python -m tests.benchmarks.budget`.

The paper's 3D-UNet is scored on small volumes and pruned such that a training step on a large one fits (`prune --input
--budget train-mem=...`); then real training steps run on this machine's CPU, the slim network's and the dense one's, and
torch's allocator says what they held: tensors that are handed out, on top of parameters, buffers, input and state.
Prints a Markdown table; `--json FILE` writes the numbers; `--write tests/benchmarks/RESULTS.md` puts the table between the marks there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from allocator import peak_of
from optimizers import OPTIMIZERS

import ranp_cli as ranp
from ranp_cli.core.numbers import shown
from ranp_cli.costs.memory import STATES, plain_loss
from ranp_cli.models.unet3d import unet3d

from .page import put

MARKS = "<!-- budget -->", "<!-- end of budget -->"
CLASSES = 4


def measured(model: torch.nn.Module, size: int, name: str) -> int:
    """The most bytes of a real step, the second one: from then on the optimiser has its state."""
    model.train()
    x = torch.randn(1, 1, size, size, size)
    optimizer = OPTIMIZERS[name](model.parameters())

    def step() -> None:
        plain_loss(model(x)).backward()
        optimizer.step()
        optimizer.zero_grad()

    if STATES[name]:
        step()
    worked = peak_of(step)
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    held = [*model.parameters(), *model.buffers(), x, *state]
    return worked + sum(t.numel() * t.element_size() for t in held)


def prune(options: argparse.Namespace) -> tuple[torch.nn.Module, ranp.Pruned]:
    torch.manual_seed(0)
    dense = unet3d(layers=15, width=options.width, num_classes=CLASSES)
    batches = [
        (torch.randn(1, 1, *[options.scored] * 3), torch.randint(CLASSES, (1, *[options.scored] * 3))) for _ in range(2)
    ]
    budget = [f"train-mem={options.budget}"]
    shape = (1, 1, *[options.size] * 3)
    return dense, ranp.prune(dense, batches, budget=budget, inputs=shape, optimizer=options.optimizer, resource="mem")


def numbers(options: argparse.Namespace) -> dict[str, Any]:
    dense, found = prune(options)
    report = found.report.to_dict()
    line = report["budget"][0]
    out = {
        "width": options.width, "size": options.size, "scored": options.scored, "optimizer": options.optimizer,
        "threads": torch.get_num_threads(), "budget": options.budget, "bound": line["bound"],
        "neurons": report["neurons"], "macs": [report[side]["train_macs"] for side in ("before", "after")],
        "estimated": [line["before"], line["after"]],
    }  # fmt: skip
    for p in dense.parameters():
        p.grad = None
    sides = [] if options.slim_only else [dense]
    seen = [measured(model, options.size, options.optimizer) for model in (*sides, found.model)]
    return {**out, "measured": [None] * options.slim_only + seen}


def markdown(n: dict[str, Any]) -> str:
    def size(value: float | None) -> str:
        return "" if value is None else shown("train-mem", value)

    lines = [
        f"| 3D-UNet, 15 layers, {n['width']} maps, {n['size']}^3, {n['optimizer']} | neurons | multiply-adds of a step | estimated peak | "
        "measured | estimated / measured |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    counts = (n["neurons"]["total"], n["neurons"]["kept"])
    for name, count, macs, told, seen in zip(("dense", f"`--budget train-mem={n['budget']}`"), counts, n["macs"], n["estimated"], n["measured"], strict=True):  # fmt: skip
        ratio = "" if seen is None else f"{told / seen:.3f}"
        lines.append(f"| {name} | {count} | {shown('macs', macs)} | {size(told)} | {size(seen)} | {ratio} |")
    under = n["measured"][1] <= n["bound"]
    lines += ["", f"The bound is {size(n['bound'])}: measured, the slim network is {'under' if under else 'OVER'} it "
                  f"({n['measured'][1] / n['bound']:.1%}). {n['threads']} threads."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=32, help="maps of the first level")
    parser.add_argument("--size", type=int, default=128, help="edge of the volume that is trained on")
    parser.add_argument("--scored", type=int, default=32, help="edge of the volume that is scored")
    parser.add_argument("--budget", default="1GiB", help="of the training step")
    parser.add_argument("--optimizer", choices=STATES, default="adam")
    parser.add_argument("--slim-only", action="store_true", help="do not measure the dense network")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    found = numbers(options)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.write:
        put(Path(options.write), markdown(found), MARKS)
    print(markdown(found))


if __name__ == "__main__":
    main()
