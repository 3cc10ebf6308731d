"""The tables of the accuracy benchmark in RESULTS.md: a section for each task, and above them what all of them say.

A run of some tasks replaces their sections and keeps the others; the sentences on top are counted from the tables alone.
"""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from .page import put, section_of
from .torch_pruning_row import NAME as RIVAL

MARKS = "<!-- accuracy -->", "<!-- end of accuracy -->"
OURS = ("RANP-f", "RANP-m")
RIVALS = ("layerwise", "random", "flat", "width", "weighted", "vanilla", "snip", RIVAL)
LABELS = {"ranp-flops": "RANP-f", "ranp-mem": "RANP-m"}
SETTLED = 0.02  # deviation of the dense network over the seeds below which a task is trained long enough
ROW = re.compile(r"^\| (?P<method>\S+) \| [^|]* \| (?P<mean>\d\.\d+)(?: ± (?P<std>\d\.\d+))? \|", re.M)


def write(path: Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Put the sections of these tasks into a page, in place of those that it has of them."""
    held = sections_in(section_of(path.read_text(), MARKS))
    put(path, page({**held, **{name: section(name, rows) for name, rows in tables.items()}}), MARKS)


def sections_in(text: str) -> dict[str, str]:
    """The section of each task on a page."""
    return {part.split("\n", 1)[0].strip(): f"### {part.strip()}" for part in text.split("### ")[1:]}


def page(sections: dict[str, str]) -> str:
    means = {name: means_of(text) for name, text in sections.items()}
    return "\n\n".join([overall(means), *sections.values()])


def means_of(text: str) -> dict[str, tuple[float, float | None]]:
    """Of a section's table: method -> the mean and the deviation over its seeds."""
    return {m["method"]: (float(m["mean"]), m["std"] and float(m["std"])) for m in ROW.finditer(text)}


def overall(means: dict[str, dict[str, tuple[float, float | None]]]) -> str:
    """The sentence above all tables: on which tasks a rival is ahead of the better of RANP-f and RANP-m, on the mean."""
    behind = {
        name: ahead_of_ours({method: mean for method, (mean, _) in rows.items()})[1] for name, rows in means.items()
    }
    some = [f"{name} ({', '.join(rivals)})" for name, rivals in behind.items() if rivals]
    good = [name for name, rivals in behind.items() if not rivals]
    first = f"RANP with the default floor is **not** ahead of every rival on {'; '.join(some)}. " if some else ""
    second = f"It is ahead of all of them on {', '.join(good)}. " if good else ""
    gaps = [max(rows[ours][0] for ours in OURS if ours in rows) - rows["full"][0] for rows in means.values()]
    return f"{first}{second}Against the dense network it is between {min(gaps):+.3f} and {max(gaps):+.3f}. {unsettled(means)}"


def unsettled(means: dict[str, dict[str, tuple[float, float | None]]]) -> str:
    """Which tasks are trained too short to tell much: where the dense network itself differs between seeds."""
    spreads = {name: rows["full"][1] for name, rows in means.items()}
    wide = [f"{name} ({spread:.3f})" for name, spread in spreads.items() if spread is not None and spread > SETTLED]
    if not wide:
        return f"The dense network's own deviation over the seeds is at most {SETTLED} on every task."
    return f"The dense network's own deviation over the seeds is above {SETTLED} on {', '.join(wide)}: small differences say nothing there."


def ahead_of_ours(mean: dict[str, float]) -> tuple[str, list[str]]:
    """The better of RANP-f and RANP-m, and the rivals with at least its mean."""
    best = max((name for name in OURS if name in mean), key=lambda name: mean[name])
    return best, [name for name in RIVALS if name in mean and mean[name] >= mean[best]]


def section(name: str, rows: list[dict[str, Any]]) -> str:
    """A task's table, best first, the worst seed beside the mean, since a class that is lost shows there; and its probe."""
    dense = next(row["accuracy"]["mean"] for row in rows if row["method"] == "full")
    metric, seeds = rows[0]["accuracy"]["metric"], len(rows[0]["seeds"])
    lines = [f"### {name}\n\n{verdict(rows)}\n"]
    lines += [f"| method | multiply-adds | {metric} | worst seed | steps |", "|---|---:|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: -row["accuracy"]["mean"]):
        accuracy = row["accuracy"]
        spread = f" ± {accuracy['std']:.3f}" if accuracy["std"] is not None else ""
        cost = f"-{row['reduction']['macs']:.1%}" if row["reduction"]["macs"] else "1"
        reached = steps_to(row["seeds"], 0.95 * dense)
        label = LABELS.get(row["method"], row["method"])
        lines.append(f"| {label} | {cost} | {accuracy['mean']:.3f}{spread} | {accuracy['worst']:.3f} | {reached} |")
    correlation = rank_correlation(*zip(*lags(rows), strict=True))
    return "\n".join(
        [
            *lines,
            "",
            f"{seeds} seed{'s' * (seeds != 1)}; rank correlation of the probe with the accuracy: {correlation:.2f}.",
        ]
    )


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which of the rivals are ahead of the better of RANP-f and RANP-m on the mean: the first sentence of a table."""
    mean = {LABELS.get(row["method"], row["method"]): row["accuracy"]["mean"] for row in rows}
    best, ahead = ahead_of_ours(mean)
    others = ahead or [name for name in RIVALS if name in mean]
    told = ", ".join(f"{name} ({mean[name]:.3f})" for name in others)
    return f"{best} ({mean[best]:.3f}) is {'**not** ' if ahead else ''}ahead of {told}."


def steps_to(cells: list[dict[str, Any]], wanted: float) -> str:
    """The median over the seeds of the first mark at which the test reached `wanted`; a seed that never did counts as last."""
    firsts = []
    for cell in cells:
        marks = {int(key[3:]): value for key, value in cell["metrics"].items() if key.startswith("at_")}
        firsts.append(min((step for step, value in marks.items() if value >= wanted), default=math.inf))
    middle = statistics.median_low(firsts)
    return "never" if middle == math.inf else f"{middle:.0f}"


def lags(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(minus the lag of its probe, accuracy) of every pruned network."""
    dense = next(row for row in rows if row["method"] == "full")["seeds"]
    pairs = []
    for row in rows:
        for cell, whole in zip(row["seeds"], dense, strict=True):
            slim, full = cell["metrics"], whole["metrics"]
            way = max(full["probe_first"], slim["probe_first"]) - full["probe_last"]
            if row["method"] != "full":
                pairs.append((-(slim["probe_last"] - full["probe_last"]) / way, slim[row["accuracy"]["metric"]]))
    return pairs


def rank_correlation(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])
