"""The parts of a report and their keys, as types; `report_types.py` puts them together."""

from __future__ import annotations

from typing import Any

from typing_extensions import NotRequired, TypedDict

Number = float | str | None  # of the user's own numbers: NaN is null, the infinities are "inf" and "-inf"


class Signature(TypedDict):
    """The input of a network: nested lists and dicts of `{"shape": [...], "dtype": "float32"}`."""

    args: Any
    kwargs: Any


class Model(TypedDict):
    """A network, and the input that it was traced on."""

    spec: NotRequired[str | None]
    args: NotRequired[dict[str, Any]]
    fingerprint: NotRequired[str]
    input: NotRequired[Signature]
    profiled_input: NotRequired[Signature]  # the one that is counted for, when another
    input_guessed: NotRequired[bool]
    file: NotRequired[str]
    opset: NotRequired[int | None]  # of an ONNX file, as `producer`
    producer: NotRequired[str]


class Paper(TypedDict):
    """The counting of the paper, one sample in eval mode: MB of 2^20 bytes, GFLOPs of 1e9."""

    param_mb: float
    gflops: float
    memory_mb: float


class Counts(TypedDict):
    """What a network costs for one sample: `macs` are multiply-adds, `flops` twice as many, `*_bytes` bytes."""

    params: int
    params_bytes: int
    macs: int
    flops: int
    activation_bytes: int
    peak_forward_bytes: int | None
    train_macs: NotRequired[int]
    train_flops: NotRequired[int]
    paper: NotRequired[Paper]


class Reduction(TypedDict, total=False):
    """Of each count the share that is gone: 1 - after / before."""

    params: float
    params_bytes: float
    macs: float
    flops: float
    activation_bytes: float
    peak_forward_bytes: float
    train_macs: float
    train_flops: float
    paper: Paper


class Neurons(TypedDict):
    total: int
    kept: NotRequired[int]


class Sparsity(TypedDict):
    """Shares of all neurons, in [0, 1)."""

    requested: float | str | None
    achieved: float


class LayerRow(TypedDict):
    """A layer; costs of one sample, `*_after` those of the slim network."""

    name: str
    op: str
    kernel: list[int]
    neurons: NotRequired[int]
    kept: NotRequired[int]
    params: NotRequired[int]
    macs: NotRequired[int]
    output_elements: NotRequired[int]
    output_bytes: NotRequired[int]
    params_after: NotRequired[int]
    macs_after: NotRequired[int]
    output_elements_after: NotRequired[int]
    output_bytes_after: NotRequired[int]
    latency_ms: NotRequired[float]
    macs_per_s: NotRequired[float]  # measured, of its own op, as is what follows
    peak_macs_per_s: NotRequired[float]  # of the machine, in this kind of op
    bytes_per_s: NotRequired[float]  # read and written
    copy_bytes_per_s: NotRequired[float]  # of the machine
    slow: NotRequired[str]  # why it is below half of the peak
    latency_ms_after: NotRequired[float]  # of the second network's layer, as are those below
    macs_per_s_after: NotRequired[float]
    bytes_per_s_after: NotRequired[float]
    slow_after: NotRequired[str]
    importance_mean: NotRequired[float]
    importance_share: NotRequired[float]
    tau: NotRequired[float]
    reweighting: NotRequired[float]
    floored: NotRequired[bool]
    fixed: NotRequired[str]


class ModuleRow(TypedDict):
    """A module of the tree, without those below it."""

    module: str
    type: str
    params: int
    macs: int
    output_elements: int
    saved_bytes: NotRequired[int]


class Reason(TypedDict):
    layer: str
    reason: str


class HeldBack(TypedDict):
    """Neurons that stay though the ranking alone would remove them, by cause."""

    reason: str
    neurons: int
    layers: list[str]


class FollowedCount(TypedDict):
    """A channel count in an attribute of a user's module; the value in the slim network."""

    module: str
    attribute: str
    value: Any


class UnruledOp(TypedDict):
    op: str
    module: str
    source: str


class UncountedOp(TypedDict):
    op: str
    module: str
    count: int


class Verified(TypedDict):
    """How far slim(x) is from masked(x), the largest difference over the outputs."""

    against: str
    input: str
    max_abs_error: NotRequired[float]
    max_rel_error_fp32: NotRequired[float]
    max_rel_error_fp64: NotRequired[float]
    not_comparable: NotRequired[list[str]]
    rounding_fp32: NotRequired[float]  # how far rounding alone moves the dense network's output, of its scale


