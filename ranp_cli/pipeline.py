"""The story: score, select, refine, verify, report. Every public function of the package but `load` stands here."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .batches import Batches, load_batches
from .checkpoint import SCORES, SLIM, VERSION, read_document, read_tensors, slim_tensors, to_bytes, write_atomic
from .criteria import criterion as criterion_of
from .errors import BadInput, Infeasible, VerificationFailed, nearest
from .example import Example, as_example
from .importance import Importance
from .importance import score as gather
from .losses import load_loss
from .mask import Mask
from .refining import INITS, HardCoded, SlimRun, check_runs, initialise, slim_model
from .report import Report, layer_row, not_pruned, uncounted
from .resources import NAMES as RESOURCE_NAMES
from .resources import reweighting, tau
from .select import METHODS, Selection, check, select, weigh
from .shadow import replicate, seeded
from .source import TORCHSCRIPT_NOTE, load_model, load_weights
from .units import Graph, analyse, cost_of, fingerprint, guess_example
from .verify import verify

LAMBDA = 11.0  # the paper's for ShapeNet; 15 for BraTS, 80 for UCF101
MUCH_LESS = 0.5  # a pruning that reaches less than this share of the sparsity asked for is an error

Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], Any]]]


def _silent(description: str, total: int | None) -> AbstractContextManager[Callable[[], Any]]:
    return nullcontext(lambda: None)


# -- what comes out


@dataclass
class Scores:
    """Importance of every neuron: `layers` maps a layer's name to its N_l scores, as the criterion gives them."""

    layers: dict[str, np.ndarray]
    about: dict[str, Any]  # criterion, batches, model, loss
    report: Report = field(default_factory=lambda: Report("score"))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `prune(scores=path)` takes; no new gradients are needed then."""
        tensors = {name: torch.from_numpy(values) for name, values in self.layers.items()}
        _write(path, to_bytes(tensors, {"format": SCORES, "version": VERSION, **self.about}), self.report)

    @classmethod
    def of(cls, scores: Scores | str | Path) -> Scores:
        """Scores from Scores or from a file; BadInput when it is no such file."""
        if isinstance(scores, Scores):
            return scores
        about = read_document(scores, SCORES)
        return cls({name: t.double().numpy() for name, t in read_tensors(scores).items()}, about)

    def in_order(self, graph: Graph) -> list[np.ndarray]:
        """Scores by layer of `graph`; BadInput when they are of another network."""
        for layer in graph.layers:
            values = self.layers.get(layer.name)
            if values is None or values.shape != (len(layer.neurons),):
                have = "no such layer" if values is None else f"{len(values)} neurons"
                raise BadInput(f"the scores are of another network: layer {layer.name} has {len(layer.neurons)} neurons, the scores have "
                               f"{have}; score this model first")  # fmt: skip
        return [self.layers[layer.name] for layer in graph.layers]


@dataclass
class Pruned:
    """`model`: the slim `nn.Module`; `mask`: what was kept; `report`: the numbers."""

    model: nn.Module
    mask: Mask
    report: Report
    about: dict[str, Any]

    def _save_script(self, path: str | Path) -> None:
        if not isinstance(self.model, torch.jit.ScriptModule):
            raise BadInput(f"{path}: a .pt file is written for a TorchScript model only; give a .safetensors name")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            _write(path, self.model.save_to_buffer(), self.report)

    def save(self, path: str | Path) -> None:
        """Write slim.safetensors: tensors, and in its metadata all that `load` and `profile` need.

        A path that ends in `.onnx` takes a checked ONNX file, one in `.pt` the slim TorchScript, when the model was one.
        """
        if Path(path).suffix == ".pt":
            self._save_script(path)
            return
        if Path(path).suffix == ".onnx":
            from .export import to_onnx

            example = Example.from_signature(self.about["model"]["input"])
            self.report.parts.setdefault("outputs", {})[str(path)] = to_onnx(self.model, example, path)
            return
        tensors, aliases, unsaved = slim_tensors(self.model)
        report = self.report.to_dict()
        kept = {
            k: report[k]
            for k in ("before", "after", "reduction", "layers", "verified", "uncounted_ops", "not_pruned")
            if k in report
        }
        document = {"format": SLIM, "version": VERSION, **self.about, "mask": self.mask.to_dict()}
        document |= {"aliases": aliases, "buffers_outside_state": unsaved, "profile": kept}
        _write(path, to_bytes(tensors, document), self.report)


def _write(path: str | Path, data: bytes, report: Report) -> None:
    write_atomic(path, data)
    outputs = report.parts.setdefault("outputs", {})
    outputs[str(path)] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# -- the public functions


def score(model: nn.Module | str, batches: Any, *, loss: Any = None, ignore_index: int | None = None, criterion: str = "mpmg-sum",
          batch_limit: int | None = None, seed: int = 0, device: str = "auto", model_args: dict[str, Any] | None = None,
          weights: str | None = None, weights_key: str | None = None, progress: Progress = _silent) -> Scores:  # fmt: skip
    """Score every neuron of `model` by the sensitivity of the loss on calibration batches.

    `model` is not changed: not its weights, gradients, buffers or modes, nor the global RNG.

    Args:
        model: an `nn.Module`, or a spec such as `model.py:UNet3D` or `net.pt`.
        batches: mini-batches of `(input, target)`, a single one, or a path or `file.py:Name`.
        loss: a name (`cross_entropy`, `dice`, ...), a spec, or `loss(output, target) -> scalar`.
        criterion: `mpmg-sum|mean|max`, `mnmg-sum|mean|max` or `neuron`.
        batch_limit: use at most that many mini-batches.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.

    Returns: Scores, `.layers[name]` of shape (N_l,), float64.

    Raises: BadInput.

    Source: eq. 4-8 of RANP (Xu et al., 3DV 2020).
    """
    report = Report("score")
    job = _open(report, model, seed, model_args, weights, weights_key, device)
    source, example = _first(batches, batch_limit, seed)
    graph = job.analyse(report, example)
    found = _gather(report, job, graph, source, loss, ignore_index, criterion, seed, progress)
    return _scores(report, job, graph, found, criterion, loss)


def prune(model: nn.Module | str, batches: Any = None, *, scores: Scores | str | Path | None = None, sparsity: float | str | None = None,
          resource: str = "flops", lambda_: float = LAMBDA, method: str = "ranp", criterion: str = "mpmg-sum", min_neurons: int = 1,
          keep: Sequence[str] = (), only: Sequence[str] = (), init: str = "keep", loss: Any = None, ignore_index: int | None = None,
          batch_limit: int | None = None, seed: int = 0, device: str = "auto", strict: bool = False, allow_less: bool = False,
          model_args: dict[str, Any] | None = None, weights: str | None = None, weights_key: str | None = None,
          progress: Progress = _silent) -> Pruned:  # fmt: skip
    """Remove the least important neurons of `model`.

    `model` is not changed: not its weights, gradients, buffers or modes, nor the global RNG.

    Args:
        model: an `nn.Module`, or a spec such as `model.py:UNet3D`.
        batches: mini-batches of `(input, target)`, input of shape (N, C, D, H, W) or what the model takes.
        scores: what `score` returned or saved, instead of `batches`.
        sparsity: fraction of neurons to remove, in [0, 1), or "max": the largest at which no layer needs a floor.
        resource: `flops`, `mem`, `params` or `none`: what a layer's neurons are reweighted by.
        lambda_: weight of the resource term; 11 ShapeNet, 15 BraTS, 80 UCF101.
        method: `ranp`, `weighted`, `vanilla`, `random` or `layerwise`.
        min_neurons: each layer keeps at least its best so many.
        keep, only: globs of layer names that are never pruned / that alone are pruned.
        init: weights of the slim network: `keep`, or drawn anew: `factory`, `glorot`, `orthogonal`.
        strict: an op without a rule is an error instead of fixing its channels.
        allow_less: do not raise when much less than `sparsity` could be removed.

    Returns: Pruned, with `.model` (the slim module, of the same class), `.mask` and `.report`.

    Raises: BadInput; Infeasible when much less than asked can be removed; VerificationFailed when slim is not masked.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> batch = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))
        >>> ranp.prune(net, batch, sparsity=0.5).model[0].out_channels
        3

    Source: eq. 6-11 of RANP (Xu et al., 3DV 2020).
    """
    if (batches is None) == (scores is None):
        raise BadInput("give either a calibration batch (--batch) or scores (--scores)")
    if sparsity is None:
        raise BadInput("no sparsity was given; give --sparsity X in [0, 1), or --sparsity max")
    if scores is not None and (loss is not None or ignore_index is not None or batch_limit is not None):
        raise BadInput(
            "--loss, --ignore-index and --batches belong to the gradients: they have no effect with --scores; leave them out"
        )
    _check_choices(method=(method, METHODS), resource=(resource, RESOURCE_NAMES), init=(init, INITS))
    if sparsity != "max":
        sparsity = check(sparsity)
    if sparsity == "max" and method == "layerwise":
        raise BadInput(
            "--sparsity max has no meaning for --method layerwise, which never empties a layer; give a number"
        )
    if min_neurons < 1:
        raise BadInput(f"min-neurons {min_neurons}: give 1 or more; a layer without neurons is no network")
    if not 0 <= lambda_ < math.inf:
        raise BadInput(f"lambda {lambda_}: give 0 or more; it is the weight of the resource term")
    keep, only = ([g] if isinstance(g, str) else g for g in (keep, only))
    report = Report("prune")
    job = _open(report, model, seed, model_args, weights, weights_key, device)
    given = None if scores is None else Scores.of(scores)
    if given is not None:
        if given.about["model"]["fingerprint"] != job.about["fingerprint"]:
            raise BadInput("the scores are of another network: its parameters differ; score this model first")
        if given.about["model"].get("weights") not in (None, job.weights_digest()):
            raise BadInput(
                "the scores are of other weights than the model now has; give the same --seed and --weights as to ranp score"
            )
        if criterion not in (None, given.about["criterion"]):
            raise BadInput(
                f"criterion '{criterion}' was asked, the scores are of '{given.about['criterion']}'; leave it out or score anew"
            )
        criterion = str(given.about["criterion"])
        graph = job.analyse(report, Example.from_signature(given.about["model"]["input"]), strict)
        values, count = given.in_order(graph), given.about["batches"]
    else:
        source, example = _first(batches, batch_limit, seed)
        graph = job.analyse(report, example, strict)
        criterion = criterion or "mpmg-sum"
        if method == "random":  # needs no gradients
            criterion_of(criterion)
            values, count = [np.zeros(n) for n in graph.sizes], 0
        else:
            found = _gather(report, job, graph, source, loss, ignore_index, criterion, seed, progress)
            values, count = found.scores, found.batches
    graph.fix_layers(keep, only)
    layer_tau = None if resource == "none" else tau(graph.layers, resource)
    how = {"name": method, "criterion": criterion, "resource": resource, "lambda": float(lambda_), "seed": seed}
    if method != "ranp":  # the other methods know no resource
        layer_tau, how["resource"] = None, "none"
        del how["lambda"]
    if method == "random":
        del how["criterion"]
    how |= {"min_neurons": min_neurons, "init": init, "batches": count}
    weighted = weigh(values, method, layer_tau, lambda_, seed)

    def choose() -> Selection:
        return select(graph, weighted, sparsity, layerwise=method == "layerwise", min_neurons=min_neurons)

    chosen, slim, changed, ran = _settle(report, job, graph, choose)
    mask = Mask.from_units(
        graph, chosen.keep, model=job.about, method=how, requested=chosen.requested, floored=chosen.floored
    )
    if sparsity != "max" and mask.achieved < MUCH_LESS * float(sparsity) and not allow_less:
        why = not_pruned(graph, chosen.keep, None if method == "random" else values)
        commonest = Counter(row["reason"] for row in why).most_common(1)[0][0] if why else ""
        first = next((row["layer"] for row in why if row["reason"] == commonest), "")
        raise Infeasible(
            f"only {mask.achieved:.1%} of the neurons could be removed where {float(sparsity):.1%} was asked; {len(why)} of "
            f"{len(graph.layers)} layers cannot be pruned ({first}: {commonest}); give --allow-less to take it"
            if why else f"only {mask.achieved:.1%} of the neurons could be removed where {float(sparsity):.1%} was asked: every layer is "
            "at its floor; give --allow-less to take it"
        )  # fmt: skip
    pruned = _finish(report, job, graph, mask, chosen.keep, slim, changed, ran, init, seed)
    if method != "random":
        report.parts["not_pruned"] = not_pruned(graph, chosen.keep, values)
    factor = np.ones(len(graph.layers)) if layer_tau is None else reweighting(layer_tau, lambda_)
    for k, row in enumerate(report.parts["layers"]):
        row["importance_mean"] = float(np.mean(values[k]))
        if layer_tau is not None:
            row["tau"], row["reweighting"] = float(layer_tau[k]), float(factor[k])
    return pruned


def refine(model: nn.Module | str, mask: Mask | dict[str, Any] | str | Path, *, inputs: Any = None, init: str = "keep", seed: int = 0,
           device: str = "auto", model_args: dict[str, Any] | None = None, weights: str | None = None,
           weights_key: str | None = None, full: bool = False) -> Any:  # fmt: skip
    """Build the slim network from a model and a mask.

    `model` is not changed.

    Args:
        mask: a Mask, its dict, or a path to mask.json.
        inputs: shape(s) of the input, a tensor or a tuple of them; by default those that the mask records.
        seed: of the model's weights; by default the one that the mask records.
        init: `keep` the surviving weights, or draw them anew: `factory`, `glorot`, `orthogonal`.
        full: return a Pruned (`.model`, `.mask`, `.report`) instead of the slim module alone.

    Returns: the slim module, of the same class, verified against the masked one.

    Raises: BadInput when the mask is of another network; VerificationFailed.
    """
    _check_choices(init=(init, INITS))
    mask = Mask.of(mask)
    seed = int(mask.method.get("seed") or 0) if seed is None else seed
    report = Report("refine")
    job = _open(report, model, seed, model_args, weights, weights_key, device)
    wanted = mask.model.get("fingerprint")
    if wanted and wanted != job.about["fingerprint"]:
        raise BadInput(
            f"the mask is of another network: {mask.difference(job.model)}; give the mask that was made for this model"
        )
    if inputs is not None:
        example = as_example(inputs)
    elif mask.model.get("input"):
        example = Example.from_signature(mask.model["input"])
    else:
        example = guess_example(job.model)
    graph = job.analyse(report, example)
    keep = mask.units(graph)
    chosen, slim, changed, ran = _settle(
        report, job, graph, lambda: Selection(keep | graph.fixed_units, mask.floored, "")
    )
    made = Mask.from_units(
        graph, chosen.keep, model=job.about, method=mask.method, requested=mask.requested, floored=mask.floored
    )
    made.method = {**mask.method, "init": init} if init != "keep" else mask.method
    pruned = _finish(report, job, graph, made, chosen.keep, slim, changed, ran, init, seed)
    return pruned if full else pruned.model


# -- the steps


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


def _open(report: Report, model: nn.Module | str, seed: int, args: dict[str, Any] | None, weights: str | None, key: str | None,
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
        if weights is not None:
            if model is given:
                model = replicate(model, lambda _, t: t.clone())  # the caller's own is not changed
            load_weights(model, weights, key)
        about["fingerprint"] = fingerprint(model)
        report.parts |= {"device": str(place), "model": about}
    return Job(model, about, place)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; BadInput for one that is not there."""
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


