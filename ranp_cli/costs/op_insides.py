"""What torch does inside of an op: which share of its time goes to copies in another layout or dtype, and which kernel computes.

Both are seen by torch's profiler while the op runs. A kernel that is written for one layout copies what lies otherwise first, and
a convolution of a single sample that ATen does not hand to oneDNN goes through loops of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .runtimes import on_threads
from .timing import Ground, LayerOp

COPIES = "aten::copy_"  # every copy, cast and change of layout ends in it
PLAIN_KERNELS = ("aten::slow_conv", "aten::_slow_conv", "aten::thnn_conv")  # the starts of their names
RUNS = 3


@dataclass(frozen=True)
class Inside:
    """Of the time of an op: the share of copies; and whether ATen's plain loops compute it."""

    copies: float
    is_plain: bool


def inside_of(op: LayerOp, ground: Ground) -> Inside | None:
    """The median of a few runs; None where the profiler cannot look: on a GPU, and in other runtimes than torch."""
    if ground.device.type != "cpu" or not ground.runtime.name.startswith("torch"):
        return None
    work = op.inside(ground)
    with torch.no_grad(), on_threads(ground.threads):
        work()
        seen = sorted((_seen(work) for _ in range(RUNS)), key=lambda inside: inside.copies)
    return seen[len(seen) // 2]


def _seen(work: Any) -> Inside:
    from torch.autograd import profiler_legacy  # torch.profiler writes lines of its own to stderr

    with profiler_legacy.profile() as profiler:
        work()
    seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return Inside(
        seconds.get(COPIES, 0.0) / max(1e-9, sum(seconds.values())),
        any(key.startswith(PLAIN_KERNELS) for key in seconds),
    )
