"""What a person sees: a report as tables, an error as one line.

On a terminal there is colour and a little unicode; a pipe, or a terminal that cannot encode it, gets the same page in
plain ASCII. Whatever comes from the user (names, paths, messages) is printed as it is: no markup, no emoji codes, and
control characters written out. Numbers in one column share a unit and are rounded such that they add up to their total.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from ..core.numbers import COUNT_UNITS, JOINED, MEASURED, change_text, human, human_bytes, seconds_text
from .compare_table import counted_lines, rows_table
from .facts import adding_up, by_reason, model_name
from .next_steps import next_steps
from .oracle_table import oracle_table
from .probe_text import probe_sentences
from .rounds_table import rounds_table
from .speed import achieved_text, duration, rounding_sentences, search_sentences, slow_sentences, speed_block
from .terminal import Column, Terminal, column_cells, lay_out, plain_text, side_by_side
from .trainability_text import floor_sentences
from .training_text import training_sentences
from .tree import tree_lines

Report = dict[str, Any]

PIPE_WIDTH = 100
MOST_COUNTS = 4  # attributes that are named


# -- the public functions --------------------------------------------------------------------------------------------


class Page(Console):
    """A console that tells when nobody reads it any more, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(stderr: bool = False, width: int | None = None) -> Console:
    """A console on stdout or stderr; without colour under NO_COLOR, plain and 100 columns wide in a pipe."""
    page = Page(
        file=sys.stderr if stderr else sys.stdout,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        emoji=False,
        highlight=False,
    )
    if width or not page.is_terminal:
        page.width = width or PIPE_WIDTH
    return page


def show_report(report: Report, console: Console, depth: int | None = None) -> None:
    """Print the parts that `report` has: headline, before/after, layers, remarks.

    Args:
        report: the JSON report, as any command makes it.
        depth: add up the layers, or the tree, more than so many modules deep; 0 leaves them out.
    """
    page = Terminal(console)
    body = tree_lines(report["modules"], page, depth) if "modules" in report else _layers(report, page, depth)
    parts = (
        [rows_table(report, page), oracle_table(report, page)]
        if "rows" in report
        else [_summary(report, page), rounds_table(report, page), speed_block(report, page), body]
    )
    blocks = [_headline(report, page), *parts, _remarks(report, page)]
    for i, block in enumerate(filter(None, blocks)):
        for line in [Text()] * (i > 0) + block:
            console.print(line, overflow=line.overflow or "fold", no_wrap=line.no_wrap, crop=line.overflow != "ignore")


def show_error(message: str, console: Console) -> None:
    """Print `ranp: error: message` on one line, however long it is."""
    line = Text.assemble(("ranp: error: ", "bold red"), Terminal(console).clean(" ".join(message.splitlines())))
    console.print(line, soft_wrap=True)


# -- the blocks of a report ------------------------------------------------------------------------------------------


def _headline(report: Report, page: Terminal) -> list[Text]:
    """What was done to which model, how, and how many neurons stay."""
    method, outputs = (
        report.get("method", {}),
        [path for path, file in report.get("outputs", {}).items() if "next" in file or not path.endswith(".json")],
    )
    details = [str(method[key]) for key in ("name", "criterion") if method.get(key) is not None]
    terms = [(key, method.get(key)) for key in ("resource", "resource_term", "lambda", "seed")]
    details += [f"{key}{JOINED}{plain_text(value)}" for key, value in terms if value is not None]
    name = model_name(report)
    text = f" {name}" * bool(name) + f"  {page.glyphs.arrow}  {', '.join(outputs)}" * bool(outputs)
    text += f"   ({', '.join(details)})" if details else ""
    lines = page.paragraph(" ".join(["ranp", report.get("command", "")]).strip(), "bold", text)
    for line in lines:
        line.highlight_words([word for word in (name, *outputs) if word], "cyan")

    neurons, sparsity = report.get("neurons", {}), report.get("sparsity", {})
    if "kept" in neurons:
        text = f"{neurons['kept']:,} of {neurons['total']:,} neurons"
        text += f", sparsity{JOINED}{plain_text(sparsity['achieved'])}" if "achieved" in sparsity else ""
        asked = plain_text(sparsity.get("requested", ""))
        if report.get("budget"):
            text += " (the largest network within the budget)"
        elif asked:
            text += f" (requested:{JOINED}{asked})"
        lines += page.paragraph("kept", "bold", text)
    elif "total" in neurons:
        lines += page.paragraph(f"{neurons['total']:,} neurons", "", "")
    return lines


