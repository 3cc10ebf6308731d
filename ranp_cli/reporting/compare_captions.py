"""What stands below the table of `compare`: what its numbers are, where they are not plain counts of one network."""

from __future__ import annotations

from typing import Any

RESOURCE_KEYS = {"macs": "macs", "mem": "activation_bytes", "params": "params"}  # of --match, and where a row has it
RESOURCE_WORDS = {"macs": "multiply-adds", "mem": "activations", "params": "parameters"}


def captions_of(parts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers of a table are, a label and a sentence each, where they are not plain counts of one network."""
    found = []
    if about := parts.get("fit"):
        seeds = about["seeds"]
        many = (
            f"mean and sample standard deviation over {len(seeds)} seeds"
            if len(seeds) > 1
            else f"of seed {seeds[0]} alone"
        )
        counts = "; counts are means over the seeds" if len(seeds) > 1 else ""
        told = f"{many}, higher is better; the best of each sparsity is marked, full left out{counts}"
        found.append((f"{about['metric']}:", told))
    if about := parts.get("match"):
        word = RESOURCE_WORDS[about["resource"]]
        found.append(("matched:", f"at each sparsity every method is cut to at most the {word} of {about['to']}"))
    if about := parts.get("width"):
        word = RESOURCE_WORDS[about["resource"]]
        found.append(
            ("width:", f"the same network with a smaller {about['argument']}, at most the {word} of {about['to']}")
        )
    if about := parts.get("speed"):
        from .speed import conditions  # with rich, whose import draws from `random`

        found.append(
            ("speed-up:", f"of a forward pass, each network turn by turn with the dense one; {conditions(about)}")
        )
    return found
