"""Texts of the HTML page: words for keys, how the network was checked, when and where the page was made, and units."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from html import escape
from typing import Any

from ..core.numbers import JOINED
from .speed import duration

Report = Mapping[str, Any]

WORDS = {
    "name": "method",
    "resource": "weighted by",
    "min_neurons": "fewest neurons of a layer",
    "init": "weights of the slim network",
    "batches": "mini-batches",
    "score_init": "weights that were scored",
    "round_to": "layers are multiples of",
    "mpmg-sum": "mpmg-sum (sum of |weight x gradient|)",
}
DOT = " \N{MIDDLE DOT} "


def in_words(method: Mapping[str, Any]) -> str:
    """How the mask came about, as a sentence would say it."""
    parts = []
    for key, value in method.items():
        if key == "latency":
            continue
        text = (
            ", ".join(f"{k}={v}" for k, v in value.items())
            if isinstance(value, Mapping)
            else WORDS.get(str(value), str(value))
        )
        parts.append(f"{WORDS.get(key, key.replace('_', ' '))}: {text}")
    return DOT.join(parts)


def verification(report: Report) -> str:
    """How the slim network was checked, and what the check could not compare."""
    verified = report.get("verified")
    if not verified:
        return ""
    errors = {"fp32": verified.get("max_rel_error_fp32"), "fp64": verified.get("max_rel_error_fp64")}
    numbers = ", ".join(f"{error:.2g} in {name}" for name, error in errors.items() if error is not None)
    if not numbers and verified.get("max_abs_error") is not None:
        numbers = f"{verified['max_abs_error']:.2g} (absolute)"
    text = f"The slim network was run beside the {verified.get('against', 'masked')} one"
    text += f" on an input of {verified['input']}" if verified.get("input") else ""
    text += f": largest difference {numbers}, as a share of the output's scale." if numbers else "."
    if other := verified.get("not_comparable"):
        text += f" Not comparable, as channels are normalised together: {', '.join(map(str, other))}."
    return f"<h2>Verification</h2>\n<p>{escape(text)}</p>\n"


def environment(report: Report) -> str:
    """When and where the page was made, with what, and how long the steps took."""
    now = datetime.now().astimezone()
    parts = [f"written {now:%Y-%m-%d %H:%M %Z}".strip(), f"ranp {report.get('ranp', '')}".strip()]
    parts += [f"torch {report['torch']}"] if "torch" in report else []
    parts += [f"Python {platform.python_version()}", f"{platform.system()} {platform.machine()}"]
    parts += [f"device {report['device']}"] if "device" in report else []
    if seconds := report.get("seconds", {}).get("total"):
        parts.append(f"took {duration(seconds).strip()}".replace(JOINED, " "))
    return f'<p class="dim">{escape(DOT.join(parts))}</p>\n'


def human(value: float) -> str:
    """`41.2 G`."""
    power = 0
    while round(value, 1) >= 1000 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:,.{1 if power else 0}f} {('', 'k', 'M', 'G', 'T')[power]}".strip()


def bytes_(value: float) -> str:
    """`8.3 GiB`."""
    power = 0
    while round(value, 1) >= 1024 and power < 4:
        value, power = value / 1024, power + 1
    return f"{value:,.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
