"""The table of `compare` as text (CSV, Markdown) and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.numbers import accuracy_texts
from ...reporting.compare_captions import captions_of
from ...reporting.oracle_table import oracle_csv, oracle_markdown, oracle_plot
from ...reporting.report import Report
from ...reporting.speed import duration, times_text

COLUMNS = (
    "method",
    "requested",
    "achieved",
    "kept",
    "params",
    "macs",
    "activation_bytes",
    "params_reduction",
    "macs_reduction",
    "activation_bytes_reduction",
    "param_mb",
    "gflops",
    "memory_mb",
    "feasible",
    "floored",
)
OF_MATCH = ("matched_to", "matched_resource", "matched_bound")
OF_TIME = ("seconds", "dense_s", "speedup")
OF_FIT = ("metric", "mean", "std", "worst", "values", "best", "seconds")


@dataclass
class Comparison:
    """`report.parts["rows"]` has one row for each method and sparsity; `csv` and `markdown` are the same as text."""

    report: Report

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.report.parts["rows"]
        return rows

    def csv(self) -> str:
        """One line a row: counts, reductions (1 - after / before), and the paper's counting (MB, GFLOPs, MB).

        With times, those of a forward pass; with a match, what a row was matched to; with a fit, its metric over the seeds, and mean and deviation of others. With
        an oracle, one line a criterion instead.
        """
        if "oracle" in self.report.parts:
            return oracle_csv(self.report.parts["oracle"])
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        more = [dict(self._more(row)) for row in self.rows]
        names = list(dict.fromkeys(name for each in more for name in each))
        writer.writerow([*COLUMNS, *names])
        for row, each in zip(self.rows, more, strict=True):
            after, gone = row["after"], row["reduction"]
            counts = [after[k] for k in ("params", "macs", "activation_bytes")]
            counts += [gone[k] for k in ("params", "macs", "activation_bytes")]
            paper = [after.get("paper", {}).get(k, "") for k in ("param_mb", "gflops", "memory_mb")]
            writer.writerow(
                [
                    row["method"],
                    row["sparsity"]["requested"],
                    row["sparsity"]["achieved"],
                    row["kept"],
                    *counts,
                    *paper,
                    row["feasible"],
                    " ".join(row["floored"]),
                    *(each.get(name, "") for name in names),
                ]
            )
        return out.getvalue()

    def _more(self, row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """What a row has beside its counts, by column."""
        if "match" in self.report.parts:
            about = row.get("matched", {})
            yield from zip(OF_MATCH, (about.get(key, "") for key in ("to", "resource", "bound")), strict=True)
        if "speed" in row:
            yield from ((f"forward_{name}", row["speed"][name]) for name in OF_TIME)
        if "accuracy" in row:
            about = {**row["accuracy"], "values": " ".join(map(str, row["accuracy"]["values"]))}
            yield from ((name, "" if about[name] is None else about[name]) for name in OF_FIT)
            for name, other in about["all"].items():
                if name != about["metric"]:
                    yield f"{name}_mean", other["mean"]
                    yield f"{name}_std", "" if other["std"] is None else other["std"]

    def markdown(self) -> str:
        """A table for a README or an issue, in the paper's counting where there is one; below it how it was made."""
        metric = self.report.parts.get("fit", {}).get("metric")
        timed = "speed" in self.report.parts
        head = [
            "method",
            "sparsity",
            *([metric] if metric else []),
            *(["forward", "speed-up"] if timed else []),
            "neurons",
            "parameters",
            "multiply-adds",
            "activations",
            "feasible",
        ]
        rule = "|".join(["---", *["---:"] * (len(head) - 2), "---"])
        lines = [f"| {' | '.join(_escaped(name) for name in head)} |", f"|{rule}|"]
        texts = [text for text, _ in accuracy_texts(self.rows, "±")] if metric else [""] * len(self.rows)
        for row, text in zip(self.rows, texts, strict=True):
            after, gone = row["after"], row["reduction"]
            cells = [row["method"], f"{row['sparsity']['achieved']:.1%}"]
            cells += [f"**{text}**" if row["accuracy"]["best"] else text] if metric else []
            if timed:
                cells += [duration(row["speed"]["seconds"]).strip(), times_text(row["speed"]["speedup"])]
            cells.append(str(row["kept"]))
            cells += [
                f"{after['params'] / 1e6:.3g} M (-{gone['params']:.1%})",
                f"{after['macs'] / 1e9:.3g} G (-{gone['macs']:.1%})",
                f"{after['activation_bytes'] / 2**20:.3g} MiB (-{gone['activation_bytes']:.1%})",
            ]
            cells.append("yes" if row["feasible"] else f"floor in {len(row['floored'])} layers")
            lines.append(f"| {' | '.join(cells)} |")
        below = [f"- {label} {text}" for label, text in captions_of(self.report.parts)]
        text = "\n".join([*lines, *([""] if below else []), *below]) + "\n"
        return text + ("\n" + oracle_markdown(self.report.parts["oracle"]) if "oracle" in self.report.parts else "")

    def plot(self, path: str | Path) -> None:
        """Fig. 4 of the paper, or, with accuracy, its Fig. 1 and Fig. 4 e-h; as .png, .svg or .pdf (extra `plot`).

        With an oracle, the rank correlation of each criterion with it, as in Molchanov's talk.
        """
        if "oracle" in self.report.parts:
            oracle_plot(path, self.report.parts["oracle"], self.report.parts["model"]["spec"] or "")
            return
        from ...reporting.accuracy_plots import accuracy
        from ...reporting.plots import sweep

        (accuracy if "fit" in self.report.parts else sweep)(path, self.rows, self.report.parts["model"]["spec"] or "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