class Part(TypedDict):
    module: str
    bytes: int


class Amp(TypedDict):
    dtype: str
    device: str


class Memory(TypedDict):
    """The estimated peaks of one network, for a batch of `samples`; `error` or `train_error` where there is no estimate."""

    samples: int
    optimizer: str
    device: NotRequired[str]
    forward_peak_bytes: NotRequired[int]
    forward_peak_at: NotRequired[str]
    train_peak_bytes: NotRequired[int]
    train_peak_at: NotRequired[str]
    train_parts: NotRequired[dict[str, int]]
    by_module: NotRequired[list[Part]]
    unprunable_bytes: NotRequired[int]
    allowance_bytes: NotRequired[int]
    error: NotRequired[str]
    train_error: NotRequired[str]
    amp: NotRequired[Amp]


class Sides(TypedDict, total=False):
    before: Memory
    after: Memory


class CorrelationRow(TypedDict):
    """Spearman's rank correlation of a criterion with the oracle; of `layers` null where there are too few units, or all alike."""

    criterion: str
    mean: float | None  # over layers
    all: float | None  # over all units
    all_equal_l2: float | None  # with layers of equal l2 norm
    layers: list[float | None]


class Correlations(TypedDict):
    """How well criteria rank the units, beside the change of the loss without each."""

    units: int
    fixed: int  # units that were not tried
    batches: int
    layers: list[str]
    criteria: list[CorrelationRow]


class Round(TypedDict):
    """One removal of units, and the network after it. `loss` is the mean over the updates since the last one."""

    updates: int
    units: int
    removed: int
    neurons: int
    params: int
    macs: int
    loss: NotRequired[Number]
    metric: NotRequired[Number]
    layers: dict[str, int]


class Loop(TypedDict):
    """What pruning in rounds cost: updates, and as many of the dense network as have the same multiply-adds."""

    updates: int
    dense_updates: float


class BudgetRow(TypedDict):
    """A limit as given, and as a number in the unit of `before` and `after`."""

    kind: str
    limit: str
    bound: float
    before: float
    after: float


class Recomputed(TypedDict):
    macs_per_element: float
    share_of_forward: float


class Scoring(TypedDict, total=False):
    """How the gradients were taken, where that is not as a reader expects."""

    precision: str
    agreement: float
    foretold_peak_bytes: int
    plain_peak_bytes: int
    computed_twice: Recomputed
    scales_at_one: list[str]
    weights_drawn: list[str]
    not_ranked: dict[str, str]
    stopped: bool


class Raised(TypedDict):
    layer: str
    by_score: int
    kept: int


class FloorCost(TypedDict):
    params: int
    macs: int
    activation_bytes: int


class Floor(TypedDict):
    """The layers that the floor raised, and what that costs."""

    layers: list[Raised]
    cost: NotRequired[FloorCost]


class Narrowest(TypedDict):
    """The fewest channels between the input and an output, and the layers that have them."""

    output: int
    output_channels: int
    channels: int
    dense_channels: int
    layers: list[str]


# the share `right` of its places is right; so written since a key is a word of Python
WorstClass = TypedDict("WorstClass", {"class": int, "loss": float, "right": float})


class ProbeSide(TypedDict):
    """Losses: before the training, after it (None: not finite), and of each step before that step."""

    first: float | None
    last: float | None
    curve: list[float]
    worst_class: NotRequired[WorstClass]
    diverged: NotRequired[int]


class ProbeSeconds(TypedDict):
    dense: float
    slim: float


class Probe(TypedDict):
    """A short training of both networks; `lag`: the share of the dense network's way that the slim one still has to go."""

    steps: int
    optimizer: str
    lr: float
    batches: NotRequired[int]
    dense: NotRequired[ProbeSide]
    slim: NotRequired[ProbeSide]
    lag: NotRequired[float | None]
    seconds: NotRequired[ProbeSeconds]
    error: NotRequired[str]


class Transfer(TypedDict):
    matched: list[str]
    left: list[Reason]


class Output(TypedDict):
    """A file that was written; of an export also the axes of its inputs and outputs, and how it was checked."""

    bytes: int
    sha256: str
    external_data: NotRequired[dict[str, int]]  # files beside it, and their bytes
    exporter: NotRequired[str]
    opset: NotRequired[int]
    dynamic: NotRequired[str]
    inputs: NotRequired[dict[str, list[int | str]]]
    outputs: NotRequired[dict[str, list[int | str]]]
    verified: NotRequired[dict[str, Any]]
    next: NotRequired[str]  # the command of a framework that goes on from it
