"""The sentences of a report about what keeps a slim network able to learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.numbers import human
from ..core.spelling import spelled

MOST = 6  # layers that are named


def floor_sentences(report: dict[str, Any], floored: list[str]) -> Iterator[tuple[str, str, str]]:
    """The layers that the floor raised and what it cost, then the narrowest cut before each output."""
    part = report.get("floor", {})
    if rows := part.get("layers"):
        raised = [f"{row['layer']} {row['by_score']} -> {row['kept']}" for row in rows]
        text = ", ".join(raised[:MOST]) + (f", and {len(raised) - MOST} more" if len(raised) > MOST else "")
        if cost := part.get("cost"):
            share = cost["macs"] / report["after"]["macs"]
            text += f"; it costs {human(cost['macs']).strip()} multiply-adds, {share:.0%} of the slim network's"
        yield "raised to their floor:", "yellow", text
    elif floored:
        yield "kept at their floor:", "yellow", ", ".join(floored)
    for cut in report.get("narrowest", ()):
        layers = ", ".join(cut["layers"][:MOST])
        yield (
            "narrow:",
            "yellow",
            f"output {cut['output']} has {cut['output_channels']} channels, and all that it knows comes through "
            f"{cut['channels']} of {layers} ({cut['dense_channels']} in the dense network): what does not fit is not learnt; "
            f"a lower {spelled('sparsity')} or a higher {spelled('min_neurons')} widens it",
        )