# key, label, how the number is written
_MEASURES: list[tuple[str, str, Callable[[float], str]]] = [
    ("params", "parameters", human),
    ("params_bytes", "parameter bytes", human_bytes),
    ("macs", "multiply-adds", human),
    ("flops", "FLOPs (2 x multiply-adds)", human),
    ("train_macs", "multiply-adds, with backward", human),
    ("train_flops", "FLOPs, with backward", human),
    ("activation_bytes", "activations", human_bytes),
    ("peak_forward_bytes", "peak of a forward pass", human_bytes),
    ("train_peak_bytes", "peak of a training step", human_bytes),
]
_PAPER_MEASURES: list[tuple[str, str, Callable[[float], str]]] = [
    ("param_mb", "parameters", lambda value: f"{value:,.2f} MB "),
    ("gflops", "FLOPs", lambda value: f"{value:,.2f} G  "),
    ("memory_mb", "memory", lambda value: f"{value:,.2f} MB "),
]


def _memory(report: Report, side: str) -> Report:
    """The two peaks of a batch, workspaces included, in place of the one that is counted beside the multiply-adds."""
    found = report.get("memory", {}).get(side, {}) if side in report else {}
    names = {"forward_peak_bytes": "peak_forward_bytes", "train_peak_bytes": "train_peak_bytes"}
    return {name: found[key] for key, name in names.items() if key in found}


def _summary(report: Report, page: Terminal) -> list[Text]:
    """Before, after and the change; one column when there is one network; the paper's counting below."""
    before, after = ({**report.get(side, {}), **_memory(report, side)} for side in ("before", "after"))
    rows = [(label, write, before[key], after.get(key)) for key, label, write in _MEASURES if key in before]
    split = len(rows)
    was, now = before.get("paper", {}), after.get("paper", {})
    rows += [(label, write, was[key], now.get(key)) for key, label, write in _PAPER_MEASURES if key in was]
    if not rows:
        return []
    columns = [
        Column("", column_cells(label for label, *_ in rows)),
        Column("before" if after else "", column_cells(write(x) for _, write, x, _ in rows)),
    ]
    if after:
        styles = ["" if y is None or y == x else "green" if y < x else "yellow" for *_, x, y in rows]
        texts = ["" if y is None else write(y) for _, write, _, y in rows]
        changes = ["" if y is None else change_text(x, y) for *_, x, y in rows]
        columns += [
            Column("after", [Text(*cell) for cell in zip(texts, styles, strict=True)]),
            Column("reduction", [Text(*cell) for cell in zip(changes, styles, strict=True)]),
        ]
    head, body, rule = lay_out(columns, page)
    paper = [Text(), Text("paper's counting", "bold"), rule, *body[split:]] if len(rows) > split else []
    return [*([*head, rule] if after else []), *body[:split], *counted_lines(report, page), *paper]


_SUMMED = ("neurons", "kept", "macs", "macs_after", "output_elements", "output_elements_after")


def _sum(name: str, layers: list[Report]) -> Report:
    """One row for several layers."""
    known = {key: [layer[key] for layer in layers if layer.get(key) is not None] for key in _SUMMED}
    marks = dict.fromkeys(layer["mark"] for layer in layers if layer["mark"])
    sums = {key: sum(values) for key, values in known.items() if values}
    return {"name": name, "op": f"{len(layers)} layers", "mark": " ".join(marks), **sums}


def _folded(layers: list[Report], depth: int | None) -> list[Report]:
    """Layers more than `depth` modules deep are added up under their common module."""
    if depth is None:
        return layers
    groups: dict[str, list[Report]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer["name"].split(".")[:depth]), []).append(layer)
    return [group[0] if len(group) == 1 else _sum(name, group) for name, group in groups.items()]


