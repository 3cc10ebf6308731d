"""How fast the networks of a table are: each row's turn by turn with the dense one, in the runtime that will run them."""

from __future__ import annotations

from typing import Any

from ...core.errors import BadInput
from ...core.spelling import spelled
from ...costs.timing import Benchmark
from ..options import StepOptions
from .cutting import Cut, Cutter, Subject


def check_timed(subject: Subject, is_trained: bool) -> None:
    """BadInput for choices of what is timed where nothing is, and for times of networks that a fit trains."""
    step = subject.options[StepOptions]
    by_latency = any(e.ranking is not None and e.ranking.resource == "latency" for e in subject.table.entries)
    step.check_timed(step.time or by_latency, f"{spelled('time', True)} or {spelled('methods', 'ranp-latency')}")
    if step.batch_size is not None and not step.time:
        raise BadInput(
            f"{spelled('batch_size', step.batch_size)} is of what {spelled('time')} measures; give that too, or leave it out"
        )
    if step.time and is_trained:
        raise BadInput(
            f"{spelled('time')} and {spelled('fit')}: training changes no time; time the same rows in a call without {spelled('fit')}"
        )


class RowTimes:
    """Times the rows' forward passes, and keeps what they were measured on for the report."""

    def __init__(self, cutter: Cutter) -> None:
        example, samples = cutter.example, cutter.subject.options[StepOptions].batch_size
        self.cutter = cutter
        self.stand = Benchmark(example.with_batch(samples or example.samples), cutter.ground)

    def add(self, found: Cut) -> None:
        """The part `speed` of a row: its seconds beside those of the dense network in the same turns."""
        dense = self.cutter.session.model
        with self.cutter.report.timing("time"):
            both = (dense,) if found.network is dense else (dense, found.network)
            timings = self.stand.forward(*both)
        before, after = timings.seconds[0], timings.seconds[-1]
        found.row["speed"] = {
            "seconds": after,
            "dense_s": before,
            "speedup": before / after,
            "repeats": timings.repeats,
        }

    def about(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The part `speed` of the report: what all rows were timed on, and the fewest turns."""
        return self.stand.about(min(row["speed"]["repeats"] for row in rows))
