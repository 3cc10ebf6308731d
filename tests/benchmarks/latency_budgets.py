"""Networks cut to a share of the dense one's latency: the best sparsity beside units exchanged by importance per millisecond.

`python -m tests.benchmarks.latency_budgets --write tests/benchmarks/RESULTS.md`. Both networks of a budget come from one call of `prune`, which
takes the better one. Results are kept in `--lines FILE`, from which a later run goes on.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.costs.latency_table import processor
from ranp_cli.costs.runtime_names import runtime_of

from .page import Lines, put
from .runtimes import CPU, NETWORKS, settle_statistics

RUNTIMES = ("torch", "onnxruntime")
SHARES = (25, 10)  # percent of the dense network's latency
MARKS = "<!-- latency budgets -->", "<!-- end of latency budgets -->"
NAMES = {"sparsity": "best sparsity", "exchange": "exchanged"}


@cache
def scored(name: str) -> tuple[nn.Module, Any]:
    """A dense network, and its scores."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    dense, (x, target) = network.make(), network.data(1, 48)
    settle_statistics(dense, x)
    return dense, ranp.score(dense, [(x, target)], device="cpu")


def measured(name: str, runtime: str, share: int, threads: int) -> dict[str, Any]:
    """The two networks of one budget: importance, seconds, multiply-adds; and the seconds of the dense one."""
    dense, scores = scored(name)
    budget = {"latency": f"{share}%"}
    try:
        found = ranp.prune(dense, scores=scores, budget=budget, device="cpu", runtime=runtime, threads=threads)
    except ranp.Infeasible as error:
        return {"infeasible": str(error), "rows": []}
    report = found.report.to_dict()
    search = report["time_search"]
    return {
        "dense": report["budget"][0]["before"],
        "dense_macs": report["before"]["macs"],
        "rows": [search["tried"][0], *([search["tried"][search["taken"]]] if search["taken"] else [])],
        "step_s": report["seconds"]["time"],
        "table": search["table"],
    }


def markdown(rows: list[dict[str, Any]], about: str) -> str:
    """A line for each network that came out of a budget."""
    lines = ["| network | runtime | latency | cut by | ms | importance kept | neurons | multiply-adds | promised of it |", "|---|---|---:|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    met = [row for row in rows if row["rows"]]
    for row in met:
        best = max(each["importance"] for each in row["rows"])
        for each in row["rows"]:
            kept = f"{each['importance']:.1%}"
            gain = row["dense"] / each["seconds"] / (row["dense_macs"] / each["macs"])
            cells = [row["network"], row["runtime"], f"{row['share']} %", NAMES[each["by"]], f"{1000 * each['seconds']:.0f} of {1000 * row['dense']:.0f}",
                     f"**{kept}**" if each["importance"] == best else kept, each["kept"], f"-{1 - each['macs'] / row['dense_macs']:.0%}", f"{gain:.0%}"]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    gains = [row["rows"][-1]["importance"] / row["rows"][0]["importance"] for row in met]
    missed = [f"{row['network']} in {row['runtime']}, {row['share']} %" for row in rows if not row["rows"]]
    return "\n".join(
        [*lines, "", f"Exchanged units keep {min(gains):.2f} to {max(gains):.1f} times the importance of the best sparsity, within the same limit. Promised of it: "
         f"the gain in time as a share of the gain in multiply-adds. No network is so fast: {'; '.join(missed) or 'none'}. {about}."])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of them, with commas between")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="likewise")
    parser.add_argument("--lines", metavar="FILE", type=Path, default=Path("latency_budgets.jsonl"))
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args()
    lines = Lines(options.lines, ("network", "runtime", "share", "threads"))
    rows = [
        lines.get(
            lambda name=name, runtime=runtime, share=share: measured(name, runtime, share, options.threads),
            network=name, runtime=runtime, share=share, threads=options.threads,
        )
        for name in options.networks.split(",") for runtime in options.runtimes.split(",") for share in SHARES
    ]  # fmt: skip
    versions = ", ".join(f"{name} {runtime_of(name).version()}" for name in options.runtimes.split(","))
    threads = f"{options.threads} thread{'s' * (options.threads != 1)} of a shared machine"
    table = markdown(rows, f"{processor(CPU)}, {versions}, {threads}")
    if options.write:
        put(options.write, table, MARKS)
    print(table)


if __name__ == "__main__":
    main()
