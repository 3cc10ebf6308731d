"""Networks cut to the same share of the dense one's measured latency, and trained: units exchanged by importance per millisecond, and the
best sparsity by latency, by FLOPs and layer-wise.

    python -m tests.benchmarks.latency_accuracy --cells FILE [--shares 50 25] [--seeds 3] [--write tests/benchmarks/RESULTS.md]

A share is in percent of the dense network's latency, of one sample in torch, on one thread. Tasks, training and tests are those of
`accuracy.py`. Each trained network is a line of FILE; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import ranp_cli as ranp
from ranp_cli.api import time_search
from ranp_cli.costs.latency_table import processor

from .accuracy import fit, task_of
from .page import Lines, put
from .runtimes import CPU

# by the name of a row: the arguments of `prune`, and whether units are exchanged
ROWS: dict[str, tuple[Mapping[str, str], bool]] = {
    "exchanged, from RANP-f on": ({"resource": "flops"}, True),
    "RANP by latency": ({"resource": "latency"}, False),
    "RANP-f": ({"resource": "flops"}, False),
    "layer-wise": ({"method": "layerwise"}, False),
}
FULL = "full"
MARKS = "<!-- latency accuracy -->", "<!-- end of latency accuracy -->"


def trained(task: str, share: int, row: str, seed: int) -> dict[str, Any]:
    """A network of this task, cut to this share and trained: its metrics, multiply-adds, latency beside the dense one's."""
    what = task_of(task)
    torch.manual_seed(seed)
    net, about = what.build(), {}
    if row != FULL:
        arguments, exchanges = ROWS[row]
        without = mock.patch.object(time_search, "applies", return_value=False)
        with nullcontext() if exchanges else without:
            found = ranp.prune(
                net, what.train[:4], budget={"latency": f"{share}%"}, batch_size=1, seed=seed, device="cpu", threads=1,
                loss=what.loss, ignore_index=what.ignored, **arguments,
            )  # fmt: skip
        report = found.report.to_dict()
        (limit,) = report["budget"]
        net = found.model
        about = {
            "latency": limit["after"] / limit["before"],
            "kept": sum(layer["kept"] for layer in report["layers"]),
            "macs": report["after"]["macs"] / report["before"]["macs"],
            "exchanged": bool(report.get("time_search", {}).get("taken")),
        }
    return {**about, "metrics": fit(what, net, seed)}


def markdown(rows: dict[str, dict[str, list[dict[str, Any]]]], about: str) -> str:
    """A table for each task and share, the best mean first."""
    parts = []
    for name, task in rows.items():
        metric = next(iter(task[FULL][0]["metrics"]))
        values = {row: [cell["metrics"][metric] for cell in cells] for row, cells in task.items()}
        lines = [
            f"| {name} | latency | multiply-adds | neurons | {metric} | worst seed |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in sorted(task, key=lambda row: -statistics.fmean(values[row])):
            spread = f" ± {statistics.stdev(values[row]):.3f}" if len(values[row]) > 1 else ""
            cost = [*(ranges(task[row], key) for key in ("latency", "macs")), span([cell["kept"] for cell in task[row]])] if row != FULL else [1, 1, ""]  # fmt: skip
            cells = [row, *cost, f"{statistics.fmean(values[row]):.3f}{spread}", f"{min(values[row]):.3f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        parts.append("\n".join(lines))
    taken = [cell["exchanged"] for task in rows.values() for cell in task[next(iter(ROWS))]]
    note = f"All but the dense network within that share of its latency, over {len(next(iter(rows.values()))[FULL])} seeds; latency and multiply-adds as shares of the dense network's. An exchange was found in {sum(taken)} of {len(taken)} networks; where none was, the row has the best sparsity. {about}."  # fmt: skip
    return "\n\n".join([*parts, note])


def ranges(cells: list[dict[str, Any]], key: str) -> str:
    """`21-24 %`, the least and the most of the seeds."""
    return f"{span([round(100 * cell[key]) for cell in cells])} %"


def span(numbers: list[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)}-{max(numbers)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="the file of what was trained")
    parser.add_argument("--tasks", nargs="+", default=["tissue-16", "nnunet-16"], help="as for accuracy.py")
    parser.add_argument(
        "--shares", nargs="+", type=int, default=[50, 25], help="percent of the dense network's latency"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--write", type=Path, help="the page to put the tables into")
    options = parser.parse_args()
    lines = Lines(options.cells, ("task", "share", "row", "seed"))

    def cells(task: str, share: int, row: str) -> list[dict[str, Any]]:
        keys = [
            {"task": task, "share": 100 if row == FULL else share, "row": row, "seed": k} for k in range(options.seeds)
        ]
        return [lines.get(partial(trained, **key), **key) for key in keys]

    rows = {
        f"{task}, {share} %": {row: cells(task, share, row) for row in (FULL, *ROWS)}
        for task in options.tasks
        for share in options.shares
    }
    table = markdown(rows, f"{processor(CPU)}, torch {torch.__version__}, 1 thread of a shared machine")
    if options.write:
        put(options.write, table, MARKS)
    print(table)


if __name__ == "__main__":
    main()