def _layers(report: Report, page: Terminal, depth: int | None) -> list[Text]:
    """One row per layer, and their total."""
    floored, fixed = _floored(report), _fixed(report)
    layers = [
        {**layer, "mark": "floor" if layer["name"] in floored else "fixed" if layer["name"] in fixed else ""}
        for layer in report.get("layers", [])
    ]
    if not layers or depth == 0:
        return []
    rows = [*_folded(layers, depth), _sum("total", layers) | {"mark": ""}]

    def counted(title: str, sign: str, drop: int, keys: tuple[str, str], digits: int | None = None) -> Column:
        """Counts that add up, in a common unit that shows so many digits of the larger total (None: all of them)."""
        columns = [[row.get(key) for row in rows] for key in keys if key in rows[-1]]
        length = max((len(str(column[-1])) for column in columns), default=0)
        power = (length - 1) // 3 if digits and length > 5 else 0
        decimals = (digits or 0) - 1 - (length - 1) % 3 if power else 0
        unchanged = [len(set(values)) == 1 for values in zip(*columns, strict=True)]
        quanta = [adding_up(column, 10 ** (3 * power - decimals), unchanged) for column in columns]
        cells = [
            [page.glyphs.none if n is None else f"{n / 10**decimals:,.{decimals}f}" for n in column]
            for column in quanta
        ]
        texts = side_by_side(cells, sign) if cells else [""] * len(rows)
        return Column(f"{title}\n{COUNT_UNITS[power]}".strip(), column_cells(texts), drop)

    def measured(title: str, key: str, form: str, drop: int) -> Column:
        sides = [[row[k] for k in (key, f"{key}_after") if row.get(k) is not None] for row in rows]
        texts = [f" {arrow} ".join(format(value, form) for value in values) for values in sides]
        return Column(title, column_cells(texts, "dim"), drop)

    arrow = page.glyphs.arrow
    known = [None not in (row.get("kept"), row.get("neurons")) for row in rows]
    bars = [page.bar(row["kept"], row["neurons"]) if ok else "" for row, ok in zip(rows, known, strict=True)]
    rates = [achieved_text(row, arrow) for row in rows]
    head, body, rule = lay_out(
        [
            Column("layer", column_cells(page.clean(row["name"]) for row in rows)),
            Column("op", column_cells((page.clean(_op(row)) for row in rows), "dim"), drop=3, left=True),
            counted("kept / all" if any(known) else "neurons", "/", 0, ("kept", "neurons")),
            Column("", column_cells(bars, "green"), drop=2, left=True),
            counted("multiply-adds", arrow, 1, ("macs", "macs_after"), digits=5),
            counted("output elements", arrow, 4, ("output_elements", "output_elements_after"), digits=4),
            measured("mean\nimportance", "importance_mean", ".2e", 5),
            measured("share", "importance_share", ".3f", 5),
            measured("tau", "tau", ".3f", 6),
            measured("latency\nms", "latency_ms", ".3g", 5),
            Column("multiply-adds/s\nG, of the best", column_cells(rates, "dim"), drop=1, left=True),
            Column("", [Text(row["mark"], "dim" if row["mark"] == "fixed" else "yellow") for row in rows], left=True),
        ],
        page,
    )
    body[-1].stylize("bold")
    return [*head, rule, *body[:-1], rule, body[-1]]


def _op(layer: Report) -> str:
    """`conv3d 3x3x3`; a transposed convolution is a `convT3d`, for the sake of the column's width."""
    kernel = "x".join(map(str, layer.get("kernel") or []))
    return f"{layer.get('op', '').replace('conv_transpose', 'convT')} {kernel}".strip()


def _floored(report: Report) -> list[str]:
    return report.get("floored") or [layer["name"] for layer in report.get("layers", []) if layer.get("floored")]


def _fixed(report: Report) -> dict[str, str]:
    fixed = {layer["name"]: layer["fixed"] for layer in report.get("layers", []) if layer.get("fixed")}
    return report.get("fixed") or fixed


def _remarks(report: Report, page: Terminal) -> list[Text]:
    """What one should know of this result, where the time went, and what was written."""
    return [line for label, style, text in _sentences(report) for line in page.paragraph(label, style, text)]


