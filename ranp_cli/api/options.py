"""Every option of ranp, in one place: its default, its help, its flag and what a value of it may be.

A group is a frozen dataclass whose fields are the options. The Python functions take the fields as keywords (`function_keywords.py`), the
command line makes its flags from them (`ranp_cli.cli.arguments`), and so do the config file and the help. An option is
added here and used where its group is read; nothing else lists it.

Needs no torch, so that `ranp --help` is instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import BadInput
from ..core.spelling import spelled
from .function_keywords import Keywords
from .option import (
    COST,
    FAR,
    FOLD,
    FROM,
    NUMBER,
    OUT,
    RANK,
    SHAPES,
    SIZE,
    SWITCH,
    TEXT,
    TEXTS,
    WHAT,
    WHOLE,
    WHOLE_OR_AUTO,
    option,
)

MOST_THREADS = 4096
LAMBDA = 11.0  # the paper's for ShapeNet; 15 for BraTS, 80 for UCF101
UNIT_LAMBDA = 1.0  # a unit of average score and average cost is then worth nothing


# -- the groups


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network, its weights, and where it runs. A seed of None is the one that a mask records, else 0."""

    model_args: Mapping[str, Any] | None = option(
        None, WHAT, "argument of the factory, read as YAML (repeatable)", TEXTS, "KEY=VALUE", "--model-arg"
    )
    weights: str | None = option(None, WHAT, "state dict to load: .safetensors or .pt", TEXT, "FILE")
    weights_key: str | None = option(None, WHAT, "which nested state dict of --weights", TEXT, "KEY")
    seed: int | None = option(0, WHAT, "seed of weights and of --method random", WHOLE, "N")
    device: str = option("auto", WHAT, "auto, cpu, cuda, cuda:i", TEXT, "D")
    configuration: str | None = option(None, WHAT, "of nnU-Net's plans", TEXT, "C", says="3d_fullres")
    fold: int | str | None = option(
        None, WHAT, "of nnU-Net's plans: whose training cases are the batches, where --batch is not given", FOLD, "N|all",
        says="0")  # fmt: skip
    trainer: str | None = option(
        None, WHAT, "of nnU-Net's plans: the class whose loss and loader are used", TEXT, "T", says="nnUNetTrainer"
    )

    def __post_init__(self) -> None:
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise BadInput(f"{spelled('seed', self.seed)}: give a whole number from 0 to 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class GradientOptions:
    """The loss, and how gradients are computed."""

    loss: Any = option(
        None, FROM, "cross_entropy, mse, l1, smooth_l1, bce, dice, dice_ce, file.py:Name or package:Name", TEXT, "NAME"
    )
    loss_args: Mapping[str, Any] | None = option(
        None, FROM, "argument of a loss of your own, read as YAML (repeatable)", TEXTS, "KEY=VALUE", "--loss-arg"
    )
    ignore_index: int | None = option(
        None, FROM, "target value that does not count", WHOLE, "I", says="-100, and 255 where no class"
    )
    batch_limit: int | None = option(None, FROM, "use at most N mini-batches", WHOLE, "N", "--batches")
    keys: str | Sequence[str] | None = option(
        None, FROM, "the keys of input and target in mini-batches that are dicts, as image,label", TEXT, "INPUT,TARGET",
        says="input or x, target or y")  # fmt: skip
    score_init: str = option("keep", FROM, "weights that are scored: keep|factory|glorot|orthogonal", TEXT, "I")
    precision: str = option(
        "model", FROM, "of the gradients: model, fp32, tf32, fp64, bf16, fp16, or auto: bf16 if the mask is that of fp32",
        TEXT, "P")  # fmt: skip
    low_memory: bool = option(False, FROM, "score with activations computed twice instead of kept", SWITCH)
    memory_limit: str | int | None = option(None, FROM, "likewise, as little as keeps to it, as 6GiB", SIZE, "V")


@dataclass(frozen=True, kw_only=True)
class LongRunOptions:
    """What a long scoring keeps on the way, and how long its processes wait for each other."""

    save_every: float = option(
        60.0, OUT, "keep in -o what is done, every N seconds: after a crash, go on with --resume; 0: only at the end",
        NUMBER, "N", doc="seconds between two writings of `kept_in`; 0: never")  # fmt: skip
    timeout: float = option(
        600.0, FROM, "with torchrun: end the job when a process is N seconds behind the others", NUMBER, "N"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.save_every < 1e9:
            raise BadInput(f"{spelled('save_every', self.save_every)}: give a number of seconds from 0 on")
        if not 0 < self.timeout < 1e9:
            raise BadInput(f"{spelled('timeout', self.timeout)}: give a number of seconds above 0")


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What neurons are ranked by."""

    method: str = option(
        "ranp", RANK, "ranp|weighted|vanilla|random|layerwise|flat|snip|taylor|magnitude|activation|weight|obd", TEXT, "M")  # fmt: skip
    criterion: str | None = option(
        None, RANK, "mpmg-sum|mean|max, mnmg-sum|mean|max, neuron, taylor, obd, activation-mean|std|zeros, snip, l1, l2, oracle", TEXT, "C",
        says="mpmg-sum, or the method's own")  # fmt: skip
    resource: str = option("flops", RANK, "flops|mem|params|latency (each layer is timed on --device)|none", TEXT, "R")
    latencies: Any = option(
        None, RANK, "times measured before: of an earlier --resource latency, its mask.json; with --budget latency= a table from the cache folder",
        TEXT, "FILE")  # fmt: skip
    round_to: int | str = option(
        1, FAR, "layers keep multiples of N neurons; auto: of 1, 4, 8 or 16, whatever a race in --runtime shows to be fastest",
        WHOLE_OR_AUTO, "N|auto")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What holds for every layer, whatever the method."""

    lambda_: float | None = option(
        None, RANK, "weight of the resource", NUMBER, "X", says=f"{LAMBDA:g}, and {UNIT_LAMBDA:g} with --resource-term unit")  # fmt: skip
    resource_term: str = option(
        "layer", RANK, "layer: scores times a factor of the layer's whole cost (eq. 10); unit: less lambda times what the "
        "unit's removal saves now", TEXT, "layer|unit")  # fmt: skip
    min_neurons: int | str = option(
        "auto", FAR, "each layer keeps its best N; 1: the paper's rule", WHOLE_OR_AUTO, "N|auto"
    )
    keep: Sequence[str] = option((), FAR, "layers never pruned (repeatable)", TEXTS, "GLOB")
    only: Sequence[str] = option((), FAR, "prune these layers only (repeatable)", TEXTS, "GLOB")

    @property
    def lambda_in_effect(self) -> float:
        if self.lambda_ is not None:
            return self.lambda_
        return UNIT_LAMBDA if self.resource_term == "unit" else LAMBDA

    def __post_init__(self) -> None:
        for name in ("keep", "only"):
            globs = getattr(self, name)
            globs = (globs,) if isinstance(globs, str) else globs
            if not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in globs):
                raise BadInput(f"{spelled(name, globs)}: give names of layers, or patterns of them such as 'encoder.*'")
            object.__setattr__(self, name, tuple(globs))


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """The input that costs are counted for."""

    inputs: Any = option(
        None, COST, "count, budget and estimate memory for this shape of input, as 1x4x128x128x128, not that of the "
        "batch (repeatable)", SHAPES, "SHAPE", "--input")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """The training step whose memory is estimated, and what is timed."""

    optimizer: str | None = option(
        None, COST, "of the training step: sgd|sgd-momentum|adam|adamw", TEXT, "O", says="sgd"
    )
    batch_size: int | None = option(
        None, COST, "samples of the training step, and of what is timed", WHOLE, "N", says="the input's"
    )
    amp: bool = option(
        False, COST, "memory in mixed precision: weights in 32 bits, what autocast casts on the device in 16",
        SWITCH)  # fmt: skip
    time: bool = option(
        False, COST, "run the networks too, and say how fast they are, dense and slim turn by turn, and what makes the slim one faster still: "
        "channels last, autocast; profile of one network: why each layer takes its time", SWITCH)  # fmt: skip

    runtime: str = option(
        "torch", COST, "what is timed, for --time, --resource latency and --budget latency=, step-time= (torch's own only): torch, onnxruntime, openvino, "
        "openvino-bf16, torch-channels-last, torch-bf16, tensorrt, cuda-graph", TEXT, "R")  # fmt: skip
    threads: int | None = option(None, COST, "of what is timed on a CPU", WHOLE, "N", says="as many as torch takes")

    def check_timed(self, timed: bool, wanted: str) -> None:
        """BadInput for a runtime or threads where nothing is timed; `wanted`: what would be."""
        for name, value, usual in (("runtime", self.runtime, "torch"), ("threads", self.threads, None)):
            if value != usual and not timed:
                raise BadInput(
                    f"{spelled(name, value)} is of what is timed, and nothing is; give {wanted}, or leave it out"
                )

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise BadInput(f"{spelled('threads', self.threads)}: give 1 or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise BadInput(f"{spelled('batch_size', self.batch_size)}: give 1 or more samples")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """A short training of both networks."""

    probe: int | None = option(
        None, COST, "train copies of both networks for N steps on the batch, with --optimizer or else adam, and say "
        "whether the slim one keeps up; 200 tells well", WHOLE, "N")  # fmt: skip
    probe_lr: float | None = option(
        None, COST, "learning rate of --probe", NUMBER, "X",
        says="adam, adamw 3e-3, sgd 0.05, sgd-momentum 0.01")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """Pruning in rounds: score, remove, fine-tune, and again; at once where `rounds` is None."""

    rounds: int | None = option(
        None, FAR, "remove in N rounds, and fine-tune after each (greedy pruning, for a trained network: --weights)", WHOLE, "N")  # fmt: skip
    updates: int | None = option(
        None, COST, "of --rounds: fine-tune for N updates on the batch, with --optimizer or else adam", WHOLE, "N", says="100")  # fmt: skip
    lr: float | None = option(
        None, COST, "of --rounds: learning rate", NUMBER, "X", says="adam, adamw 3e-3, sgd 0.05, sgd-momentum 0.01"
    )
    fit: Any = option(
        None, COST, "of --rounds: file.py:fit, called as fit(model, seed), fine-tunes instead and returns an accuracy, or a dict of "
        "numbers", TEXT, "F")  # fmt: skip
    metric: str | None = option(
        None, COST, "of --rounds: which number of fit's dict counts", TEXT, "NAME", says="the first"
    )
    checkpoint: str | None = option(
        None, OUT, "of --rounds: written after each round; the same command goes on from it", TEXT, "FILE"
    )

    def __post_init__(self) -> None:
        if self.rounds is not None and not 1 <= self.rounds <= 10_000:
            raise BadInput(f"{spelled('rounds', self.rounds)}: give 1 or more")
        if self.updates is not None and not 1 <= self.updates < 2**31:
            raise BadInput(f"{spelled('updates', self.updates)}: give 1 or more updates a round")
        if self.updates is not None and self.fit is not None:
            raise BadInput(
                f"{spelled('updates', self.updates)} fine-tunes on the batch, {spelled('fit')} does it its own way; give one of them"
            )


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How the rows of `compare` are trained; nothing is without `fit`."""

    fit: Any = option(
        None, COST, "file.py:fit, called as fit(model, seed): train every row and return its accuracy, or a dict of numbers",
        TEXT, "F")  # fmt: skip
    seeds: int | None = option(None, COST, "train under N seeds from --seed on", WHOLE, "N", says="3")
    metric: str | None = option(None, COST, "which number of fit's dict rows go by", TEXT, "NAME", says="the first")
    init: str | None = option(
        None, COST, "weights that rows are trained from: keep|factory|glorot|orthogonal", TEXT, "I", says="keep"
    )
    resume: Any = option(None, COST, "go on with the cells of an earlier ranp compare --fit", TEXT, "FILE")

    def __post_init__(self) -> None:
        if self.seeds is not None and not 1 <= self.seeds <= 10_000:
            raise BadInput(f"{spelled('seeds', self.seeds)}: give 1 or more; each row is trained once a seed")


@dataclass(frozen=True, kw_only=True)
class OracleOptions:
    """How the criteria rank the units, beside the oracle."""

    oracle: bool = option(
        False, COST, "remove every unit on its own too, and lay the rank correlation of each criterion with the change of the "
        "loss beside it, in --csv, --markdown and --plot too: a forward pass a unit and mini-batch", SWITCH)  # fmt: skip
    oracle_scores: Any = option(
        None, COST, "likewise, with the scores of ranp score --criterion oracle, which can be stopped and resumed", TEXT, "FILE")  # fmt: skip

    @property
    def is_wanted(self) -> bool:
        return self.oracle or self.oracle_scores is not None


@dataclass(frozen=True, kw_only=True)
class WhileTrainingOptions:
    """When a `Pruner` removes units of a network that trains, and what follows it."""

    every: int = option(30, FAR, "updates of the optimiser between two removals", WHOLE, "N")
    units: float = option(
        1, FAR, "how many units go each time; below 1, that share of the dense network's neurons", NUMBER, "N"
    )
    until: Any = option(0.5, FAR, 'a sparsity in (0, 1), or budgets: {"macs": "10%"}, ["params=1M"]', TEXTS, "X")
    also: Any = option(
        (), COST, "copies of the network that are cut with it: modules, or dicts of tensors by name", TEXTS, "C"
    )
    scaler: Any = option(None, COST, "the GradScaler of the loop, if it has one; it is only read", TEXT, "S")
    verify: str = option(
        "first", COST, "which removals are proved with numbers before they happen: first|every|never", TEXT, "W"
    )
    seed: int = option(0, RANK, "of the method random", WHOLE, "N")

    def __post_init__(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise BadInput(f"{spelled('every', self.every)}: give a whole number of updates from 1 on")
        units = self.units
        if type(units) not in (int, float) or not 0 < units < 2**63 or (units > 1 and units != int(units)):
            raise BadInput(
                f"{spelled('units', units)}: give a whole number of units, or a share of all neurons below 1"
            )


# -- what each public function takes, beside its own parameters

SCORE = Keywords(ModelOptions, GradientOptions, LongRunOptions)
PRUNE = Keywords(
    ModelOptions, GradientOptions, MethodOptions, LayerOptions, InputOptions, StepOptions, ProbeOptions, RoundOptions
)
REFINE = Keywords(ModelOptions, InputOptions)
COMPARE = Keywords(
    FitOptions,
    ModelOptions,
    GradientOptions,
    LayerOptions,
    InputOptions,
    StepOptions,
    ProbeOptions,
    OracleOptions,
    without=("optimizer", "amp"),
)
PROFILE = Keywords(ModelOptions, StepOptions)
PRUNER = Keywords(
    WhileTrainingOptions,
    MethodOptions,
    LayerOptions,
    without=("latencies", "round_to"),
    method="taylor",
    resource="none",
)
