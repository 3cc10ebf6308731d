"""Measured speed, on a terminal and on the page: the times, the gain that was promised, and what they were measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.numbers import JOINED
from .terminal import Column, Terminal, column_cells, lay_out

SIDES = ("before", "after")


@dataclass(frozen=True)
class Timing:
    """What was timed, the seconds of the networks that were run ("before", "after"), the gain by clock and by count."""

    name: str
    seconds: dict[str, float]
    measured: float | None
    promised: float | None


def timings(speed: Mapping[str, Any]) -> list[Timing]:
    """The rows of the report's part `speed`."""
    rows = []
    optimizer = f", with {speed['train_optimizer']}" if "train_optimizer" in speed else ""
    for name, key in (("forward pass", ""), (f"training step{optimizer}", "train_")):
        seconds = {side: speed[f"{key}{side}_s"] for side in SIDES if f"{key}{side}_s" in speed}
        if seconds:
            rows.append(Timing(name, seconds, speed.get(f"{key}speedup"), speed.get("theoretical_speedup")))
    return rows


def conditions(speed: Mapping[str, Any]) -> str:
    """`cpu, 2 threads, batch of 1, medians of 30 and 12 runs`."""
    runs = dict.fromkeys(str(speed[key]) for key in ("repeats", "train_repeats") if key in speed)
    threads = f"{speed['threads']}{JOINED}thread{'s' * (speed['threads'] != 1)}"
    runtime = "" if speed.get("runtime", "torch") == "torch" else f"{speed['runtime']} {speed['runtime_version']}, "
    runtime += f"training step in {speed['train_runtime']}, " if "train_runtime" in speed else ""
    return f"{runtime}{speed['device']}, {threads}, batch of {speed['samples']}, medians of {' and '.join(runs)} runs"


def recommendations(speed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is faster, by how much, and the line of Python that does it."""
    return [
        (
            f"{entry['of']} {entry['gain']:.2f} times as fast with {entry['way']}, outputs off by {entry['max_rel_error']:.1g} of their scale",
            entry["line"],
        )
        for entry in speed.get("recommended", ())
    ]


def rounding_sentences(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What `--round-to auto` chose, and what it raced."""
    if not (found := report.get("rounding")):
        return
    rows = found["raced"]
    names = {row["round_to"]: f"multiples of {row['round_to']}" if row["round_to"] > 1 else "none" for row in rows}
    raced = ", ".join(
        f"{names[row['round_to']]} {duration(row['seconds']).strip().replace(' ', JOINED)}"
        + (f" with {row['importance']:.1%} of the importance" if found["by"] == "importance" else "")
        for row in rows
    )
    chosen = next(row for row in rows if row["round_to"] == found["chosen"])
    why = "none gains more than the noise" if found["by"] == "time" else "it keeps the most importance within the limit"
    if found["by"] == "time" and found["chosen"] > 1:
        why = f"{chosen['gain']:.2f} times as fast as without"
    text = f"{names[found['chosen']]}, {why}; a {found['of']} in {found['runtime']}, medians of {found['repeats']} runs: {raced}"
    yield "rounding:", "bold", text


def search_sentences(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the search under a limit of time took, beside what the best sparsity gives."""
    if not (found := report.get("time_search")):
        return

    def said(row: Mapping[str, Any]) -> str:
        return f"{row['importance']:.1%} of the importance in {duration(row['seconds']).strip().replace(' ', JOINED)}"

    base, taken, table = found["tried"][0], found["tried"][found["taken"]], found["table"]
    if found["taken"]:
        text = f"units exchanged by importance per millisecond keep {said(taken)}, where the best sparsity keeps {said(base)}"
    else:
        text = f"the best sparsity keeps {said(base)}; units exchanged by importance per millisecond keep no more"
    estimated = f", {table['by_macs']} ops estimated by multiply-adds" if table["by_macs"] else ""
    yield (
        "exchanged:" if found["taken"] else "not exchanged:",
        "bold",
        f"{text}; {table['times']} times of layers, {table['measured']} of them measured now{estimated}",
    )


def achieved_text(row: Mapping[str, Any], arrow: str) -> str:
    """`12.3 of 38.0: few channels (4)`, `12.3 -> 9.1 of 38.0: ...`: multiply-adds a second, the best, and why the (slim) layer is slow."""
    rates = [f"{row[key] / 1e9:.1f}" for key in ("macs_per_s", "macs_per_s_after") if key in row]
    if not rates:
        return ""
    slow = row.get("slow_after" if "macs_per_s_after" in row else "slow")
    return f"{f' {arrow} '.join(rates)} of {row['peak_macs_per_s'] / 1e9:.1f}{f': {slow}' if slow else ''}"


WHY_SLOW = {  # what stands in the table, and what it means
    "layout copies": "the share of the op's time in which torch copies its tensors into another order of the axes, or another dtype",
    "plain kernel": "loops of torch's own, which it takes for a single sample on one thread where oneDNN's kernels would be faster",
}


def slow_sentences(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the reasons that stand in the table of layers mean, where their names do not say it."""
    shown = [row.get("slow_after" if "macs_per_s_after" in row else "slow", "") for row in report.get("layers", ())]
    for name, meaning in WHY_SLOW.items():
        if any(text.startswith(name) for text in shown):
            yield f"{name}:", "bold", meaning


def duration(value: float) -> str:
    """`1.25 s`, `20.3 ms`, `312 us`: three digits."""
    unit, scale = next(((u, s) for u, s in (("s ", 1.0), ("ms", 1e-3)) if round(value / s, 3) >= 1), ("us", 1e-6))
    number = value / scale
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"


def times_text(gain: float | None) -> str:
    """`2.35 x`; nothing where it is not known."""
    return "" if gain is None else f"{gain:.2f} x"


def speed_block(report: dict[str, Any], page: Terminal) -> list:
    """Forward pass and training step before and after, and the speed-up beside what the multiply-adds promise."""
    speed = report.get("speed")
    if not speed:
        return []
    rows = timings(speed)
    if not rows:  # of `compare`, whose rows have their own
        return []
    columns = [Column("measured time", column_cells(t.name for t in rows))]
    for side in SIDES:
        texts = [duration(t.seconds[side]) if side in t.seconds else "" for t in rows]
        columns.append(Column(side if "after" in report else "", column_cells(texts)))
    columns += [
        Column("speed-up", column_cells((times_text(t.measured) for t in rows), "green")),
        Column("by multiply-adds", column_cells((times_text(t.promised) for t in rows), "dim")),
    ]
    head, body, rule = lay_out(columns, page)
    lines = [*head, rule, *body, *page.paragraph("on", "", conditions(speed))]
    if "train_error" in speed:
        lines += page.paragraph("training step:", "yellow", speed["train_error"])
    for gain, line in recommendations(speed):
        lines += page.paragraph("faster still:", "green", f"{gain}:")
        lines.append(page.verbatim(line))
    return lines
