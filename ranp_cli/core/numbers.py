"""Numbers as text: counts, bytes, times and changes with their units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

JOINED = "\N{NO-BREAK SPACE}"  # a space where a line must not break; printed as a plain one
KINDS = {
    "macs": "",
    "flops": "",
    "params": "",
    "forward-mem": "B",
    "train-mem": "B",
    "latency": "s",
    "step-time": "s",
}  # of a budget -> its unit
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
MEASURED = tuple(kind for kind, unit in KINDS.items() if unit == "s")  # by a clock; the other kinds are counted
COUNT_UNITS = ("", "k", "M", "G", "T", "P", "E")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def shown(kind: str, value: float) -> str:
    """`41.2 G`, `8.3 GiB`, `20.3 ms`."""
    if KINDS[kind] == "s":
        name = next((name for name in ("s", "ms") if value >= TIMES[name]), "us")
        return f"{value / TIMES[name]:.4g} {name}"
    step, names = (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if KINDS[kind] else (1000, ("", "k", "M", "G", "T"))
    power = 0
    while value >= step and power < len(names) - 1:
        value, power = value / step, power + 1
    return f"{value:.4g} {names[power]}".strip()


def human(value: float, step: int = 1000, units: Sequence[str] = COUNT_UNITS) -> str:
    """`16.3 M`, `997.0 MiB`; the unit is padded, so that a column of them lines up."""
    power = 0
    while round(value, 1 if power else 0) >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    return f"{value:.{1 if power else 0}f} {units[power]:<3}"


def human_bytes(value: float) -> str:
    return human(value, 1024, _BYTE_UNITS)


def change_text(before: float, after: float) -> str:
    percent = round(100 * (after / before - 1), 1) if before else 0.0
    return f"{percent:+.1f} %" if percent else "0.0 %"


def seconds_text(value: float) -> str:
    return f"{value:.1f}{JOINED}s" if value >= 0.1 else f"{1000 * value:.0f}{JOINED}ms"


def accuracy_texts(rows: Sequence[dict[str, Any]], sign: str) -> list[tuple[str, str]]:
    """`0.8123 ± 0.0100` and the worst of each row, all with as many decimals as the largest number allows."""
    parts = [row["accuracy"] for row in rows]
    size = max((abs(v) for part in parts for v in part["values"] if math.isfinite(v)), default=0.0)
    digits = 4 if size < 10 else 2 if size < 1000 else 0

    def text(value: float) -> str:
        return f"{value:,.{digits}f}"

    spread = [part["std"] is not None and not math.isnan(part["mean"]) for part in parts]
    means = [
        text(part["mean"]) + (f" {sign} {text(part['std'])}" if s else "")
        for part, s in zip(parts, spread, strict=True)
    ]
    return list(zip(means, [text(part["worst"]) for part in parts], strict=True))
