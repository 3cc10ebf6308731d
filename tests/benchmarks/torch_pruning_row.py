"""The row of the accuracy benchmark that a rival makes: torch-pruning at initialisation, cut to the multiply-adds of our first row.

    pip install torch-pruning    # 1.6.1 was measured

Its first-order Taylor criterion over groups, on the same calibration mini-batches, all layers ranked together; a step of its
pruner after another until the multiply-adds are met. A network that it cannot cut so far has no row, and a line says why.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ranp_cli.api.comparison.over_seeds import joined

from .page import Lines

if TYPE_CHECKING:
    from .accuracy import Task

NAME = "torch-pruning"
ROUNDS, MOST = 100, 0.98  # steps of its pruner, and the most of a layer that it may take


def macs_of(net: nn.Module, task: Task) -> int:
    """Of one sample, as our reports have them (law 3)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(task.train[0][0][:1].clone())
    return int(counter.get_total_flops()) // 2


def pruned(task: Task, seed: int, macs: int) -> tuple[nn.Module, int]:
    """The network of a seed with at most so many multiply-adds, as torch-pruning cuts it, and how many it has."""
    import torch_pruning

    torch.manual_seed(seed)
    net, x = task.build().to(task.train[0][0].device).train(), task.train[0][0]
    with torch.no_grad():
        classes = net(x).shape[1]
    outputs = [module for module in net.modules() if classes in (getattr(module, "out_channels", 0), getattr(module, "out_features", 0))]  # fmt: skip
    pruner = torch_pruning.pruner.BasePruner(
        net, x, importance=torch_pruning.importance.GroupTaylorImportance(), global_pruning=True, pruning_ratio=MOST,
        max_pruning_ratio=MOST, iterative_steps=ROUNDS, ignored_layers=outputs,
    )  # fmt: skip
    for _ in range(ROUNDS):
        left = macs_of(net, task)
        if left <= macs:
            return net, left
        net.zero_grad()
        for x, y in task.train[:4]:
            task.loss_of(net(x), y).backward()
        pruner.step()
    raise ValueError(f"it stops at {left} multiply-adds, {macs} were wanted")


def rival_row(task: Task, lines: Lines, ours: list[dict[str, Any]], metric: str, fit: Any) -> dict[str, Any] | None:
    """A row as `ranp.compare` has them; what was trained is kept in `lines`. None, and a line, where torch-pruning fails."""
    first, dense = ours[0], next(row for row in ours if row["method"] == "full")
    whole = dense["after"]["macs"]

    def cell(seed: int, macs: int) -> dict[str, Any]:
        try:
            net, left = pruned(task, seed, macs)
        except Exception as error:  # whatever it meets in a network that it does not take
            return {"failed": f"{type(error).__name__}: {error}"}
        return {"metrics": fit(task, net, seed), "seconds": 0.0, "row": {"method": NAME, "after": {"macs": left}, "reduction": {"macs": 1 - left / whole}}}  # fmt: skip

    cells = [
        lines.get(partial(cell, each["seed"], each["after"]["macs"]), seed=each["seed"]) for each in first["seeds"]
    ]
    failed = next((each["failed"] for each in cells if "failed" in each), None)
    if failed:
        print(f"{NAME} does not cut this network: {failed}", file=sys.stderr)
        return None
    return joined(cells, metric)
