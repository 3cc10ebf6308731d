"""The steps that score, prune, refine and compare share."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.contexts import seeded
from ..core.copies import replicate, uncompiled
from ..core.errors import BadInput, VerificationFailed, nearest
from ..core.example import Example
from ..core.fingerprint import fingerprint
from ..costs.budget import limit
from ..costs.timing import place, time_layers, use_latencies
from ..graph.analyse import analyse
from ..graph.graph import Graph
from ..io.batches import Batches, load_batches
from ..io.losses import load_loss
from ..io.model import TORCHSCRIPT_NOTE, load_model, load_weights
from ..pruning.init import initialise
from ..pruning.mask import Mask
from ..pruning.methods import METHODS, unit_values, weigh
from ..pruning.min_neurons import AUTO, Floor, check_floor, floors
from ..pruning.resources import NAMES as RESOURCES
from ..pruning.resources import tau
from ..pruning.rounding import rounded
from ..pruning.select import Selection, select
from ..pruning.slim import slim_model
from ..pruning.slim_trace import HardCoded, SlimRun, check_runs
from ..pruning.snip import links_of, select_snip, strength_of
from ..reporting.report import Report
from ..scoring.criteria import Criterion, criterion
from ..scoring.precision import PRECISIONS
from ..scoring.scorer import Importance, Way, score
from ..scoring.weight_gradients import norms
from ..scoring.zero_scores import SAID, ZERO_WEIGHTS, notes, unranked

NOISE = 1e-4  # a sum of signed gradients below this share of the unsigned one is what rounding left
LAMBDA = 11.0  # the paper's for ShapeNet; 15 for BraTS, 80 for UCF101

Settled = tuple[Selection, nn.Module, dict[str, Any], SlimRun]
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], Any]]]


def silent(description: str, total: int | None) -> AbstractContextManager[Callable[[], Any]]:
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Ranking:
    """What units are ranked by; `of` checks and completes it. `criterion` is None where scores are drawn at random."""

    method: str
    criterion: str | None
    resource: str = "none"
    lam: float = LAMBDA
    min_neurons: Floor = 1
    seed: int = 0
    round_to: int = 1

    @classmethod
    def of(
        cls,
        method: str,
        criterion_name: str | None,
        resource: str,
        lam: float,
        min_neurons: Floor,
        seed: int,
        round_to: int = 1,
    ) -> Ranking:
        """BadInput for what does not exist or does not go together."""
        check_choices(method=(method, METHODS), resource=(resource, RESOURCES))
        if criterion_name is not None:
            criterion(criterion_name)
        known = METHODS[method]
        name = criterion_name or known.criterion
        if known.criteria and name not in known.criteria:
            raise BadInput(
                f"--method {method} goes by {' or '.join(known.criteria)}, not by '{name}'; leave out --criterion"
            )
        if name == "snip" and method != "snip":
            raise BadInput(
                f"criterion 'snip' scores weights, not neurons: it goes with --method snip, not with {method}"
            )
        min_neurons = check_floor(min_neurons)
        if round_to < 1:
            raise BadInput(f"round-to {round_to}: give 1 or more; each layer then keeps a multiple of so many neurons")
        if not 0 <= lam < math.inf:
            raise BadInput(f"lambda {lam}: give 0 or more; it is the weight of the resource term")
        name = None if method == "random" else name
        return cls(method, name, resource if known.resource else "none", lam, min_neurons, seed, round_to)

    @property
    def recorded(self) -> dict[str, Any]:
        """As mask.json has it; a resource has no meaning but for RANP, a criterion none for random scores."""
        how: dict[str, Any] = {"name": self.method, "criterion": self.criterion, "resource": self.resource,
                               "lambda": float(self.lam), "seed": self.seed, "min_neurons": self.min_neurons}  # fmt: skip
        if not METHODS[self.method].resource:
            del how["lambda"]
        if self.criterion is None:
            del how["criterion"]
        if self.round_to > 1:
            how["round_to"] = self.round_to
        return how

    def tau(self, graph: Graph) -> np.ndarray | None:
        return None if self.resource == "none" else tau(graph.layers, self.resource)

    def steps(self, graph: Graph, scores: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
        """The scores as they are, as this method weighs them, and what lies between: what Fig. 3 shows."""
        if self.criterion is None or self.method == "snip":
            return {}
        found = {"vanilla": list(scores)}
        if self.method == "ranp":
            found["weighted"] = weigh(scores, "weighted", None, self.lam, self.seed)
        name = f"ranp, by {self.resource}" if self.resource != "none" else self.method
        if self.method not in ("vanilla", "layerwise", "flat"):
            found[name] = weigh(scores, self.method, self.tau(graph), self.lam, self.seed)
        return found

    def values(self, graph: Graph, scores: Sequence[np.ndarray]) -> np.ndarray:
        """What each unit is worth: the higher, the sooner it stays."""
        if self.method == "snip":
            return strength_of(graph, [links_of(graph, k, g) for k, g in enumerate(scores)])
        return unit_values(graph, weigh(scores, self.method, self.tau(graph), self.lam, self.seed))

    def select(self, graph: Graph, scores: Sequence[np.ndarray], sparsity: float | str) -> Selection:
        """The units that stay."""
        if self.method == "snip":
            chosen = select_snip(graph, scores, sparsity, self.min_neurons)
        else:
            weighted = weigh(scores, self.method, self.tau(graph), self.lam, self.seed)
            chosen = select(graph, weighted, sparsity, method=self.method, floor=self.min_neurons)
        if self.round_to == 1:
            return chosen
        least = self.floors(graph, chosen.keep)
        return replace(chosen, keep=rounded(graph, self.values(graph, scores), chosen.keep, self.round_to, least))

    def floors(self, graph: Graph, keep: np.ndarray) -> np.ndarray:
        """The fewest neurons of each layer in a network of these units, of shape (layers,)."""
        floor = 1 if METHODS[self.method].by_layer and self.min_neurons == AUTO else self.min_neurons
        return floors(graph, floor, int(keep[graph.unit].sum()))


@dataclass
class Job:
    """The model at work, what the mask records of it, and the device that scores it."""

    model: nn.Module
    about: dict[str, Any]
    device: torch.device

    def weights_digest(self) -> str:
        """sha256 of all parameters' bytes: scores belong to weights."""
        digest = hashlib.sha256()
        for p in self.model.parameters():
            digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if p.numel() else b"")
        return digest.hexdigest()

    def draw(self, graph: Graph, init: str, seed: int) -> None:
        """Score other weights than the given ones: those of a copy that is initialised anew."""
        if init != "keep":
            self.model = replicate(self.model, lambda _, t: t.clone())
            with seeded(seed):
                initialise(self.model, init, [layer.slot for layer in graph.layers])

    def analyse(self, report: Report, example: Example, strict: bool = False) -> Graph:
        with report.timing("start"):  # torch's own start-up of meta tensors, once a process
            import_module("torch.fx.experimental.symbolic_shapes")
        with report.timing("trace"):
            graph = analyse(self.model, example)
        self.about["input"] = example.signature
        for op, module, where in (*graph.eval_run.tracer.unruled, *graph.train_run.tracer.unruled) if strict else ():
            raise BadInput(
                f"--strict: {op} in {module or 'the model'} ({where or 'no source line'}) has no rule; "
                "register one with ranp_cli.rules.rule, or drop --strict to keep what it touches"
            )
        return graph