def _sentences(report: Report) -> Iterator[tuple[str, str, str]]:
    for note in report.get("notes", ()):
        yield "note:", "bold", note
    for each in report.get("budget", ()):
        write = duration if each["kind"] in MEASURED else human_bytes if each["kind"].endswith("-mem") else human
        share = f"{each['after'] / each['bound']:.1%} of it" if each["bound"] else ""
        yield "budget:", "green", f"{each['kind']}={each['limit']}: {write(each['after']).strip()}, {share}"
    yield from rounding_sentences(report)
    yield from search_sentences(report)
    yield from slow_sentences(report)
    for side, about in report.get("memory", {}).items():
        if side == "after" or "after" not in report:
            yield from training_sentences(about)
    yield from probe_sentences(report)
    if transfer := report.get("transfer"):
        left = by_reason((entry["layer"], entry["reason"]) for entry in transfer["left"])
        yield "transferred:", "bold", f"{len(transfer['matched'])} layers matched" + (f"; left: {left}" if left else "")
    yield from floor_sentences(report, _floored(report))
    fixed = _fixed(report)
    if fixed:
        yield "fixed:", "bold", by_reason(fixed.items())
    if followed := report.get("followed"):
        yield "counts followed:", "bold", ", ".join(map(_count, followed))
    if kept := report.get("not_followed"):
        more = [f"{len(kept) - MOST_COUNTS} more"] * (len(kept) > MOST_COUNTS)
        text = ", ".join([*map(_count, kept[:MOST_COUNTS]), *more])
        yield "counts as they were:", "bold", f"{text} (no run needs them, and what they count is not known)"
    if skipped := [entry for entry in report.get("not_pruned", ()) if entry["layer"] not in fixed]:
        yield "not pruned:", "yellow", by_reason((entry["layer"], entry["reason"]) for entry in skipped)
    if unruled := report.get("unruled_ops"):
        places = (f"{u['op']} in {u['module'] or 'the model'} ({u['source']})" for u in unruled)
        yield "no rule, so fixed:", "yellow", ", ".join(places)
    if uncounted := report.get("uncounted_ops"):
        yield "uncounted ops:", "yellow", ", ".join(entry["op"] + _where(entry) for entry in uncounted)
    if verified := report.get("verified"):
        yield from _verdict(verified)
    if seconds := report.get("seconds"):
        device = f" ({report['device']})" if "device" in report else ""
        yield (
            "time:",
            "bold",
            ", ".join(f"{step}{JOINED}{seconds_text(value)}" for step, value in seconds.items()) + device,
        )
    for path, file in report.get("outputs", {}).items():
        yield "wrote", "bold", f"{path}  {human_bytes(file['bytes']).strip()}  sha256{JOINED}{file['sha256'][:12]}"
    yield from next_steps(report)


def _count(row: dict[str, Any]) -> str:
    return f"{'.'.join(filter(None, (row['module'], row['attribute'])))}{JOINED}{row['value']}"


def _where(entry: dict[str, Any]) -> str:
    module = f" in {entry['module']}" if entry.get("module") else ""
    return module + (f" ({entry['count']}{JOINED}times)" if entry.get("count", 1) > 1 else "")


def _verdict(verified: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    names = {"max_rel_error_fp32": "fp32", "max_rel_error_fp64": "fp64"}
    errors = [f"{verified[key]:.2g}{JOINED}({name})" for key, name in names.items() if verified.get(key) is not None]
    if not errors and verified.get("max_abs_error") is not None:
        errors = [f"{verified['max_abs_error']:.2g}{JOINED}(absolute)"]
    if errors:
        against = verified.get("against", "masked")
        yield "verified", "green", f"against the {against} network: max error {', '.join(errors)}"
    if rounding := verified.get("rounding_fp32"):
        text = f"in fp32 rounding alone moves the dense network's output by {rounding:.1g} of its scale: the proof is that in fp64"
        yield "note:", "bold", text
    if other := verified.get("not_comparable"):
        yield "not comparable:", "yellow", ", ".join(other)
