"""What stands below the table of `compare`: what its numbers are, where they are not plain counts of one network."""

from __future__ import annotations

from typing import Any

RESOURCE_KEYS = {"macs": "macs", "mem": "activation_bytes", "params": "params"}  # of --match, and where a row has it
RESOURCE_WORDS = {"macs": "multiply-adds", "mem": "activations", "params": "parameters"}


def captions_of(parts: dict[str, Any]) -> list[str]:
    """What the numbers of a table are, in a sentence each, where they are not plain counts of one network."""
    found = []
    if about := parts.get("fit"):
        seeds = about["seeds"]
        many = (
            f"mean and sample standard deviation over {len(seeds)} seeds"
            if len(seeds) > 1
            else f"of seed {seeds[0]} alone"
        )
        found.append(f"{about['metric']}: {many}, higher is better; the best of each sparsity is marked.")
        if len(seeds) > 1:
            found[-1] += " Counts are means over the seeds."
    if about := parts.get("match"):
        found.append(f"Matched: at each sparsity every method is cut to at most the {RESOURCE_WORDS[about['resource']]} of "
                     f"{about['to']}.")  # fmt: skip
    if about := parts.get("width"):
        found.append(f"width: the same network with a smaller {about['argument']}, at most the {RESOURCE_WORDS[about['resource']]} "
                     f"of {about['to']}.")  # fmt: skip
    return found
