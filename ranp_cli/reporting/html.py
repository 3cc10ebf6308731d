"""A report as one self-contained HTML page: no script, nothing from elsewhere, readable in dark mode and in print."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..core.atomic import write_atomic
from ..core.numbers import JOINED
from .facts import counted_on, model_name
from .html_texts import bytes_, environment, human, in_words, verification
from .probe_text import probe_page
from .speed import Timing, conditions, duration, recommendations, times_text, timings

Report = Mapping[str, Any]

WIDTH, HEIGHT, LEFT = 900, 160, 70  # of a timeline, and the room for the labels of its axis

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #59636e; --line: #d1d9e0; --page: #fff; --was: #b8c4d0;
        --now: #0072b2; --hot: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9198a1; --line: #3d444d; --page: #0d1117; --was: #4a5562; --now: #56b4e9; --hot: #e69f00; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 66rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; } p { margin: .3rem 0; }
.dim, figcaption { color: var(--dim); } figure { margin: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
.key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 .9rem; vertical-align: middle; }
.mark { font-size: .8em; padding: 0 .3rem; border: 1px solid; border-radius: .3rem; color: var(--dim); }
.mark.floor { color: var(--hot); }
.scroll { overflow-x: auto; }
.bar { display: inline-block; width: 8rem; height: .8rem; background: none; vertical-align: middle; }
.bar svg { width: 100%; height: 100%; display: block; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
"""


def write_html(report: Report, path: str | Path) -> None:
    """Write the page of a report; an existing file is replaced by a whole one."""
    write_atomic(path, page(report).encode())


def page(report: Report) -> str:
    """The page: before and after, the measured speed, the layers, the memory of a training step over its ops."""
    title = f"ranp {report.get('command', '')}: {model_name(report) or 'model'}"
    blocks = (_numbers, verification, _speed, probe_page, _layers, _timeline, _remarks)
    parts = [_head(report, title), *(block(report) for block in blocks)]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{''.join(parts)}"
        f"{environment(report)}</body>\n</html>\n"
    )


def _head(report: Report, title: str) -> str:
    neurons, method = report.get("neurons", {}), report.get("method", {})
    lines = [f"<h1>{escape(title)}</h1>\n"]
    if "kept" in neurons:
        share = neurons["kept"] / neurons["total"]
        lines.append(f"<p>{neurons['kept']:,} of {neurons['total']:,} neurons kept ({share:.1%}).</p>\n")
    elif "total" in neurons:
        lines.append(f"<p>{neurons['total']:,} neurons.</p>\n")
    if method:
        lines.append(f'<p class="dim">{escape(in_words(method))}</p>\n')
    return "".join(lines)


def _numbers(report: Report) -> str:
    both = [{**report.get(s, {}), **report.get("memory", {}).get(s, {})} for s in ("before", "after") if s in report]
    rows = []
    for key, label, write in MEASURES:
        values = [side.get(key) for side in both]
        if values and values[0] is not None:
            cells = [write(v) if v is not None else "" for v in values]
            if len(values) == 2 and values[1] is not None and values[0]:
                cells.append(f"{100 * (values[1] / values[0] - 1):+.1f} %")
            rows.append([label, *cells])
    heads = ["", "before", "after", "change"] if len(both) == 2 else ["", ""]
    told = "".join(f'<p class="dim">{escape(f"{label} {text}")}</p>\n' for label, text in counted_on(report))
    errors = dict.fromkeys(side[key] for side in both for key in ("error", "train_error") if key in side)
    told += "".join(f"<p>{escape(text)}</p>\n" for text in errors)
    return "<h2>Costs</h2>\n" + _table(heads, rows) + told if rows else ""


def _speed(report: Report) -> str:
    """What was timed, the speed-up beside the one that the multiply-adds promise, and the conditions."""
    speed = report.get("speed")
    if not speed:
        return ""
    rows = timings(speed)
    if "speedup" in speed:
        heads, cells = ["", "", "before and after", "speed-up", "by multiply-adds"], [_raced(row) for row in rows]
    else:
        side = "before" if "before_s" in speed else "after"
        heads = ["", side if "after" in report else ""]
        cells = [[row.name, duration(row.seconds[side]).strip()] for row in rows]
    told = f'<p class="dim">Measured on {escape(conditions(speed).replace(JOINED, " "))}.</p>\n'
    if "train_error" in speed:
        told += f"<p>Training step: {escape(speed['train_error'])}</p>\n"
    told += "".join(f"<p>{escape(gain)}: <code>{escape(line)}</code></p>\n" for gain, line in recommendations(speed))
    return "<h2>Measured speed</h2>\n" + _table(heads, cells, raw=True) + told