def open_job(report: Report, model: nn.Module | str, seed: int, args: dict[str, Any] | None, weights: str | None, key: str | None,
          device: str) -> Job:  # fmt: skip
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed {seed}: give a whole number from 0 to 2^63 - 1")
    with report.timing("load"):
        place = choose_device(device)
        given, about = model, {"spec": None, "args": {}}  # type: Any, dict[str, Any]
        if isinstance(model, (str, Path)):
            with seeded(seed):
                loaded = load_model(str(model), args)
            about = {"spec": loaded.spec, "args": loaded.args}
            model = loaded.module
            if loaded.kind == "torchscript":
                report.parts["notes"] = [TORCHSCRIPT_NOTE]
        if not isinstance(model, nn.Module):
            raise BadInput(
                f"the model is a {type(model).__name__}; give an nn.Module, or a spec such as model.py:UNet3D"
            )
        own, model = model is given, uncompiled(model)
        if weights is not None:
            if own:
                model = replicate(model, lambda _, t: t.clone())  # the caller's own is not changed
            load_weights(model, weights, key)
        about["fingerprint"] = fingerprint(model)
        report.parts |= {"device": str(place), "model": about}
    return Job(model, about, place)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; BadInput for one that is not there."""
    if torch.cuda.is_available() and name in ("auto", "cuda") and "LOCAL_RANK" in os.environ:  # one of torchrun's
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("ranp runs on cpu and cuda")
        if device.type != "cpu":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(
            f"device '{name}' is not to be had here ({str(error).splitlines()[0]}); give auto, cpu, cuda or cuda:i"
        ) from error
    return device


def check_choices(**choices: tuple[str, Iterable[str]]) -> None:
    for what, (given, known) in choices.items():
        if given not in known:
            raise BadInput(f"unknown {what} '{given}'{nearest(str(given), known)}")


def first_batch(batches: Any, limit: int | None, seed: int) -> tuple[Batches, Example]:
    """The mini-batches, and the input of the first as an example; a shuffling source draws from `seed`."""
    with seeded(seed):
        source = load_batches(batches, limit)
        return source, Example(source.first.args, source.first.kwargs)


def way_of(precision: str = "model", low_memory: bool = False, memory_limit: Any = None) -> Way:
    """How gradients are to be computed; BadInput for what does not exist."""
    check_choices(precision=(precision, PRECISIONS))
    try:
        size = None if memory_limit is None else int(limit("train-mem", memory_limit, relative=False).value)
    except (BadInput, OverflowError):
        raise BadInput(f"memory-limit {memory_limit}: give a size such as 6GiB or 800MiB") from None
    return Way(precision=precision, low_memory=low_memory or size is not None, memory_limit=size)


def agreement_of(
    graph: Graph, ranking: Ranking, sparsity: Any
) -> Callable[[list[np.ndarray], list[np.ndarray]], float]:
    """Of two scores: the share of the neurons kept by the first that the second keeps too, at that sparsity (else at 0.5)."""
    level = sparsity if isinstance(sparsity, (int, float)) else 0.5
    if ranking.resource == "latency":  # of which nothing is known yet
        ranking = replace(ranking, resource="none")

    def agreed(first: list[np.ndarray], second: list[np.ndarray]) -> float:
        one, two = (ranking.select(graph, scores, level).keep[graph.unit] for scores in (first, second))
        return float((one & two).sum() / one.sum())

    return agreed


def importances(report: Report, job: Job, graph: Graph, source: Batches, criteria: Iterable[str], loss: Any,
                ignore_index: int | None, seed: int, progress: Progress, way: Way | None = None) -> dict[str, Importance]:  # fmt: skip
    """The scores by each criterion, from one pass over the mini-batches; norms of weights need none."""
    way = way or Way()
    wanted = [criterion(name) for name in dict.fromkeys(criteria)]
    twins = {c.name: c.name.replace("mnmg", "mpmg") for c in wanted if c.signed and c.is_linear}
    if way.resumed:  # of the other criterion nothing is known
        twins = {}
    wanted += [criterion(name) for name in twins.values() if name not in criteria]
    function = load_loss(loss, ignore_index)
    found = {c.name: norm_scores(job.model, graph, c) for c in wanted if not c.needs_gradients}
    told: dict[str, Any] = {}
    if by_gradient := [c for c in wanted if c.needs_gradients]:
        length = (
            None
            if source.length is None
            else way.spread.share(source.length - (way.resumed.batches if way.resumed else 0))
        )
        with report.timing("score"), progress("scoring", length) as advance:
            found |= score(job.model, graph, source, function, by_gradient, job.device, seed, advance, way)
        if said := way.facts.pop("notes", []):
            report.parts.setdefault("notes", []).extend(said)
        told = {**({} if way.precision == "model" else {"precision": way.precision}), **way.facts}
    asked = [found[c.name] for c in wanted if c.name not in twins.values()]
    tell_scoring(report, {**told, "not_ranked": {k: why for each in asked for k, why in each.not_ranked.items()}})
    for name, twin in twins.items():
        pairs = zip(graph.layers, found[name].scores, found[twin].scores, strict=True)
        noise = [layer.name for layer, signed, plain in pairs if plain.sum() > 0 and signed.sum() < NOISE * plain.sum()]
        if noise:
            report.parts.setdefault("notes", []).append(
                f"{name} is rounding noise in {len(noise)} of {len(graph.layers)} layers ({noise[0]}, ...): behind a norm the "
                f"loss does not depend on the scale of the weights, so the signed sum is zero; use {twin} or neuron"
            )
    return found


def norm_scores(model: nn.Module, graph: Graph, c: Criterion) -> Importance:
    """The norms of the layers' weights as scores."""
    values = norms(model, graph, c)
    return Importance(values, 0, not_ranked=unranked(graph, values, {}, ZERO_WEIGHTS))


