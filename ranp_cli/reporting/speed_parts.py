"""The parts of a report that a clock made, and their keys, as types; `report_types.py` puts them together."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict


class Recommended(TypedDict):
    """A way to run the network (the slim one, of two) that is faster on this machine, by measurement, and the line that does it."""

    of: str  # "training step" or "forward pass"
    way: str
    gain: float  # times as fast as plain torch, turn by turn
    plain_s: float
    seconds: float
    repeats: int
    max_rel_error: float  # of its outputs, against plain torch's
    line: str


class Speed(TypedDict):
    """Measured medians in seconds, of a forward pass and (`train_*`) of a training step, with the optimiser's where it is named."""

    device: str
    threads: int
    runtime: NotRequired[str]
    runtime_version: NotRequired[str]
    samples: int
    repeats: int
    max_rel_error: NotRequired[float]  # of the runtime's outputs, against torch's in fp32
    before_s: NotRequired[float]
    after_s: NotRequired[float]
    speedup: NotRequired[float]
    theoretical_speedup: NotRequired[float]
    train_repeats: NotRequired[int]
    train_before_s: NotRequired[float]
    train_after_s: NotRequired[float]
    train_speedup: NotRequired[float]
    train_error: NotRequired[str]
    train_optimizer: NotRequired[str]
    train_runtime: NotRequired[str]  # where that is not `runtime`, which does not train
    recommended: NotRequired[list[Recommended]]


class RowSpeed(TypedDict):
    """A forward pass of a row of `compare`, and of the dense network in the same turns."""

    seconds: float
    dense_s: float
    speedup: float
    repeats: int


class Rounded(TypedDict):
    """A network whose layers keep multiples of so many neurons."""

    round_to: int
    kept: int
    macs: int
    importance: float  # the share of all importance that it keeps
    seconds: float
    gain: float  # times as fast as without rounding, turn by turn


class SearchedNetwork(TypedDict):
    """A network that a search for a limit of time raced."""

    by: Literal["sparsity", "exchange"]  # the best sparsity, or units exchanged by importance per millisecond
    kept: int
    macs: int
    importance: float  # the share of all importance that it keeps
    seconds: float


class TableUse(TypedDict):
    """How many times of layers' ops a search went by, how many of them it measured, and how many ops it estimated by multiply-adds."""

    times: int
    measured: int
    by_macs: int


class TimeSearch(TypedDict):
    """What was tried under a limit of time, in that order, and what is taken."""

    tried: list[SearchedNetwork]
    taken: int  # which of them, from 0: the best sparsity
    table: TableUse


class Rounding(TypedDict):
    """What `--round-to auto` raced, each cut to the same goal, and what it chose."""

    chosen: int
    by: str  # "time", or "importance" under a limit of time
    of: str  # "training step" or "forward pass"
    runtime: str
    repeats: int
    raced: list[Rounded]
