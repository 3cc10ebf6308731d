"""The tables of oracle.py. Each begins with what agrees with Molchanov's talk and what does not, by the numbers below.

A cell is what one network gave under one seed; `cells` are those of each network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any

LEVELS = (0.5, 0.25, 0.1)  # shares of the multiply-adds
TALK = 0.73  # Taylor's mean correlation by layer, VGG16 on Birds-200
RIVALS = {"l2": "weight", "activation-mean": "activation", "obd": "OBD"}
WAYS = {
    "greedy": "greedy",
    "one-shot": "one-shot, not fine-tuned",
    "one-shot, fine-tuned": "one-shot, same updates",
    "at initialization": "RANP-f at initialization",
}


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def joined(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def verdict(claims: Sequence[tuple[bool, str]]) -> str:
    """What agrees with the talk, and what does not."""
    leads = {True: "Our result agrees with the talk that", False: "Our result does **not** agree that"}
    parts = []
    for wanted, lead in leads.items():
        said = [text for holds, text in claims if holds is wanted]
        parts += [f"{lead} {'; and that '.join(said)}."] * bool(said)
    return " ".join(parts)


def correlation_table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Of the cells of each network, one a seed: the criteria, the best by layer first, with the spread over seeds and layers."""
    names = [name for name in next(iter(cells.values()))[0]["rows"] if all(name in c["rows"] for each in cells.values() for c in each)]  # fmt: skip

    def values(network: str, criterion: str, key: str) -> list[float]:
        return [cell["rows"][criterion][key] for cell in cells[network]]

    def mean(network: str, criterion: str) -> float:
        return fmean(values(network, criterion, "mean"))

    claims = []
    for network in cells:
        ours = mean(network, "taylor")
        against = ", ".join(f"{label} {mean(network, name):.2f}" for name, label in RIVALS.items() if name in names)
        above = all(ours > mean(network, name) for name in RIVALS if name in names)
        claims.append((above, f"Taylor ranks nearest to the oracle on {network} ({ours:.2f}; {against})"))
    best = {network: max(names, key=partial(mean, network)) for network in cells}
    of_all = ", ".join(f"{name} on {network} ({mean(network, name):.2f})" for network, name in best.items())
    names.sort(key=lambda name: -fmean(mean(network, name) for network in cells))
    heads = [f"{network}, by layer (worst) | {network}, all units" for network in cells]
    lines = [f"{verdict(claims)} Of all our criteria the nearest are {of_all}. The talk's number for Taylor, on VGG16 and Birds-200, is {TALK}.", "",
             f"| criterion | {' | '.join(heads)} |", f"|---|{'---:|' * (2 * len(heads))}"]  # fmt: skip
    for name in names:
        row = [
            f"{spread(values(network, name, 'mean'))} ({min(values(network, name, 'worst')):.2f}) | {spread(values(network, name, 'all'))}"
            for network in cells
        ]
        lines.append(f"| {name} | {' | '.join(row)} |")
    units = ", ".join(f"{network} {each[0]['units']} in {each[0]['layers']}" for network, each in cells.items())
    return "\n".join([*lines, "", f"Units, and layers that have them: {units}. All units: with layers of equal l2 norm, as the talk ranks."])  # fmt: skip


def pruning_table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Of the cells of each network, one a seed: the ways at each level that all seeds reached."""
    rows = []
    for network, each in cells.items():
        for level in LEVELS:
            found = [row for cell in each for row in cell["levels"] if row["level"] == level]
            if len(found) == len(each):
                rows.append((network, each, found))

    def changes(other: str) -> list[tuple[str, float]]:
        """What greedy is ahead of another way, in points, place by place."""
        return [
            (f"{name} {place(found)}", 100 * fmean(row["greedy"] - row[other] for row in found))
            for name, _, found in rows
        ]

    lines = [comparison("one-shot", changes("one-shot"), "the talk's claim")]
    lines += [comparison(way, changes(way)) for way in list(WAYS)[2:]]
    lines = [" ".join(lines), "",
             f"| network | multiply-adds | updates | dense | {' | '.join(WAYS.values())} | cost of greedy | cost at initialization |",
             f"|---|{'---:|' * (5 + len(WAYS))}"]  # fmt: skip
    for name, each, found in rows:
        dense = spread([cell["dense"] for cell in each], 3)
        ways = [spread([row[way] for row in found], 3) for way in WAYS]
        best = max(range(len(ways)), key=lambda k: fmean(row[list(WAYS)[k]] for row in found))
        ways[best] = f"**{ways[best]}**"
        training = fmean(cell["training"] for cell in each)
        updates = fmean(row["updates"] for row in found)
        late = training + fmean(row["dense_updates"] for row in found)
        early = fmean((training + row["updates"]) * row["share"] for row in found)
        lines.append(
            f"| {name} | {place(found)} | {training:.0f} + {updates:.0f} | {dense} | {' | '.join(ways)} | {late:.0f} | {early:.0f} |"
        )
    missing = [f"{name} at {1 - level:.0%}" for name in cells for level in LEVELS
               if not any(n == name and found[0]["level"] == level for n, _, found in rows)]  # fmt: skip
    out = f" Out of reach of greedy pruning in some seed: {joined(missing)}." if missing else ""
    return "\n".join([*lines, "", f"Updates: of the training, and of the fine-tuning in which greedy prunes. Cost: of all updates, in those of the dense network.{out}"])  # fmt: skip


def place(found: Sequence[dict[str, Any]]) -> str:
    return f"-{1 - fmean(row['share'] for row in found):.0%}"


def comparison(way: str, changes: Sequence[tuple[str, float]], source: str = "") -> str:
    """Where greedy is ahead of another way by more than half a point, and where it is not, and by how much."""
    ahead = [each for each in changes if each[1] > 0.5]
    rest = [f"{where} ({change:+.1f})" for where, change in changes if change <= 0.5]
    mean = fmean(change for _, change in changes)
    said = f" ({source})" if source else ""
    if not rest:
        return f"Greedy is ahead of {WAYS[way]}{said} in all {len(changes)} rows, by {mean:.1f} points on average."
    tail = f"**not** on {joined(rest)}"
    return f"Greedy is ahead of {WAYS[way]}{said} in {len(ahead)} of {len(changes)} rows, by {mean:+.1f} points on average over all; {tail}."
