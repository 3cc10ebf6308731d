"""Measured speed on a page: a small table of times, and what they were measured on."""

from __future__ import annotations

from typing import Any

from .page import JOINED, Column, Page, column_cells, lay_out


def duration(value: float) -> str:
    """`1.25 s`, `20.3 ms`, `312 us`: three digits."""
    unit, scale = next(((u, s) for u, s in (("s ", 1.0), ("ms", 1e-3)) if round(value / s, 3) >= 1), ("us", 1e-6))
    number = value / scale
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"


def speed_block(report: dict[str, Any], page: Page) -> list:
    """Forward pass and training step before and after, and the speed-up beside what the multiply-adds promise."""
    speed = report.get("speed")
    if not speed:
        return []
    rows = [("forward pass", ""), ("training step", "train_")]
    rows = [(label, key) for label, key in rows if any(f"{key}{side}_s" in speed for side in ("before", "after"))]
    both = "speedup" in speed

    def cells(side: str) -> list[str]:
        return [duration(speed[f"{key}{side}_s"]) if f"{key}{side}_s" in speed else "" for _, key in rows]

    gains = [f"{speed[f'{key}speedup']:.2f} x" if both else "" for _, key in rows]
    promised = [f"{speed['theoretical_speedup']:.2f} x" if "theoretical_speedup" in speed else "" for _ in rows]
    columns = [
        Column("measured time", column_cells(label for label, _ in rows)),
        Column("before" if "after" in report else "", column_cells(cells("before"))),
        Column("after" if "after" in report else "", column_cells(cells("after"))),
        Column("speed-up", column_cells(gains, "green")),
        Column("by multiply-adds", column_cells(promised, "dim")),
    ]
    head, body, rule = lay_out(columns, page)
    runs = dict.fromkeys(str(speed[key]) for key in ("repeats", "train_repeats") if key in speed)
    threads = f"{speed['threads']}{JOINED}thread{'s' * (speed['threads'] != 1)}"
    text = f"{speed['device']}, {threads}, batch of {speed['samples']}, medians of {' and '.join(runs)} runs"
    lines = [*head, rule, *body, *page.paragraph("on", "", text)]
    if "train_error" in speed:
        lines += page.paragraph("training step:", "yellow", speed["train_error"])
    return lines
