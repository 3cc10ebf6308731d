"""The README's table of networks: `python -m tests.benchmarks.zoo_table [--json FILE] [NETWORK ...]` prints Markdown.

`--write tests/benchmarks/RESULTS.md` puts the table of all networks between the marks there.

A row a network of tests/laws/packages.py: its neurons and units, the share removed at a sparsity of 0.5, the largest
difference to the masked network in fp64 (of the output's scale), and the seconds that the analysis took.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import packages
import torch
import zoo

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse

from .page import put

MARKS = "<!-- zoo table -->", "<!-- end of zoo table -->"
ENOUGH = 0.45
USUAL = {"network output", "its only neuron", "no layer uses its output",
         "all its neurons are above the threshold"}  # fmt: skip


def row(case: packages.Case) -> dict[str, Any]:
    """The numbers of one network; `error` when it could not be built or pruned."""
    try:
        model = zoo.build(case)
        start = time.perf_counter()
        graph = analyse(model, Example((torch.zeros(case.shape),)))
        seconds = time.perf_counter() - start
        pruned = ranp.prune(model, zoo.batches(case), loss=zoo.loss, sparsity=0.5, allow_less=True)
    except (ImportError, ranp.RanpError) as error:
        return {"network": case.name, "error": f"{type(error).__name__}: {error}"}
    report = pruned.report.to_dict()
    stays = [why for layer in report["not_pruned"] for why in layer["reason"].split("; ")]
    return {
        "network": case.name,
        "neurons": graph.n,
        "units": len(graph.unit_roots),
        "removed": report["sparsity"]["achieved"],
        "error_fp64": report["verified"].get("max_rel_error_fp64"),
        "not_comparable": report["verified"].get("not_comparable", []),
        "reasons": sorted({why.partition(" at ")[0].partition(":")[0] for why in stays} - USUAL),
        "seconds": round(seconds, 2),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table; what stays more than half, and networks that failed, stand below it."""
    lines = [
        "| network | neurons | units | removed at 0.5 | error, fp64 | analysis, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        if "error" not in r:
            error = "-" if r["error_fp64"] is None else f"{r['error_fp64']:.0e}"
            cells = [r["network"], r["neurons"], r["units"], f"{r['removed']:.1%}"]
            cells += [error + " (\\*)" * bool(r["not_comparable"]), f"{r['seconds']:.2f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "(\\*) wiring only: group or layer norm over pruned channels changes its statistics."]
    few = [f"{r['network']} ({'; '.join(r['reasons'])})" for r in rows if "error" not in r and r["removed"] < ENOUGH]
    lines += [f"Less than 45 % went, for the reasons in `not_pruned`: {', '.join(few)}."] * bool(few)
    return "\n".join(lines + [f"\n{r['network']}: {r['error']}" for r in rows if "error" in r])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names of tests/laws/packages.py; all by default")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON ('-': to stdout, instead of the table)")
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    known = {case.name: case for case in packages.CASES}
    if unknown := set(options.networks) - set(known):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    row(known["r3d_18"])  # torch's own start-up of meta tensors
    rows = [row(known[name]) for name in options.networks or known]
    document = json.dumps(rows, indent=1)
    if options.json == "-":
        print(document)
        return
    if options.json:
        Path(options.json).write_text(document + "\n")
    if options.write:
        put(Path(options.write), markdown(rows), MARKS)
    print(markdown(rows))


if __name__ == "__main__":
    main()
