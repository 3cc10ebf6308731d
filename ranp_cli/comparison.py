"""The story of `compare`: one network, many methods and sparsities; gradients once, cut many times."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .criteria import CRITERIA
from .errors import BadInput, nearest
from .example import Example, as_example
from .importance import Importance
from .refining import INITS
from .report import Report, layer_row, reduction
from .select import METHODS, check
from .shadow import labels_on_cpu, seeded
from .steps import (
    LAMBDA,
    Progress,
    Ranking,
    agreement_of,
    check_choices,
    first_batch,
    importances,
    layer_seconds,
    open_job,
    settle,
    silent,
    way_of,
)
from .units import Graph, cost_of, measure
from .zeros import whole

if TYPE_CHECKING:
    from torch import nn

DEFAULT = (
    "full",
    "snip",
    "random",
    "layerwise",
    "vanilla",
    "weighted",
    "ranp-mem",
    "ranp-flops",
)  # Table 2 of the paper
SHORT = {
    "ranp": "ranp-flops",
    "ranp-f": "ranp-flops",
    "ranp-m": "ranp-mem",
    "ranp-p": "ranp-params",
    "ranp-l": "ranp-latency",
}
MOST = 1000  # rows


@dataclass(frozen=True)
class Entry:
    """One row family: its name, and how it ranks; None for the full network."""

    name: str
    ranking: Ranking | None


@labels_on_cpu
def compare(model: nn.Module | str, batches: Any, *, sparsity: Any, methods: Iterable[str] = DEFAULT, lambda_: float = LAMBDA,
            min_neurons: int = 1, keep: Sequence[str] = (), only: Sequence[str] = (), score_init: str = "keep", inputs: Any = None, loss: Any = None,
            ignore_index: int | None = None, batch_limit: int | None = None, seed: int = 0, device: str = "auto",
            model_args: dict[str, Any] | None = None, weights: str | None = None, weights_key: str | None = None,
            precision: str = "model", low_memory: bool = False, memory_limit: str | int | None = None,
            progress: Progress = silent) -> Comparison:  # fmt: skip
    """Lay methods side by side on one network: Table 2 and Fig. 4 of the paper for your own.

    `model` is not changed. The mini-batches are gone through once; each row is then selected, refined on meta tensors'
    shapes and counted. Nothing is verified here: `prune` does that for the one that you take.

    Args:
        sparsity: a number, "max", a range "0.1:0.95:0.05" (both ends count), or a list of these.
        methods: `full`, `random`, `layerwise`, `flat`, `snip`, `vanilla`, `weighted`, `ranp-flops|mem|params|latency` (or `ranp-f|m|p|l`),
            `taylor`, `magnitude`; with `:criterion` for another than the default, as in `vanilla:mnmg-sum`. For `snip`
            the sparsity is the share of weights that are masked.
        inputs: shape(s) of the input to count for, when another than that of the mini-batches: scores at a small
            spatial size, costs at a large one (section 5 of the paper).
        the others: as for `prune`.

    Returns: a Comparison; its report has one entry of `rows` for each method and sparsity.

    Raises: BadInput.
    """
    levels = sparsities(sparsity)
    entries = [entry(name, lambda_, min_neurons, seed) for name in methods]
    if not entries:
        raise BadInput("no method was given; leave out --methods for those of the paper")
    if len(entries) * len(levels) > MOST:
        raise BadInput(f"{len(entries)} methods at {len(levels)} sparsities are more than {MOST} rows; give fewer")
    check_choices(score_init=(score_init, INITS))
    way = way_of(precision, low_memory, memory_limit)
    report = Report("compare")
    job = open_job(report, model, seed, model_args, weights, weights_key, device)
    source, example = first_batch(batches, batch_limit, seed)
    graph = job.analyse(report, example)
    job.draw(graph, score_init, seed)
    scored = [e.ranking for e in entries if e.ranking is not None and e.ranking.criterion is not None]
    criteria = [str(ranking.criterion) for ranking in scored]
    if scored:
        way = replace(way, agreement=agreement_of(graph, scored[0], levels[0]))
    found = (
        importances(report, job, graph, source, criteria, loss, ignore_index, seed, progress, way) if criteria else {}
    )
    graph.fix_layers([keep] if isinstance(keep, str) else keep, [only] if isinstance(only, str) else only)
    if any(e.ranking is not None and e.ranking.resource == "latency" for e in entries):
        layer_seconds(report, job, graph, None, progress)
    at = None if inputs is None else as_example(inputs)
    before = cost_of(job.model, graph.eval_run) if at is None else measure(job.model, at)[2]
    rows: list[dict[str, Any]] = []
    plan = [(e, x) for e in entries for x in (levels if e.ranking is not None else [0.0])]
    with progress("comparing", len(plan)) as advance:
        for e, level in plan:
            if e.ranking is None:
                rows.append(full_row(e.name, graph, before))
            elif not (level == "max" and METHODS[e.ranking.method].by_layer):  # these never empty a layer
                with seeded(seed):
                    rows.append(one_row(report, job, graph, e, level, found, before, at))
            advance()
    report.parts |= {
        "model": job.about if at is None else {**job.about, "profiled_input": at.signature},
        "neurons": {"total": graph.n},
        "before": before,
        "layers": [layer_row(layer) for layer in graph.layers],
        "rows": rows,
    }
    return Comparison(report)


def entry(name: str, lam: float, min_neurons: int, seed: int) -> Entry:
    """`vanilla:mnmg-sum`, `ranp-mem`, ... as a ranking; BadInput for what does not exist."""
    if name == "full":
        return Entry(name, None)
    base, _, criterion = name.partition(":")
    known = [
        *(m for m in METHODS if m != "ranp"),
        "ranp-flops",
        "ranp-mem",
        "ranp-params",
        "ranp-latency",
        *SHORT,
        "full",
    ]
    if base not in known:
        raise BadInput(f"unknown method '{base}'{nearest(base, known)}")
    if criterion and criterion not in CRITERIA:
        raise BadInput(f"unknown criterion '{criterion}' of method '{name}'{nearest(criterion, CRITERIA)}")
    base = SHORT.get(base, base)
    method, _, resource = base.partition("-")
    ranking = Ranking.of(method, criterion or None, resource or "none", lam, min_neurons, seed)
    return Entry(f"{base}:{criterion}" if criterion else base, ranking)


def sparsities(given: Any) -> list[float | str]:
    """A number, "max", "0.1:0.95:0.05" (from, to, step), or a list of these, in order and once each."""
    if given is None or given == [] or given == ():
        raise BadInput("no sparsity was given; give --sparsity X in [0, 1), max, or a range such as 0.1:0.95:0.05")
    if isinstance(given, (list, tuple)):
        return list(dict.fromkeys(x for part in given for x in sparsities(part)))
    text = str(given)
    if "," in text:
        return sparsities(text.split(","))
    if ":" not in text:
        return ["max"] if text == "max" else [check(text)]
    try:
        first, last, step = map(float, text.split(":"))
    except ValueError:
        first = last = step = float("nan")
    if not (step > 0 and 0 <= first <= last < 1):
        raise BadInput(f"sparsity {text}: give a range as from:to:step, such as 0.1:0.95:0.05")
    return [round(first + k * step, 6) for k in range(int((last - first) / step + 1e-9) + 1)]


def full_row(name: str, graph: Graph, before: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": name,
        "sparsity": {"requested": 0.0, "achieved": 0.0},
        "kept": graph.n,
        "after": before,
        "reduction": reduction(before, before),
        "feasible": True,
        "floored": [],
        "layers_kept": graph.sizes,
    }


def one_row(report: Report, job: Any, graph: Graph, e: Entry, level: float | str, found: dict[str, Importance],
            before: dict[str, Any], at: Example | None) -> dict[str, Any]:  # fmt: skip
    """Select, refine and count one method at one sparsity. `feasible`: no layer needed the floor."""
    ranking = e.ranking
    assert ranking is not None
    by = found[ranking.criterion] if ranking.criterion else Importance([np.zeros(n) for n in graph.sizes], 0)
    with whole(graph, by.not_ranked):
        chosen, slim, _, ran = settle(report, job, graph, lambda: ranking.select(graph, by.scores, level))
        kept = [int(k.sum()) for k in graph.by_layer(chosen.keep[graph.unit])]
    after = cost_of(slim, ran.run) if at is None else measure(slim, at)[2]
    return {
        "method": e.name,
        **{k: v for k, v in ranking.recorded.items() if k in ("criterion", "resource", "lambda")},
        "sparsity": {"requested": level, "achieved": round(1 - sum(kept) / graph.n, 6)},
        "kept": sum(kept),
        "after": after,
        "reduction": reduction(before, after),
        "feasible": not chosen.floored,
        "floored": chosen.floored,
        "layers_kept": kept,
    }


COLUMNS = ("method", "requested", "achieved", "kept", "params", "macs", "activation_bytes", "params_reduction",
           "macs_reduction", "activation_bytes_reduction", "param_mb", "gflops", "memory_mb", "feasible", "floored")  # fmt: skip


@dataclass
class Comparison:
    """`report.parts["rows"]` has one row for each method and sparsity; `csv` and `markdown` are the same as text."""

    report: Report

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.report.parts["rows"]
        return rows

    def csv(self) -> str:
        """One line a row: counts, reductions (1 - after / before), and the paper's counting (MB, GFLOPs, MB)."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            after, gone = row["after"], row["reduction"]
            counts = [after[k] for k in ("params", "macs", "activation_bytes")]
            counts += [gone[k] for k in ("params", "macs", "activation_bytes")]
            paper = [after.get("paper", {}).get(k, "") for k in ("param_mb", "gflops", "memory_mb")]
            writer.writerow([row["method"], row["sparsity"]["requested"], row["sparsity"]["achieved"], row["kept"], *counts,
                             *paper, row["feasible"], " ".join(row["floored"])])  # fmt: skip
        return out.getvalue()

    def markdown(self) -> str:
        """A table for a README or an issue, in the paper's counting where there is one."""
        lines = [
            "| method | sparsity | neurons | parameters | multiply-adds | activations | feasible |",
            "|---|---:|---:|---:|---:|---:|---|",
        ]
        for row in self.rows:
            after, gone = row["after"], row["reduction"]
            cells = [row["method"], f"{row['sparsity']['achieved']:.1%}", str(row["kept"])]
            cells += [f"{after['params'] / 1e6:.3g} M (-{gone['params']:.1%})", f"{after['macs'] / 1e9:.3g} G (-{gone['macs']:.1%})",
                      f"{after['activation_bytes'] / 2**20:.3g} MiB (-{gone['activation_bytes']:.1%})"]  # fmt: skip
            cells.append("yes" if row["feasible"] else f"floor in {len(row['floored'])} layers")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def plot(self, path: str | Path) -> None:
        """Fig. 4 of the paper, as .png, .svg or .pdf (extra `plot`)."""
        from .plots import sweep

        sweep(path, self.rows, self.report.parts["model"]["spec"] or "")