def _check_choices(**choices: tuple[str, Iterable[str]]) -> None:
    for what, (given, known) in choices.items():
        if given not in known:
            raise BadInput(f"unknown {what} '{given}'{nearest(str(given), known)}")


def _first(batches: Any, limit: int | None, seed: int) -> tuple[Batches, Example]:
    """The mini-batches, and the input of the first as an example; a shuffling source draws from `seed`."""
    with seeded(seed):
        source = load_batches(batches, limit)
        return source, Example(source.first.args, source.first.kwargs)


def _gather(report: Report, job: Job, graph: Graph, source: Batches, loss: Any, ignore_index: int | None, criterion: str,
            seed: int,
            progress: Progress) -> Importance:  # fmt: skip
    kind, function = criterion_of(criterion), load_loss(loss, ignore_index)
    with report.timing("score"), progress("scoring", source.length) as advance:
        return gather(job.model, graph, source, function, kind, job.device, seed, advance)


def _scores(report: Report, job: Job, graph: Graph, found: Importance, criterion: str, loss: Any) -> Scores:
    layers = {layer.name: values for layer, values in zip(graph.layers, found.scores, strict=True)}
    report.parts |= {
        "method": {"criterion": criterion, "batches": found.batches},
        "neurons": {"total": graph.n},
        "before": cost_of(job.model, graph.eval_run),
        "layers": [
            {**layer_row(layer), "importance_mean": float(v.mean())}
            for layer, v in zip(graph.layers, found.scores, strict=True)
        ],
        "uncounted_ops": uncounted(graph.eval_run.tracer.uncounted),
    }
    about = {
        "criterion": criterion,
        "batches": found.batches,
        "model": {**job.about, "weights": job.weights_digest()},
        "loss": loss if isinstance(loss, str) else None,
    }
    return Scores(layers, about, report)


