"""The keywords of the public functions, for type checkers. Written by `python -m ranp_cli.api.keyword_types`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class ModelKeywords(TypedDict, total=False):
    model_args: Mapping[str, Any] | None
    weights: str | None
    weights_key: str | None
    seed: int | None
    device: str
    configuration: str | None
    fold: int | str | None
    trainer: str | None


class GradientKeywords(TypedDict, total=False):
    loss: Any
    loss_args: Mapping[str, Any] | None
    ignore_index: int | None
    batch_limit: int | None
    keys: str | Sequence[str] | None
    score_init: str
    precision: str
    low_memory: bool
    memory_limit: str | int | None


class LongRunKeywords(TypedDict, total=False):
    save_every: float
    timeout: float


class MethodKeywords(TypedDict, total=False):
    method: str
    criterion: str | None
    resource: str
    latencies: Any
    round_to: int | str


class LayerKeywords(TypedDict, total=False):
    lambda_: float | None
    resource_term: str
    min_neurons: int | str
    keep: Sequence[str]
    only: Sequence[str]


class InputKeywords(TypedDict, total=False):
    inputs: Any


class StepKeywords(TypedDict, total=False):
    optimizer: str | None
    batch_size: int | None
    amp: bool
    time: bool
    runtime: str
    threads: int | None


class ProbeKeywords(TypedDict, total=False):
    probe: int | None
    probe_lr: float | None


class RoundKeywords(TypedDict, total=False):
    rounds: int | None
    updates: int | None
    lr: float | None
    fit: Any
    metric: str | None
    checkpoint: str | None


class FitKeywords(TypedDict, total=False):
    fit: Any
    seeds: int | None
    metric: str | None
    init: str | None
    resume: Any


class OracleKeywords(TypedDict, total=False):
    oracle: bool
    oracle_scores: Any


class WhileTrainingKeywords(TypedDict, total=False):
    every: int
    units: float
    until: Any
    also: Any
    scaler: Any
    verify: str
    seed: int


class ScoreKeywords(ModelKeywords, GradientKeywords, LongRunKeywords, total=False):
    pass


class PruneKeywords(
    ModelKeywords,
    GradientKeywords,
    MethodKeywords,
    LayerKeywords,
    InputKeywords,
    StepKeywords,
    ProbeKeywords,
    RoundKeywords,
    total=False,
):
    pass


class RefineKeywords(ModelKeywords, InputKeywords, total=False):
    pass


class CompareKeywords(
    FitKeywords,
    ModelKeywords,
    GradientKeywords,
    LayerKeywords,
    InputKeywords,
    StepKeywords,
    ProbeKeywords,
    OracleKeywords,
    total=False,
):
    pass


class ProfileKeywords(ModelKeywords, StepKeywords, total=False):
    pass


class PrunerKeywords(WhileTrainingKeywords, MethodKeywords, LayerKeywords, total=False):
    pass
