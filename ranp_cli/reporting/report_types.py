"""What a report holds, as types: the document, and the rows of `compare`. `report.schema.json` is made from them.

`python -m ranp_cli.reporting.report_schema` writes the schema anew. A new key of a report is added here, or to the part in
`report_parts.py`, first.
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from .report_parts import (
    BudgetRow,
    Correlations,
    Counts,
    Floor,
    FollowedCount,
    HeldBack,
    LayerRow,
    Loop,
    Model,
    ModuleRow,
    Narrowest,
    Neurons,
    Number,
    Output,
    Probe,
    Reason,
    Reduction,
    Round,
    Scoring,
    Sides,
    Sparsity,
    Transfer,
    UncountedOp,
    UnruledOp,
    Verified,
)
from .speed_parts import Rounding, RowSpeed, Speed, TimeSearch


class Summary(TypedDict):
    """A metric over the seeds."""

    mean: Number
    std: Number
    worst: Number
    values: list[Number]


class Accuracy(Summary):
    metric: str
    all: dict[str, Summary]
    seconds: float
    best: NotRequired[bool]


class Matched(TypedDict):
    """What a row was cut to: the first method's count of a resource."""

    to: str
    resource: str
    bound: NotRequired[int]


class Width(TypedDict):
    argument: str
    value: int
    of: int


class WidthOf(TypedDict):
    argument: str | None
    to: str
    resource: str


class CutRow(TypedDict):
    """What a network was cut to, and what it costs."""

    sparsity: Sparsity
    kept: int
    after: Counts
    reduction: Reduction
    feasible: bool
    floored: list[str]
    layers_kept: list[int]
    matched: NotRequired[Matched]
    width: NotRequired[Width]
    probe: NotRequired[Probe]
    speed: NotRequired[RowSpeed]


class SeedRow(CutRow):
    seed: int
    metrics: dict[str, Number]
    seconds: float
    accuracy: NotRequired[Accuracy]


class CompareRow(CutRow):
    """A method at a sparsity; with a fit means over the seeds."""

    method: str
    criterion: NotRequired[str]
    resource: NotRequired[str]
    resource_term: NotRequired[str]
    # the weight of the resource has the key `lambda`, see `KEYS_OF_PYTHON`
    accuracy: NotRequired[Accuracy]
    seeds: NotRequired[list[SeedRow]]


class FitInfo(TypedDict):
    spec: str
    metric: str
    seeds: list[int]
    init: str
    cells: NotRequired[str]


class ReportDocument(TypedDict):
    """The report of one command; parts that have nothing to say are left out."""

    format: Literal["ranp-report"]
    version: Literal[1]
    command: Literal["score", "prune", "refine", "profile", "compare"]
    ranp: str
    torch: str
    seconds: NotRequired[dict[str, float]]  # of each step, and `total`
    device: NotRequired[str]
    model: NotRequired[Model]
    other: NotRequired[Model]
    method: NotRequired[dict[str, Any]]  # the options that decide, as a mask records them
    sparsity: NotRequired[Sparsity]
    neurons: NotRequired[Neurons]
    before: NotRequired[Counts]
    after: NotRequired[Counts]
    reduction: NotRequired[Reduction]
    memory: NotRequired[Sides]
    speed: NotRequired[Speed]
    budget: NotRequired[list[BudgetRow]]
    rounding: NotRequired[Rounding]
    time_search: NotRequired[TimeSearch]
    rounds: NotRequired[list[Round]]
    loop: NotRequired[Loop]
    verified: NotRequired[Verified]
    layers: NotRequired[list[LayerRow]]
    modules: NotRequired[list[ModuleRow]]
    other_modules: NotRequired[list[ModuleRow]]
    scoring: NotRequired[Scoring]
    floored: NotRequired[list[str]]
    floor: NotRequired[Floor]
    narrowest: NotRequired[list[Narrowest]]
    fixed: NotRequired[dict[str, str]]
    not_pruned: NotRequired[list[Reason]]
    held_back: NotRequired[list[HeldBack]]
    followed: NotRequired[list[FollowedCount]]  # corrected, since the slim network does not run otherwise
    stated: NotRequired[list[FollowedCount]]  # corrected, though no run needs it
    not_followed: NotRequired[list[FollowedCount]]  # perhaps a channel count, and as it was
    unruled_ops: NotRequired[list[UnruledOp]]
    uncounted_ops: NotRequired[list[UncountedOp]]
    probe: NotRequired[Probe]
    transfer: NotRequired[Transfer]
    rows: NotRequired[list[CompareRow]]
    oracle: NotRequired[Correlations]
    fit: NotRequired[FitInfo]
    match: NotRequired[Matched]
    width: NotRequired[WidthOf]
    notes: NotRequired[list[str]]
    outputs: NotRequired[dict[str, Output]]


KEYS_OF_PYTHON: dict[str, dict[str, Any]] = {"CompareRow": {"lambda": float}}