def tell_scoring(report: Report, facts: dict[str, Any]) -> None:
    """Write to the report how was scored, and notes of what a reader has to know of it; what is empty is left out."""
    facts = {key: value for key, value in facts.items() if value or key not in SAID}
    if facts:
        report.parts["scoring"] = facts
    if said := notes(facts):
        report.parts.setdefault("notes", []).extend(said)


def settle(report: Report, job: Job, graph: Graph, choose: Callable[[], Selection]) -> Settled:
    """Select and refine until the slim network runs: what its code insists on is fixed, and the rest goes on."""
    while True:
        with report.timing("select"):
            chosen = choose()
            stays = graph.flags(chosen.keep)
        with report.timing("refine"):
            slim, changed = slim_model(job.model, graph, stays)
            ran = check_runs(slim, graph, stays)
        if isinstance(ran, SlimRun):
            return chosen, slim, changed, ran
        _fix(graph, ran, stays)


def _fix(graph: Graph, found: HardCoded, stays: np.ndarray) -> None:
    graph.ties.fix(found.ids, found.reason.what, found.reason.where)
    before = graph.fixed_units.sum()
    graph.settle()
    if graph.fixed_units.sum() == before:
        raise VerificationFailed(f"the slim network does not run ({found.reason}) and no unit could be kept to mend it; "
                                 "nothing was written. This is a defect of ranp: please report the model")  # fmt: skip


def read_latencies(given: Any, ranking: Ranking) -> dict[str, Any] | None:
    """What a mask records of the layers' seconds, or a plain `{layer: seconds}`; BadInput when it does not."""
    if given is None:
        return None
    if ranking.resource != "latency":
        raise BadInput("--latencies goes with --resource latency of --method ranp; leave it out")
    plain = isinstance(given, dict) and "format" not in given
    known = {"seconds": given} if plain else Mask.of(given).method.get("latency")
    if not isinstance(known, dict) or not isinstance(known.get("seconds"), dict):
        raise BadInput("--latencies: the mask records no times; give one made with --resource latency")
    return known


def layer_seconds(
    report: Report, job: Job, graph: Graph, given: dict[str, Any] | None, progress: Progress
) -> dict[str, Any]:
    """See to it that the layers have their seconds, measured or given; what the mask records of it."""
    if given is not None:
        use_latencies(graph.layers, given["seconds"])
        return given
    with report.timing("time"):
        time_layers(graph.layers, job.device, progress)
    return {**place(job.device), "seconds": {layer.name: layer.seconds for layer in graph.layers}}
