"""The README's table of networks: `python -m tests.benchmarks.zoo_table [--json FILE] [NETWORK ...]` prints Markdown.

A row a network of tests/packages.py: its neurons and units, the share removed at a sparsity of 0.5, the largest
difference to the masked network in fp64 (of the output's scale), and the seconds that the analysis took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import packages
import zoo

import ranp_cli as ranp
from ranp_cli.example import Example
from ranp_cli.units import analyse


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
    return {
        "network": case.name,
        "neurons": graph.n,
        "units": len(graph.unit_roots),
        "removed": report["sparsity"]["achieved"],
        "error_fp64": report["verified"].get("max_rel_error_fp64"),
        "not_comparable": report["verified"].get("not_comparable", []),
        "fixed": sorted({r.what for r in graph.reasons if r is not None} - {"network output", "its only neuron"}),
        "seconds": round(seconds, 2),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table; networks that failed stand below it."""
    lines = [
        "| network | neurons | units | removed at 0.5 | error, fp64 | analysis, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        if "error" not in r:
            error = "-" if r["error_fp64"] is None else f"{r['error_fp64']:.0e}"
            star = " (\\*)" if r["not_comparable"] else ""
            lines.append(
                f"| {r['network']} | {r['neurons']} | {r['units']} | {r['removed']:.1%} | {error}{star} | {r['seconds']:.2f} |"
            )
    lines += ["", "(\\*) wiring only: group or layer norm over pruned channels changes its statistics."]
    return "\n".join(lines + [f"\n{r['network']}: {r['error']}" for r in rows if "error" in r])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names of tests/packages.py; all by default")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON ('-': to stdout, instead of the table)")
    options = parser.parse_args()
    known = {case.name: case for case in packages.CASES}
    if unknown := set(options.networks) - set(known):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    rows = [row(known[name]) for name in options.networks or known]
    document = json.dumps(rows, indent=1)
    if options.json == "-":
        print(document)
        return
    if options.json:
        Path(options.json).write_text(document + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
