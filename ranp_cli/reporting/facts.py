"""Facts of a report in words: which model, counted on what, and what stays for which reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.spelling import spelled


def adding_up(values: Sequence[int | None], quantum: int, unchanged: Sequence[bool]) -> list[int | None]:
    """Values, the last of them their total, in quanta that add up.

    What rounding leaves over goes to the largest values, one quantum each; to those of unchanged layers last, so that
    they read the same before and after.
    """
    quanta = [None if value is None else (2 * value + quantum) // (2 * quantum) for value in values]
    known = [i for i, n in enumerate(quanta[:-1]) if n is not None]
    left = (quanta[-1] or 0) - sum(quanta[i] or 0 for i in known)
    known.sort(key=lambda i: (unchanged[i], -(values[i] or 0)))
    for i in known[: abs(left)]:
        quanta[i] = (quanta[i] or 0) + (1 if left > 0 else -1)
    return quanta


def model_name(report: Mapping[str, Any]) -> str:
    """The model's spec; of one that was made in memory the slim file it lies in, or nothing."""
    about = report.get("model", {})
    return str(about.get("spec") or about.get("file") or "")


def counted_on(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which input the numbers are of, and which of them are of one sample and which of the batch: labels and texts."""
    about = report.get("model", {})
    shapes = ["x".join(map(str, shape)) for shape in _shapes(about.get("profiled_input") or about.get("input"))]
    if not shapes:
        return []
    guessed = f", guessed: give {spelled('inputs')} for another" if about.get("input_guessed") else ""
    samples = max((side.get("samples", 1) for side in report.get("memory", {}).values()), default=1)
    which = "multiply-adds and activations" if samples > 1 or "rows" in report else "all"
    batch = f", peaks of a batch of {samples}" if samples > 1 else ""
    lines = [("input:", f"{', '.join(shapes)}{guessed}"), ("counted:", f"{which} of one sample{batch}")]
    counts = report.get("before") or {}
    if "activation_bytes" in counts and "peak_forward_bytes" in counts:
        paper = "; the paper's memory: the outputs of all modules, added up" if "paper" in counts else ""
        lines.append(
            (
                "memory:",
                f"activations: all that a forward pass allocates, added up; a peak: what is held at once{paper}",
            )
        )
    return lines


def _shapes(signature: Any) -> list[list[int]]:
    """The shapes of the tensors in the signature of an input."""
    if isinstance(signature, Mapping):
        return [signature["shape"]] if "shape" in signature else _shapes(list(signature.values()))
    return [shape for part in signature for shape in _shapes(part)] if isinstance(signature, list) else []


def by_reason(pairs: Iterable[tuple[str, str]]) -> str:
    """`a, b (network output); c (unknown op)`."""
    groups: dict[str, list[str]] = {}
    for layer, reason in pairs:
        groups.setdefault(reason, []).append(layer)
    return "; ".join(f"{', '.join(layers)} ({reason})" for reason, layers in groups.items())
