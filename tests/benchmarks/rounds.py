"""`--rounds` on the README's example: its network, trained on its shapes and pruned to a tenth of its multiply-adds while it is fine-tuned.

    python -m tests.benchmarks.rounds --cells FILE --write tests/benchmarks/RESULTS.md    # about 25 minutes on two cores

Each seed's network is trained as in the README's first table and then, with the same number of updates, pruned in ROUNDS rounds (taylor, a
fit of UPDATES updates after each, LAST with a falling rate at the end), pruned at once, or trained on as it is. Beside them the network that
RANP-f prunes before the training, with all of these updates. What was trained is kept in FILE; the same command goes on.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ranp_cli as ranp

from .first_table import Batches, mean_iou, outputs_of, settle_batch_norm, shapes, train
from .page import Lines, put

TRAINING, ROUNDS, UPDATES, LAST = 300, 8, 40, 100
MORE = ROUNDS * UPDATES + LAST  # updates after the training
SHARE = 10  # percent of the multiply-adds
SETTLE = 20  # mini-batches that batch norm sees before a test
DENSE, CLOSE = "dense", 0.02
MARKS = "<!-- rounds -->", "<!-- end of rounds -->"
ROWS = {
    DENSE: f"dense, trained for {TRAINING} updates",
    "on": f"dense, and {MORE} more",
    "rounds": f"`--rounds {ROUNDS}`: {ROUNDS} times {UPDATES} updates",
    "rounds, last": f"the same, and {LAST} with a falling rate",
    "once": f"pruned at once (taylor), and {MORE} updates",
    "early": f"pruned before training (RANP-f), {TRAINING} + {MORE} updates",
}


def measured(seed: int) -> dict[str, float]:
    """The mIoU of each row under one seed, and the multiply-adds that rounds left, as a share."""
    data, test, calibration = shapes(100, 1234), shapes(24, 99), shapes(4, 0)
    from model import UNet3D  # of sample_configs, which `shapes` makes importable

    def tested(net: nn.Module) -> float:
        settle_batch_norm(net, data[:SETTLE])
        return mean_iou(outputs_of(net, test), [y for _, y in test])

    torch.manual_seed(seed)
    start = UNet3D()
    dense = copy.deepcopy(start)
    train(dense, data, TRAINING, seed)
    found = {DENSE: tested(dense)}
    more = copy.deepcopy(dense)
    train(more, data, MORE, seed + 1000)
    found["on"] = tested(more)
    slim = ranp.prune(
        dense, calibration, budget={"macs": f"{SHARE}%"}, rounds=ROUNDS, fit=fit_on(data), method="taylor", seed=seed
    )
    found["rounds"] = tested(slim.model)
    train(slim.model, data, LAST, seed + 1000)
    found["rounds, last"] = tested(slim.model)
    once = ranp.prune(dense, calibration, budget={"macs": f"{SHARE}%"}, method="taylor", seed=seed).model
    train(once, data, MORE, seed + 1000)
    found["once"] = tested(once)
    early = ranp.prune(start, calibration, budget={"macs": f"{SHARE}%"}, seed=seed).model
    train(early, data, TRAINING + MORE, seed)
    found["early"] = tested(early)
    report = slim.report.to_dict()
    return {**found, "share": report["after"]["macs"] / report["before"]["macs"]}


def fit_on(data: Batches) -> Callable[[nn.Module, int], float]:
    """A `fit` of UPDATES updates; it returns the mIoU on a part of what it trains on, by which nothing is chosen here."""

    def fit(net: nn.Module, seed: int) -> float:
        train(net, data, UPDATES, seed, decay=False)
        return mean_iou(outputs_of(net, data[:4]), [y for _, y in data[:4]])

    return fit


def markdown(cells: list[dict[str, Any]]) -> str:
    """First whether rounds come within CLOSE of the dense network, then all rows."""
    values = {row: [cell[row] for cell in cells] for row in ROWS}
    mean = {row: statistics.fmean(found) for row, found in values.items()}
    gap = mean["rounds, last"] - mean[DENSE]
    ahead = [ROWS[row] for row in ("once", "early") if mean[row] >= mean["rounds, last"]]
    lines = [
        f"At {1 - statistics.fmean(cell['share'] for cell in cells):.0%} fewer multiply-adds rounds with {LAST} updates more are {gap:+.3f} from the dense network, "
        f"{'' if gap >= -CLOSE else '**not** '}within {CLOSE}; as good or better than they: {'; '.join(ahead) or 'none'}.",
        "",
        "| network | mIoU | worst seed |",
        "|---|---:|---:|",
    ]
    for row, label in ROWS.items():
        spread = f" ± {statistics.stdev(values[row]):.3f}" if len(cells) > 1 else ""
        lines.append(f"| {label} | {mean[row]:.3f}{spread} | {min(values[row]):.3f} |")
    return "\n".join([*lines, "", f"Seeds: {len(cells)}. Batch norm has its statistics taken anew before every test."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="the file of what was trained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="the page to put the table into")
    options = parser.parse_args()
    lines = Lines(options.cells, ("seed",))
    table = markdown([lines.get(lambda seed=seed: measured(seed), seed=seed) for seed in range(options.seeds)])
    if options.write:
        put(options.write, table, MARKS)
    print(table)


if __name__ == "__main__":
    main()
