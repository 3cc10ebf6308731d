"""The numbers of a run as one JSON document, the same for every command."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from .. import __version__
from ..core.numbers import shown
from ..core.spelling import spelled
from ..core.start_up import import_seconds

if TYPE_CHECKING:
    from ..graph.graph import Graph, Layer
    from .report_parts import LayerRow, Reason, UncountedOp
    from .report_types import ReportDocument


FORMAT, VERSION = "ranp-report", 1
# of one sample; with `_after` those of the slim network
LAYER_COSTS = ("params", "macs", "output_elements", "output_bytes")
FIXED_SHARE = 0.5  # of a training step's peak: where input, outputs and loss alone hold more, the report says so


@dataclass
class Report:
    """What a command did and found; `to_dict` gives the JSON form, absent parts left out."""

    command: str
    parts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, str] = field(
        default_factory=dict
    )  # the files that were read, by what they were given as: no output

    def __post_init__(self) -> None:
        if spent := import_seconds():
            self.seconds["import"] = spent

    def read(self, **given: Any) -> None:
        """Paths and specs, by option, are inputs; anything else is none."""
        for option, value in given.items():
            if isinstance(value, (str, os.PathLike)):
                self.inputs[spelled(option)] = os.fspath(value)

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        """Adds the wall time of a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    def to_dict(self) -> ReportDocument:
        out: dict[str, Any] = {"format": FORMAT, "version": VERSION, "command": self.command, "ranp": __version__}
        out["torch"] = version("torch").partition("+")[0]
        if self.seconds:
            steps = {k: round(v, 4) for k, v in self.seconds.items()}
            out["seconds"] = {**steps, "total": round(sum(self.seconds.values()), 4)}
        parts = dict(self.parts)
        if "before" in parts and "after" in parts:
            parts["reduction"] = reduction(parts["before"], parts["after"])
        if said := memory_notes(parts.get("memory", {})):
            parts["notes"] = [*parts.get("notes", []), *said]
        if "memory" in parts:  # timelines are for pictures
            parts["memory"] = {
                side: {k: v for k, v in about.items() if not k.startswith("timeline")}
                for side, about in parts["memory"].items()
            }
        out.update({k: v for k, v in parts.items() if v not in (None, [], {})})
        return cast("ReportDocument", out)


def memory_notes(memory: dict[str, Any]) -> list[str]:
    """When it is the volume itself that a training step needs its memory for, and not the layers between."""
    about = memory.get("after") or memory.get("before") or {}
    fixed, peak = about.get("unprunable_bytes", 0), about.get("train_peak_bytes", 0)
    if fixed <= FIXED_SHARE * peak:
        return []
    return [
        f"the input, the outputs and the loss over them hold {shown('train-mem', fixed)} at once, {fixed / peak:.0%} of the "
        f"peak of a training step (told above {FIXED_SHARE:.0%}): pruning does not shrink them; fewer classes, patches or "
        "a smaller input would"
    ]


def layer_row(layer: Layer) -> LayerRow:
    """One layer of one network, costs of one sample."""
    from ..core.tensors import tensors_in

    call, _ = layer.calls[0]
    element = tensors_in(call[1:])[0].element_size()  # bytes per element; input and output share a dtype
    row: LayerRow = {
        "name": layer.name,
        "op": layer.op,
        "kernel": list(layer.kernel),
        "neurons": len(layer.neurons),
        "params": layer.weights + (len(layer.neurons) if layer.bias else 0),
        "macs": layer.macs,
        "output_elements": layer.output_elements,
        "output_bytes": layer.output_elements * element,
    }
    if layer.seconds:
        row["latency_ms"] = 1000 * layer.seconds
    return row


def merge_rows(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of two networks side by side, matched by name; a layer that only one of them has keeps its own numbers."""
    later = {row["name"]: row for row in after}
    rows = []
    for row in before:
        new = later.pop(row["name"], None)
        rows.append(row if new is None else {**row, "kept": new["neurons"], **_renamed(new)})
    for row in later.values():
        rows.append(
            {"name": row["name"], "op": row["op"], "kernel": row["kernel"], "kept": row["neurons"], **_renamed(row)}
        )
    return rows


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {f"{key}_after": row[key] for key in LAYER_COSTS if key in row}


def not_pruned(graph: Graph, keep: Any) -> list[Reason]:
    """Each layer that lost nothing, with its reason."""
    rows: list[Reason] = []
    for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True):
        if keep[units].all():
            reasons = [graph.reasons[u] for u in units]
            why = "all its neurons are above the threshold"
            if all(reasons):
                why = "; ".join(dict.fromkeys(str(r) for r in reasons if r))
            rows.append({"layer": layer.name, "reason": why})
    return rows


def uncounted(ops: list[tuple[str, str]]) -> list[UncountedOp]:
    """Ops without a formula for multiply-adds, by module."""
    return [{"op": op, "module": module, "count": n} for (op, module), n in Counter(ops).items()]


def reduction(before: Any, after: Any) -> Any:
    """The share of each number that is gone: 1 - after / before, nested dicts alike."""
    if isinstance(before, dict):
        return {k: reduction(v, after[k]) for k, v in before.items() if k in after}
    return round(1 - after / before, 6) if before else 0.0
