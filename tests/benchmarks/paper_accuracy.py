"""The paper's tables of accuracy in small: each beside the paper's numbers, with a sentence on whether they agree.

    python -m tests.benchmarks.paper_accuracy --cells FOLDER --write tests/benchmarks/RESULTS.md    # 25 minutes of one core

A 3D-UNet of width 16 on the tasks `shapes` and `brains` of accuracy.py, Glorot weights, trained for `--steps 300` under three
seeds, lambda 11. What is cut to a sparsity of 0.8 has ranp's own floor, or `--min-neurons 1` as in the paper, whose networks are four
times as wide (on `shapes` that floor cost the narrow one 19 points, three seeds); what is cut to its largest sparsity has a floor of one. `table-1`: vanilla pruning by each criterion, weighted and RANP at
their largest sparsity. `table-4`: the mask of one task, trained on the other. `table-5`: a deeper network in the memory of a
shallow one (19 layers where the paper has 23, which need 32^3 voxels). `figure-5`: batches four times as large in less
memory, over time. `appendix`: orthogonal weights. What was trained is kept in FOLDER; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ranp_cli as ranp
from ranp_cli.api.comparison.over_seeds import summary
from ranp_cli.pruning.min_neurons import Floor, check_floor

from . import paper_tables as tables
from .accuracy import Task, unet
from .first_table import Batches, train
from .page import Lines, put
from .paper_tables import VANILLA, VARIANTS, Rows

WIDTH, SPARSITY, SHALLOW, DEEP = 16, 0.8, 15, 19
RACE, MARKS, LATEST = 30.0, 4, 20  # seconds of figure 5, its marks, and the steps that a loss is the mean of
BATCH, TIMES = 2, 4  # samples of a step, and how many times as many the slim network of figure 5 has


@cache
def task_of(name: str) -> Task:
    return unet(name, WIDTH)


def marks(name: str) -> tuple[str, str]:
    return f"<!-- paper {name} -->", f"<!-- end of paper {name} -->"


class Paper:
    """The trained networks that the tables need, in a folder."""

    def __init__(self, cells: Path, seeds: int, steps: int, floor: Floor) -> None:
        self.folder, self.seeds, self.steps, self.floor = cells / f"paper-{steps}", seeds, steps, floor
        self.lines = Lines(self.folder / "lines.jsonl", ("kind", "of", "seed"))

    def rows(self, label: str, task: Task, sparsity: float | str, *methods: str, floor: Floor = 1, init: str = "glorot", layers: int = SHALLOW) -> Rows:  # fmt: skip
        """Rows of `ranp.compare`, trained, by method; `label` names the file."""
        path = self.folder / f"{label}.jsonl"
        where = {"resume": path} if path.exists() else {"cells": path}
        table = ranp.compare(partial(task.build, layers), task.train[:4], sparsity=sparsity, methods=methods, min_neurons=floor, score_init=init,
                             fit=partial(learn, task, self.steps), seeds=self.seeds, ignore_index=task.ignored, **where)  # fmt: skip
        return {row["method"]: row for row in table.rows}

    def each(self, kind: str, of: str, compute: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        """What is computed for each seed."""
        return [self.lines.get(partial(compute, seed), kind=kind, of=of, seed=seed) for seed in range(self.seeds)]

    # -- the tables

    def table_1(self) -> str:
        rows = self.rows("largest", task_of("shapes"), "max", *VARIANTS, "weighted", "ranp-m", "ranp-f")
        rows["full"] = self.dense("shapes")
        level = round(rows[VANILLA]["sparsity"]["achieved"], 2)
        return tables.table_1(rows, self.rows("as-vanilla", task_of("shapes"), level, "ranp-f"))

    def table_4(self) -> str:
        found = {}
        for name, other in (("shapes", "brains"), ("brains", "shapes")):
            found[name] = {"full": self.dense(name), **self.slim(name)}
            cells = self.each(
                f"transferred-{self.floor}", name, partial(transferred, other, name, self.floor, self.steps)
            )
            metric = found[name]["full"]["accuracy"]["metric"]
            whole = summary([cell["metrics"][metric] for cell in cells])
            reduction = {"macs": fmean(cell["macs"] for cell in cells)}
            found[name]["transferred"] = {"accuracy": {"metric": metric, **whole}, "reduction": reduction}
        return tables.table_4(found)

    def table_5(self) -> str:
        rows = {
            "shallow": self.dense("shapes"),
            "deep": self.dense("shapes", DEEP),
            "slim": self.slim("shapes", layers=DEEP)["ranp-flops"],
        }
        return tables.table_5(rows, self.peaks(), (SHALLOW, DEEP))

    def figure_5(self) -> str:
        shares: dict[str, tuple[float, int, Floor]] = {
            "full": (0.0, BATCH, 1),
            "slim": (SPARSITY, TIMES * BATCH, self.floor),
        }
        races = {kind: [cell["marks"] for cell in self.each(f"race-{share[2]}", kind, partial(race, *share))] for kind, share in shares.items()}  # fmt: skip
        return tables.figure_5(races, self.peaks())

    def appendix(self) -> str:
        inits = "glorot", "orthogonal"
        most = {init: self.each("largest", init, partial(largest, init)) for init in inits}
        rows = {init: self.slim("shapes", init)["ranp-flops"] for init in inits}
        return tables.appendix(most, rows, self.dense("shapes"))

    def dense(self, name: str, layers: int = SHALLOW) -> dict[str, Any]:
        return self.rows(f"{name}-{layers}-full", task_of(name), SPARSITY, "full", layers=layers)["full"]

    def slim(self, name: str, init: str = "glorot", layers: int = SHALLOW) -> Rows:
        label = f"{name}-{layers}-{init}-{self.floor}"
        return self.rows(label, task_of(name), SPARSITY, "ranp-f", floor=self.floor, init=init, layers=layers)

    def peaks(self) -> list[dict[str, Any]]:
        return self.each(f"peaks-{self.floor}", "shapes", partial(peaks, self.floor))


def learn(task: Task, steps: int, net: nn.Module, seed: int) -> dict[str, float]:
    """Train and test; the first number is the one that tables go by."""
    train(net, task.train, steps, seed, task.ignored)
    return task.test_metrics(net, task.test)


def pruned(name: str, floor: Floor, seed: int, layers: int = SHALLOW, sparsity: float = SPARSITY) -> Any:
    """RANP-f as `Paper.slim` has it; at sparsity 0 the dense network with the same weights."""
    task = task_of(name)
    return ranp.prune(task.build(layers), task.train[:4], sparsity=sparsity, min_neurons=floor, ignore_index=task.ignored,
                      score_init="glorot", seed=seed)  # fmt: skip


def transferred(source: str, target: str, floor: Floor, steps: int, seed: int) -> dict[str, Any]:
    """The mask of one task in the network of the other, trained there (section 5.5 of the paper)."""
    task = task_of(target)
    mask, inputs = pruned(source, floor, seed).mask, tuple(task.train[0][0].shape)
    moved = ranp.refine(task.build(), mask, transfer=True, inputs=inputs, seed=seed, full=True)
    report = moved.report.to_dict()
    return {"metrics": learn(task, steps, moved.model, seed), "macs": report["reduction"]["macs"], **report["transfer"]}


def peak(net: nn.Module, batch: int) -> int:
    """Bytes at the peak of a training step with Adam."""
    report = ranp.profile(net, (batch, 1, 24, 24, 24), optimizer="adam").to_dict()
    return int(report["memory"]["before"]["train_peak_bytes"])


def peaks(floor: Floor, seed: int) -> dict[str, Any]:
    """Peaks of table 5, with the task's batches of two, and of figure 5, where the slim network has four times as many."""
    task = task_of("shapes")
    deep, slim = task.build(DEEP), pruned("shapes", floor, seed, DEEP).model
    steps = {
        "shallow": (task.build(), BATCH),
        "deep": (deep, BATCH),
        "slim": (slim, BATCH),
        "large": (slim, TIMES * BATCH),
    }
    return {name: peak(net, batch) for name, (net, batch) in steps.items()}


