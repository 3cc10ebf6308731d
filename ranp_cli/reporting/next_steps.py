"""The last words of a report: what was kept, and what one would do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.spelling import spelled
from .facts import model_name

WANTED = {"prune": "slim.safetensors", "refine": "slim.safetensors", "score": "scores.safetensors"}
KEPT = {"prune": "the slim network", "refine": "the slim network", "score": "the scores"}


def next_steps(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Label, style and text: that nothing was written, or a command that goes on from what was."""
    command = report.get("command", "")
    if command not in WANTED:
        return
    outputs = report.get("outputs", {})
    for about in outputs.values():
        if "next" in about:
            yield "next:", "bold", about["next"]
            return
    files = [path for path in outputs if not path.endswith(".json")]
    if not files:
        yield "not written:", "yellow", f"{KEPT[command]}; give -o {WANTED[command]} to keep {_it(command)}"
        return
    model = shlex.quote(model_name(report) or "MODEL")
    file = next((path for path in files if Path(path).suffix == ".safetensors"), None)
    if file is None:
        return
    if command == "score":
        yield (
            "next:",
            "bold",
            f"ranp prune {model} {spelled('scores', shlex.quote(file))} {spelled('sparsity', 0.5)} -o slim.safetensors",
        )
    else:
        yield (
            "next:",
            "bold",
            f"to train it, in Python: ranp_cli.load({file!r}, model), where model is the dense one; to count it: "
            f"ranp profile {shlex.quote(file)}",
        )


def _it(command: str) -> str:
    return "them" if command == "score" else "it"
