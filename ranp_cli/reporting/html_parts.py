"""Parts of the HTML page: words for keys, the legend, the check, the timeline with its axes, and where it was made."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from datetime import datetime
from html import escape
from typing import Any

from ..core.numbers import JOINED
from .speed import duration

Report = Mapping[str, Any]

WORDS = {"name": "method", "resource": "weighted by", "min_neurons": "fewest neurons of a layer", "init": "weights of the slim network",
         "batches": "mini-batches", "score_init": "weights that were scored", "round_to": "layers are multiples of",
         "mpmg-sum": "mpmg-sum (sum of |weight x gradient|)"}  # fmt: skip
DOT = " \N{MIDDLE DOT} "
WIDTH, HEIGHT, LEFT = 900, 160, 70  # of a timeline, and the room for the labels of its axis


def in_words(method: Mapping[str, Any]) -> str:
    """How the mask came about, as a sentence would say it."""
    parts = []
    for key, value in method.items():
        if key == "latency":
            continue
        text = (
            ", ".join(f"{k}={v}" for k, v in value.items())
            if isinstance(value, Mapping)
            else WORDS.get(str(value), str(value))
        )
        parts.append(f"{WORDS.get(key, key.replace('_', ' '))}: {text}")
    return DOT.join(parts)


def legend(is_pruned: bool, floored: Collection[str], fixed: Collection[str]) -> str:
    """What the colours and marks of the layers mean."""
    keys = [("was", "what goes"), ("now", "what stays")] if is_pruned else [("now", "of the largest layer")]
    shown = "".join(f'<span class="key" style="background: var(--{name})"></span>{text}' for name, text in keys)
    if floored:
        shown += ' &emsp;<span class="mark floor">floor</span> kept at the fewest neurons that a layer may have'
    if fixed:
        shown += ' &emsp;<span class="mark fixed">fixed</span> cannot lose neurons'
    return f'<p class="dim">{shown}</p>\n'


def verification(report: Report) -> str:
    """How the slim network was checked, and what the check could not compare."""
    verified = report.get("verified")
    if not verified:
        return ""
    errors = {"fp32": verified.get("max_rel_error_fp32"), "fp64": verified.get("max_rel_error_fp64")}
    numbers = ", ".join(f"{error:.2g} in {name}" for name, error in errors.items() if error is not None)
    if not numbers and verified.get("max_abs_error") is not None:
        numbers = f"{verified['max_abs_error']:.2g} (absolute)"
    text = f"The slim network was run beside the {verified.get('against', 'masked')} one"
    text += f" on an input of {verified['input']}" if verified.get("input") else ""
    text += f": largest difference {numbers}, as a share of the output's scale." if numbers else "."
    if other := verified.get("not_comparable"):
        text += f" Not comparable, as channels are normalised together: {', '.join(map(str, other))}."
    return f"<h2>Verification</h2>\n<p>{escape(text)}</p>\n"


def environment(report: Report) -> str:
    """When and where the page was made, with what, and how long the steps took."""
    now = datetime.now().astimezone()
    parts = [f"written {now:%Y-%m-%d %H:%M %Z}".strip(), f"ranp {report.get('ranp', '')}".strip()]
    parts += [f"torch {report['torch']}"] if "torch" in report else []
    parts += [f"Python {platform.python_version()}", f"{platform.system()} {platform.machine()}"]
    parts += [f"device {report['device']}"] if "device" in report else []
    if seconds := report.get("seconds", {}).get("total"):
        parts.append(f"took {duration(seconds).strip()}".replace(JOINED, " "))
    return f'<p class="dim">{escape(DOT.join(parts))}</p>\n'


def timeline(side: str, memory: Report, top: float, alone: bool) -> str:
    """A picture of the memory that is held after each op of a training step, with both axes.

    Args:
        top: the largest value of all pictures that stand together, so that they share a scale.
        alone: there is no other picture.
    """
    line, samples = memory["timeline"], memory["samples"]
    n = len(line)
    span, step = WIDTH - LEFT, max(n - 1, 1)

    def place(index: float, value: float) -> tuple[float, float]:
        return LEFT + span * index / step, HEIGHT - (HEIGHT - 10) * value / top

    colour = "var(--now)" if side == "after" or alone else "var(--was)"
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(k, v) for k, v in enumerate(line)))
    at = max(range(n), key=line.__getitem__)
    (x, y), (turn, _) = place(at, line[at]), place(memory["timeline_backward"], 0)
    anchor, shift = ("end", -8) if x > 600 else ("start", 8)
    ticks = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{place(0, value)[1]:.1f}" y2="{place(0, value)[1]:.1f}" stroke="var(--line)"/>'
        f'<text x="{LEFT - 6}" y="{place(0, value)[1] + 4:.1f}" text-anchor="end">{bytes_(value)}</text>'
        for value in (0, top / 2, top)
    )
    slots = "".join(
        f'<rect x="{LEFT + span * k / n:.1f}" width="{span / n:.2f}" height="{HEIGHT}" fill="transparent">'
        f"<title>op {k + 1} of {n}: {bytes_(v)}</title></rect>"
        for k, v in enumerate(line)
    )
    name = "a training step" if alone else side
    amp = ", 16-bit autocast" if "amp" in memory else ""
    return (
        f'<figure><figcaption>{name}: batch of {samples}, {escape(memory["optimizer"])}{amp}, peak '
        f'{bytes_(memory["train_peak_bytes"])} at {escape(memory["train_peak_at"])}</figcaption>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 34}" width="100%" role="img">{ticks}'
        f'<polygon points="{LEFT},{HEIGHT} {points} {WIDTH},{HEIGHT}" fill="{colour}" opacity=".55"/>'
        f'<line x1="{turn:.1f}" x2="{turn:.1f}" y1="0" y2="{HEIGHT}" stroke="var(--dim)" stroke-dasharray="4 3"/>'
        f'<text x="{max(turn - 4, LEFT + 50):.1f}" y="{HEIGHT + 14}" text-anchor="end">forward</text>'
        f'<text x="{min(turn + 4, WIDTH - 60):.1f}" y="{HEIGHT + 14}">backward</text>'
        f'<text x="{LEFT}" y="{HEIGHT + 30}">op 1</text>'
        f'<text x="{LEFT + span / 2:.0f}" y="{HEIGHT + 30}" text-anchor="middle">ops of the step, in order</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 30}" text-anchor="end">op {n}</text>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--hot)"/>'
        f'<text x="{x + shift:.1f}" y="{max(y + 4, 12):.1f}" text-anchor="{anchor}">{bytes_(line[at])}</text>{slots}</svg></figure>\n'
    )  # fmt: skip


def human(value: float) -> str:
    """`41.2 G`."""
    power = 0
    while round(value, 1) >= 1000 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:,.{1 if power else 0}f} {('', 'k', 'M', 'G', 'T')[power]}".strip()


def bytes_(value: float) -> str:
    """`8.3 GiB`."""
    power = 0
    while round(value, 1) >= 1024 and power < 4:
        value, power = value / 1024, power + 1
    return f"{value:,.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
