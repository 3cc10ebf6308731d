"""A session: the model that a public function works on, loaded, traced and named for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.contexts import seeded
from ..core.copies import replicate, uncompiled
from ..core.errors import BadInput, nearest
from ..core.example import Example
from ..core.fingerprint import fingerprint
from ..core.job import job
from ..core.spelling import spelled
from ..core.tensors import in_precision_of
from ..core.usable import usable
from ..graph.analyse import analyse
from ..graph.graph import Graph
from ..integrations.common import Project
from ..io.batches import Batches, load_batches
from ..io.model import TORCHSCRIPT_NOTE, load_model, load_weights
from ..pruning.initial_weights import initialise
from ..reporting.report import Report
from .options import GradientOptions, ModelOptions
from .projects import project_of


@dataclass
class Session:
    """A network at work: what is recorded of it, where it runs, its seed, and the report that the steps write to."""

    report: Report
    model: nn.Module
    model_info: dict[str, Any]  # spec, args, fingerprint and input, as mask.json and the report have them
    device: torch.device
    seed: int
    project: Project | None = None  # a framework's own file that MODEL is

    @classmethod
    def open(
        cls,
        report: Report,
        model: nn.Module | str,
        options: ModelOptions,
        seed: int | None = None,
        project: Project | None = None,
    ) -> Session:
        """Load the model and its weights; the caller's own module is copied before it is changed.

        Args:
            seed: instead of that of the options.
            project: what MODEL is, where it was opened before.
        """
        project = project or project_of(model, options)
        seed = (options.seed or 0) if seed is None else seed
        with report.timing("load"):
            device = choose_device(options.device)
            given, model_info = model, {"spec": None, "args": {}}  # type: Any, dict[str, Any]
            if project is not None:
                model_info = {"spec": project.spec, "args": {}}
                model = project.network(seed)
                report.parts["notes"] = project.notes
            elif isinstance(model, (str, Path)):
                with seeded(seed):
                    loaded = load_model(str(model), None if options.model_args is None else dict(options.model_args))
                model_info = {"spec": loaded.spec, "args": loaded.args}
                model = loaded.module
                if loaded.kind == "torchscript":
                    report.parts["notes"] = [TORCHSCRIPT_NOTE]
            if not isinstance(model, nn.Module):
                raise BadInput(
                    f"the model is a {type(model).__name__}; give an nn.Module, or a spec such as model.py:UNet3D"
                )
            own, model = model is given, usable(uncompiled(model))
            report.read(model=model_info["spec"], weights=options.weights)
            if options.weights is not None:
                if own:
                    model = replicate(model, lambda _, t: t.clone())
                load_weights(model, options.weights, options.weights_key)
            model_info["fingerprint"] = fingerprint(model)
            report.parts |= {"device": str(device), "model": model_info}
        return cls(report, model, model_info, device, seed, project)

    def weights_digest(self) -> str:
        """sha256 of all parameters' bytes: scores belong to weights."""
        digest = hashlib.sha256()
        for p in self.model.parameters():
            digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if p.numel() else b"")
        return digest.hexdigest()

    def draw(self, graph: Graph, init: str) -> None:
        """Score other weights than the given ones: those of a copy that is initialised anew."""
        if init != "keep":
            self.model = replicate(self.model, lambda _, t: t.clone())
            with seeded(self.seed):
                initialise(self.model, init, [layer.slot for layer in graph.layers])

    def analyse(self, example: Example, strict: bool = False) -> Graph:
        """Trace the network on an input, in its own precision; with `strict` an op without a rule is BadInput."""
        example = Example(*in_precision_of(self.model, (example.args, example.kwargs)))
        with self.report.timing("start"):  # torch's own start-up of meta tensors, once a process
            import_module("torch.fx.experimental.symbolic_shapes")
        with self.report.timing("trace"):
            graph = analyse(self.model, example)
        self.model_info["input"] = example.signature
        for op, module, where in (*graph.eval_run.tracer.unruled, *graph.train_run.tracer.unruled) if strict else ():
            raise BadInput(
                f"{spelled('strict', True)}: {op} in {module or 'the model'} ({where or 'no source line'}) has no rule; "
                f"register one with ranp_cli.rules.rule, or drop {spelled('strict')} to keep what it touches"
            )
        return graph

    def note(self, *texts: str) -> None:
        """Add notes to the report."""
        if texts:
            self.report.parts.setdefault("notes", []).extend(texts)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; BadInput for one that is not there."""
    if torch.cuda.is_available() and name in ("auto", "cuda") and (local := job().local_rank) is not None:  # torchrun's
        name = f"cuda:{local % torch.cuda.device_count()}"
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
            f"device '{name}' is not available here ({str(error).splitlines()[0]}); give auto, cpu, cuda or cuda:i"
        ) from error
    return device


def check_choices(**choices: tuple[str, Iterable[str]]) -> None:
    for what, (given, known) in choices.items():
        if given not in known:
            raise BadInput(f"unknown {what} '{given}'{nearest(str(given), known)}")


def first_batch(batches: Any, options: GradientOptions, seed: int) -> tuple[Batches, Example]:
    """The mini-batches, and the input of the first as an example; a shuffling source draws from `seed`."""
    with seeded(seed):
        source = load_batches(batches, options.batch_limit, options.keys)
        return source, Example(source.first.args, source.first.kwargs)