def race(share: float, size: int, floor: Floor, seed: int) -> dict[str, Any]:
    """Train the deep network, `share` of it removed, for RACE seconds with batches of `size`: seconds, samples, loss, mIoU.

    The seconds are those of the process: its one thread's, whatever else the machine does. Tests are not counted.
    """
    task = task_of("shapes")
    net = pruned("shapes", floor, seed, DEEP, share).model
    return {"marks": run(net, rebatched(task.train, size), task, seed, RACE)}


def rebatched(data: Batches, size: int) -> Batches:
    x, y = (torch.cat([pair[k] for pair in data]).split(size) for k in (0, 1))
    return list(zip(x, y, strict=True))


def run(net: nn.Module, data: Batches, task: Task, seed: int, seconds: float) -> list[list[float]]:
    """MARKS times: seconds of training so far, samples seen, mean loss of the last steps, and the test; Adam at 3e-3."""
    optimizer, draw = torch.optim.Adam(net.parameters(), 3e-3), torch.Generator().manual_seed(seed)
    found: list[list[float]] = []
    losses: list[float] = []
    spent, samples = 0.0, 0
    net.train()
    while len(found) < MARKS:
        start = time.process_time()
        x, y = data[int(torch.randint(len(data), (), generator=draw))]
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y, ignore_index=task.ignored)
        loss.backward()
        optimizer.step()
        losses, samples = [*losses[1 - LATEST :], loss.item()], samples + len(x)
        spent += time.process_time() - start
        if spent >= seconds * (len(found) + 1) / MARKS:
            test = next(iter(task.test_metrics(net, task.test).values()))
            found.append([seconds * (len(found) + 1) / MARKS, samples, fmean(losses), test])
            net.train()
    return found


def largest(init: str, seed: int) -> dict[str, Any]:
    """The largest sparsity at which no layer is emptied, with these weights."""
    task = task_of("shapes")
    table = ranp.compare(task.build, task.train[:4], sparsity="max", methods=("vanilla", "ranp-f"), min_neurons=1, score_init=init,
                         ignore_index=task.ignored, seed=seed)  # fmt: skip
    return {row["method"]: row["sparsity"]["achieved"] for row in table.rows}


TABLES = {"table-4": Paper.table_4, "table-5": Paper.table_5, "appendix": Paper.appendix, "figure-5": Paper.figure_5, "table-1": Paper.table_1}  # fmt: skip

FLOORS = {"table-1": 1}  # the paper's, as a floor above one leaves no sparsity that empties a layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"which, of {', '.join(TABLES)}; all by default")
    parser.add_argument("--cells", type=Path, required=True, help="a folder for what was trained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--min-neurons", default="auto", help="of what is cut to a sparsity of 0.8: auto (default), or a number"
    )
    parser.add_argument("--write", type=Path, help="put the tables between their marks of this page")
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    torch.set_num_threads(1)
    paper = Paper(options.cells, options.seeds, options.steps, check_floor(options.min_neurons))
    for name in options.tables or TABLES:
        text = f"{TABLES[name](paper)}\n\nSeeds: {options.seeds}; steps, where a network is trained in full: {options.steps}; floor: {FLOORS.get(name, options.min_neurons)}."
        print(f"{name}\n{text}\n", flush=True)
        if options.write:
            put(options.write, text, marks(name))


if __name__ == "__main__":
    main()