def _raced(row: Timing) -> list[str]:
    before, after = row.seconds["before"], row.seconds["after"]
    told = f"{duration(before).strip()} \N{RIGHTWARDS ARROW} {duration(after).strip()}"
    bar = _bar(before / max(before, after), after / max(before, after), f"{row.name}: {told}")
    return [row.name, bar, told, times_text(row.measured), times_text(row.promised)]


def _layers(report: Report) -> str:
    layers = report.get("layers", [])
    if not layers:
        return ""
    columns = [
        ("neurons", "kept", "neurons", human),
        ("macs", "macs_after", "multiply-adds", human),
        ("output_bytes", "output_bytes_after", "memory of the output", bytes_),
    ]
    columns = [column for column in columns if any(column[0] in row for row in layers)]
    most = {key: max((row.get(key) or 0 for row in layers), default=0) or 1 for key, *_ in columns}
    floored, fixed = set(report.get("floored", [])), report.get("fixed", {})
    rows = []
    for row in layers:
        mark = "floor" if row["name"] in floored or row.get("floored") else "fixed" if row["name"] in fixed else ""
        cells = [escape(str(row["name"])) + (f' <span class="mark {mark}">{mark}</span>' if mark else "")]
        for key, later, _, write in columns:
            was, now = row.get(key) or 0, row.get(later)
            told = write(was) if now is None else f"{write(was)} \N{RIGHTWARDS ARROW} {write(now)}"
            cells += [_bar(was / most[key], None if now is None else now / most[key], f"{row['name']}: {told}"), told]
        rows.append(cells)
    heads = ["layer", *(head for _, _, name, _ in columns for head in ("", name))]
    return (
        "<h2>Layers</h2>\n"
        + _legend(any("kept" in row for row in layers), floored, fixed)
        + _table(heads, rows, raw=True)
    )


def _legend(is_pruned: bool, floored: Collection[str], fixed: Collection[str]) -> str:
    """What the colours and marks of the layers mean."""
    keys = [("was", "what goes"), ("now", "what stays")] if is_pruned else [("now", "of the largest layer")]
    shown = "".join(f'<span class="key" style="background: var(--{name})"></span>{text}' for name, text in keys)
    if floored:
        shown += ' &emsp;<span class="mark floor">floor</span> kept at the fewest neurons that a layer may have'
    if fixed:
        shown += ' &emsp;<span class="mark fixed">fixed</span> cannot lose neurons'
    return f'<p class="dim">{shown}</p>\n'


def _bar(was: float, now: float | None, told: str) -> str:
    """One bar in another: the whole, and what stays; the longer one lies behind."""
    parts = [(was, "was"), (now, "now")] if now is not None else [(was, "now")]
    shapes = "".join(
        f'<rect width="{100 * width:.2f}" height="10" fill="var(--{name})"/>'
        for width, name in sorted(parts, key=lambda part: -part[0])
    )
    return (
        f'<span class="bar"><svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img"><title>{escape(told)}</title>'
        f"{shapes}</svg></span>"
    )


def _timeline(report: Report) -> str:
    memory = {side: m for side, m in report.get("memory", {}).items() if m.get("timeline")}
    if not memory:
        return ""
    top = max(max(m["timeline"]) for m in memory.values())
    pictures = [_picture(side, m, top, alone=len(memory) == 1) for side, m in memory.items()]
    return "<h2>Memory of a training step, op by op</h2>\n" + "".join(pictures)


def _picture(side: str, memory: Report, top: float, alone: bool) -> str:
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
        f"<figure><figcaption>{name}: batch of {samples}, {escape(memory['optimizer'])}{amp}, peak "
        f"{bytes_(memory['train_peak_bytes'])} at {escape(memory['train_peak_at'])}</figcaption>\n"
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
    )


def _remarks(report: Report) -> str:
    rows = [[name, "kept at its floor, the fewest neurons that a layer keeps"] for name in report.get("floored", [])]
    reasons = {entry["layer"]: entry["reason"] for entry in report.get("not_pruned", [])} | report.get("fixed", {})
    rows += [[name, reason] for name, reason in reasons.items()]
    return "<h2>What could not go by its score</h2>\n" + _table(["layer", "reason"], rows) if rows else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], raw: bool = False) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{c if raw else escape(c)}</td>" for c in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'


MEASURES = [
    ("params", "parameters", human),
    ("params_bytes", "parameter bytes", bytes_),
    ("macs", "multiply-adds", human),
    ("flops", "FLOPs (2 x multiply-adds)", human),
    ("train_macs", "multiply-adds, forward and backward", human),
    ("train_flops", "FLOPs, forward and backward", human),
    ("activation_bytes", "activations", bytes_),
    ("forward_peak_bytes", "peak of a forward pass", bytes_),
    ("train_peak_bytes", "peak of a training step", bytes_),
]