def _settle(
    report: Report, job: Job, graph: Graph, choose: Callable[[], Selection]
) -> tuple[Selection, nn.Module, dict[str, Any], SlimRun]:
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


def _finish(report: Report, job: Job, graph: Graph, mask: Mask, keep: np.ndarray, slim: nn.Module, changed: dict[str, Any],
            ran: SlimRun, init: str, seed: int) -> Pruned:  # fmt: skip
    stays = graph.flags(keep)
    with report.timing("verify"):
        verified = verify(job.model, slim, graph, stays)
    if init != "keep":
        with report.timing("refine"), seeded(seed):
            initialise(slim, init, [layer.slot for layer in graph.layers])
    about = dict(job.about)
    about["parameters"] = {name: list(p.shape) for name, p in job.model.named_parameters()}
    rows = []
    fixed = {layer.name: {str(graph.reasons[u]) for u in units if graph.reasons[u]}
             for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True)}  # fmt: skip
    for layer in graph.layers:
        new = ran.layers.get((layer.slot, layer.axis))  # None: the slim network does without its op
        later = {} if new is None else layer_row(new)
        row = {**layer_row(layer), "kept": len(mask.layers[layer.name]["kept"])}
        row |= {f"{key}_after": later.get(key, 0) for key in ("params", "macs", "output_elements")}
        if layer.name in mask.floored:
            row["floored"] = True
        if fixed[layer.name]:
            row["fixed"] = "; ".join(sorted(fixed[layer.name]))
        rows.append(row)
    run, after = graph.eval_run, ran.run
    report.parts |= {
        "method": mask.method,
        "sparsity": {"requested": mask.requested, "achieved": round(mask.achieved, 6)},
        "neurons": {"total": mask.total, "kept": mask.kept},
        "before": cost_of(job.model, run),
        "after": cost_of(slim, after),
        "verified": verified,
        "layers": rows,
        "floored": mask.floored,
        "fixed": mask.fixed,
        "not_pruned": not_pruned(graph, keep),
        "unruled_ops": [{"op": op, "module": module, "source": where} for op, module, where in
                        dict.fromkeys(run.tracer.unruled + graph.train_run.tracer.unruled)],
        "uncounted_ops": uncounted(run.tracer.uncounted),
    }  # fmt: skip
    return Pruned(slim, mask, report, {"model": about, "attributes": changed})
