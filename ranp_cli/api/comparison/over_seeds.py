"""What cells say of a row: mean, deviation and worst of a metric over the seeds, and mean counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from .cells import Cell, number


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value), worst and all values; NaN counts as the worst."""
    known = not any(math.isnan(v) for v in values)
    finite = all(math.isfinite(v) for v in values)
    deviation = None if len(values) < 2 else stdev(values) if finite else math.nan
    return {
        "mean": fmean(values) if known else math.nan,
        "std": deviation,
        "worst": min(values) if known else math.nan,
        "values": list(values),
    }


def joined(cells: Sequence[Cell], metric: str) -> dict[str, Any]:
    """The row of one method at one sparsity from its cells, one a seed.

    Counts and reductions are means over the seeds (whole numbers stay whole); `seeds` has those of each.
    """
    row: dict[str, Any] = mean_of([cell["row"] for cell in cells])
    every = {name: summary([number(cell["metrics"][name]) for cell in cells]) for name in cells[0]["metrics"]}
    seconds = round(fmean(cell["seconds"] for cell in cells), 3)
    row["accuracy"] = {"metric": metric, **every[metric], "all": every, "seconds": seconds}
    row["seeds"] = [
        {
            "seed": cell["seed"],
            **{
                k: v
                for k, v in cell["row"].items()
                if k not in ("method", "criterion", "resource", "resource_term", "lambda")
            },
            "metrics": {name: number(value) for name, value in cell["metrics"].items()},
            "seconds": cell["seconds"],
        }
        for cell in cells
    ]
    return row


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of numbers, in nested dicts and lists; flags hold when all do, lists of names are united."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if isinstance(first, dict):
        return {key: mean_of([value[key] for value in values]) for key in first}
    if isinstance(first, bool):
        return all(values)
    if isinstance(first, int):
        return round(fmean(values))
    if isinstance(first, float):
        return round(fmean(values), 6)
    if isinstance(first, list) and all(isinstance(x, int) for value in values for x in value):
        same = len({len(value) for value in values}) == 1
        return [mean_of(each) for each in zip(*values, strict=True)] if same else first
    if isinstance(first, list):
        return list(dict.fromkeys(x for value in values for x in value))
    return first


def mark_best(rows: Sequence[dict[str, Any]]) -> None:
    """Flag the best mean of each sparsity, where several methods compete; the full network does not, nor does NaN."""
    levels: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        row["accuracy"]["best"] = False
        if row["method"] != "full":
            levels.setdefault(row["sparsity"]["requested"], []).append(row["accuracy"])
    for rivals in levels.values():
        known = [each for each in rivals if not math.isnan(each["mean"])]
        if len(rivals) > 1 and known:
            max(known, key=lambda each: each["mean"])["best"] = True
