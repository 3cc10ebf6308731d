"""`profile`: of a slim file its header alone is read, which has shapes and metadata; anything else is run on meta tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..io.slim_and_mask import pair_note
from ..io.slim_document import RECORDED, check_counts
from ..io.slim_file import SLIM, document_of, read_document
from ..io.slim_loading import load, without_model
from ..io.tensor_file import TensorFile
from ..reporting.report import LAYER_COSTS, Report, layer_row, merge_rows, uncounted
from .options import PROFILE, ModelOptions, StepOptions
from .projects import project_of, step_of

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack

    from ..core.example import Example
    from ..costs.timing import Ground
    from .keywords import ProfileKeywords

OF_MACHINE = ("peak_macs_per_s", "copy_bytes_per_s")  # of what is measured of a layer: the same for both networks


@PROFILE
def profile(
    network: nn.Module | str,
    inputs: Any = None,
    *,
    other: nn.Module | str | None = None,
    tree: bool = False,
    model: nn.Module | str | None = None,
    trust: bool = False,
    **options: Unpack[ProfileKeywords],
) -> Report:
    """Count what a network costs: one sample, eval mode, without running it.

    Args:
        network: an `nn.Module`, a spec, nnU-Net's plans (whose patch size, batch size and optimiser are taken), a slim file or
            an `.onnx` file. A slim file is counted from the shapes and numbers
            that it holds, without torch and without code.
        model: the dense network of a slim file, for what needs code: another input, and `tree`, `time`, `optimizer`,
            `batch_size` and `amp`; by default the other network, where that is one.
        trust: build the dense network from the spec that the slim file records, which runs what it names.
        inputs: shape(s) of the input such as `(1, 1, 64, 64, 64)`, a tensor, or a tuple of tensors; guessed when missing.
        other: a second model; the report then has both, side by side.
        optimizer, batch_size: of the training step whose memory is estimated (`sgd`, and the samples of the input).
        time: also run the networks on `device`, and say how long a forward pass takes, and
            why each layer takes its time: its multiply-adds a second beside this machine's best, and what makes it slow.
        tree: list every module (report part `modules`) with its own parameters, multiply-adds, output elements and bytes
            saved for the backward pass.
        amp: estimate the memory under 16-bit autocast: which ops run in 16 bits is what torch does on the device.
        device: the memory is that of a `cpu`, or of `cuda` where torch has one here; `auto`: CUDA where there is one.

    Returns: a Report: parameters, multiply-adds, FLOPs (2 * multiply-adds), bytes, and the paper's counting.

    Raises: BadInput.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> ranp.profile(net, (1, 1, 8, 8, 8)).to_dict()["before"]["macs"]  # 6^3 * 27 * 8 + 6^3 * 8 * 2
        50112
    """
    chosen = PROFILE.read(options)
    report = Report("profile")
    network = str(network) if isinstance(network, Path) else network
    other = str(other) if isinstance(other, Path) else other
    if inputs is None and other is not None:  # both on the input that a slim file records
        inputs = _recorded_input(network) or _recorded_input(other)
        if (
            inputs is not None
            and is_slim(network)
            and is_slim(other)
            and _recorded_input(network) == _recorded_input(other)
        ):
            inputs = None  # what the files say is of the same input
    if tree and other is not None:
        raise BadInput(f"{spelled('tree', True)} shows one model: leave the second one out")
    step = chosen[StepOptions]
    step.check_timed(step.time, spelled("time", True))
    dense = model if model is not None else next((each for each in (network, other) if is_dense(each)), None)
    counting = Counting(report, chosen[ModelOptions], step, tree, dense, trust)
    if (model is not None or trust) and not (is_slim(network) or is_slim(other)):
        raise BadInput(f"{spelled('model')} is the dense network of a slim file, and none is given; leave it out")
    first = counting.parts(network, inputs)
    if other is None:
        report.parts = first
        if step.time:
            counting.time_forward(["after" if "after" in first else "before"])
        return report
    second = counting.parts(other, inputs)
    report.parts = {
        "model": first["model"],
        "other": second["model"],
        "before": first["before"],
        "after": second.get("after", second["before"]),
        "memory": _both(first.get("memory", {}), second.get("memory", {})),
        "neurons": {
            "total": first["neurons"]["total"],
            "kept": second["neurons"].get("kept", second["neurons"]["total"]),
        },
        "layers": merge_rows(first["layers"], [_after(row) for row in second["layers"]]),
        "uncounted_ops": first.get("uncounted_ops", []) + second.get("uncounted_ops", []),
        "notes": first.get("notes", []) + second.get("notes", []),
    }
    if step.time:
        macs = [side.get("after", side["before"])["macs"] for side in (first, second)]  # of what was run
        counting.time_forward(["before", "after"])
        report.parts["speed"]["theoretical_speedup"] = macs[0] / max(1, macs[1])
    return report


@dataclass
class Counting:
    """Counts one network after the other, as the options of one call say."""

    report: Report
    model: ModelOptions
    step: StepOptions
    tree: bool
    dense: Any = None  # the network that slim files were made from: a module, or a spec that the user named
    trust: bool = False  # build the one that a slim file records
    running: list[tuple[nn.Module, Example]] = field(default_factory=list)  # what is to be timed, with its input

    def __post_init__(self) -> None:
        if self.step.optimizer is not None:
            from ..costs.memory import check_optimizer

            check_optimizer(self.step.optimizer)

    @property
    def is_asked_for_more(self) -> bool:
        """Whether a slim file's recorded numbers are not enough."""
        return self.tree or self.step.amp or self.step.optimizer is not None or self.step.batch_size is not None

    def parts(self, model: Any, inputs: Any) -> dict[str, Any]:
        """The parts of one network's report."""
        if is_slim(model):
            return self._slim_file(model, inputs)
        from ..core.contexts import seeded
        from ..core.copies import uncompiled

        if (project := project_of(model, self.model)) is not None:
            step = step_of(project, self.step)
            with self.report.timing("load"):
                network = project.network(self.model.seed or 0)
            return self._traced(network, {"spec": project.spec, "args": {}}, inputs or project.step().inputs, step)
        if not isinstance(model, str):
            from torch import nn

            if not isinstance(model, nn.Module):
                raise BadInput(
                    f"the model is a {type(model).__name__}; give an nn.Module, or a spec such as model.py:UNet3D"
                )
            return self._traced(uncompiled(model), {"spec": None, "args": {}}, inputs)
        if model.lower().endswith(".onnx"):
            return self._onnx(model, inputs)
        from ..io.model import TORCHSCRIPT_NOTE, load_model, load_weights

        args = None if self.model.model_args is None else dict(self.model.model_args)
        with self.report.timing("load"), seeded(self.model.seed or 0):
            loaded = load_model(model, args)
            if self.model.weights is not None:
                load_weights(loaded.module, self.model.weights, self.model.weights_key)
        notes = {"notes": [TORCHSCRIPT_NOTE]} if loaded.kind == "torchscript" else {}
        return notes | self._traced(loaded.module, {"spec": loaded.spec, "args": loaded.args}, inputs)

    def time_forward(self, sides: list[str]) -> None:
        """Write the time of a forward pass of each network, on the input of the first."""
        if not self.running:
            return
        from ..costs.faster_ways import recommended
        from ..costs.runtime_names import runtime_of
        from ..costs.timing import Benchmark, Ground
        from .session import choose_device

        models, examples = zip(*self.running, strict=True)
        with self.report.timing("time"):
            sample = examples[0].with_batch(self.step.batch_size or examples[0].samples)
            device = choose_device(self.model.device)
            ground = Ground(device, runtime_of(self.step.runtime), self.step.threads)
            stand = Benchmark(sample, ground, self.step.optimizer)
            speed = self.report.parts["speed"] = stand.speed(stand.forward(*models), *sides)
            if found := recommended(stand, models[-1]):
                speed["recommended"] = found
            self._explain(models, examples[0], ground)

    def _explain(self, models: Sequence[nn.Module], example: Example, ground: Ground) -> None:
        """Write to the rows of the layers why they take their time, in both networks; a note where one does not run by itself."""
        from ..core.progress import silent
        from ..costs.peaks import explained
        from ..graph.analyse import trace_costs

        parts = self.report.parts
        try:
            networks = [list(trace_costs(model, example).layers.values()) for model in models]
            first, *second = explained(networks, ground, silent)
        except BadInput as error:
            parts["notes"] = [
                *parts.get("notes", []),
                f"why layers take their time is not shown: {str(error).partition('; ')[0]}",
            ]
            return
        for row in parts["layers"]:
            row |= first.get(row["name"], {})
            for why in second:
                later = why.get(row["name"], {})
                row |= {key: later[key] for key in OF_MACHINE if key in later}
                row |= {f"{key}_after": value for key, value in later.items() if key not in OF_MACHINE}

    def _slim_file(self, path: str, inputs: Any) -> dict[str, Any]:
        file = TensorFile.read(path)
        document = document_of(file, SLIM)
        check_counts(document, file.tensors, path)
        about = {k: v for k, v in document["model"].items() if k != "parameters"} | {"file": path}
        known = _recorded_input(path)
        if inputs not in (None, known) or self.is_asked_for_more:
            about.pop("profiled_input", None)
            return self._traced(self._loaded(path, about), about, inputs or known)
        if self.step.time:
            from ..core.example import Example

            if known is None:
                raise BadInput(f"{path} records no input; give {spelled('inputs')}")
            with self.report.timing("load"):
                self.running.append((self._loaded(path, about), Example.from_signature(known)))
        mask = document["mask"]
        recorded = {k: mask[k] for k in ("method", "sparsity", "neurons", "floored", "fixed")}
        profile = {k: v for k, v in document["profile"].items() if k in RECORDED}
        if "memory" in profile:  # lines for a picture are not recorded
            profile["memory"] = {
                side: {k: v for k, v in parts.items() if not k.startswith("timeline")}
                for side, parts in profile["memory"].items()
            }
        return {"model": about, **recorded, **profile, "notes": pair_note(path, mask)}

    def _loaded(self, path: str, about: dict[str, Any]) -> nn.Module:
        """The slim network, of the dense one that the user gave: the file's own spec is built only with `trust`."""
        if self.dense is None and not self.trust:
            raise BadInput(without_model(path, about, "profile"), whole=True)
        project = project_of(self.dense, self.model)
        dense = self.dense if project is None else project.network(self.model.seed or 0)
        return load(path, dense, trust=self.trust, model_args=self.model.model_args)

    def _onnx(self, path: str, inputs: Any) -> dict[str, Any]:
        from ..io.exchange.onnx_profile import profile_onnx

        if self.step.time:
            raise BadInput(
                f"{path} is an .onnx file, and what is timed is a torch module; give the model or a slim "
                f".safetensors, or leave out {spelled('time')}"
            )
        if self.step.amp:
            raise BadInput(
                f"{path}: the training step of an .onnx file is not known; leave out {spelled('amp')}, or give the model itself"
            )
        if self.tree:
            raise BadInput(
                f"{path}: an .onnx file has no modules; leave out {spelled('tree')}, or give the model itself"
            )
        if self.model.model_args or self.model.weights is not None:
            raise BadInput(
                f"{path}: an .onnx file holds its weights; leave out {spelled('model_args')} and {spelled('weights')}"
            )
        with self.report.timing("trace"):
            return profile_onnx(path, inputs)

    def _traced(
        self, module: nn.Module, about: dict[str, Any], inputs: Any, step: StepOptions | None = None
    ) -> dict[str, Any]:
        """Run the network on meta tensors; `step`: another training step than that of the options."""
        from ..core.example import as_example
        from ..core.fingerprint import fingerprint
        from ..costs.by_module import module_rows
        from ..costs.memory import check_optimizer, memory_of, with_training
        from ..graph.analyse import trace_costs
        from ..graph.guess import guess_example
        from .session import choose_device

        step = step or self.step
        optimizer = step.optimizer or "sgd"
        check_optimizer(optimizer)
        guessed = {"input_guessed": True} if inputs is None else {}
        with self.report.timing("trace"):
            example = guess_example(module) if inputs is None else as_example(inputs)
            traced = trace_costs(module, example)
        if self.step.time:
            self.running.append((module, example))
        layers, costs = list(traced.layers.values()), traced.costs
        with self.report.timing("memory"):
            sample = example.with_batch(step.batch_size or example.samples)
            memory = memory_of(module, sample, optimizer, choose_device(self.model.device).type, step.amp)
        saved = {row["module"]: row["bytes"] for row in memory["by_module"]} if "by_module" in memory else None
        return {
            "model": {**about, "fingerprint": fingerprint(module), "input": example.signature, **guessed},
            "before": with_training(costs, memory),
            "memory": {"before": memory},
            "layers": [layer_row(layer) for layer in layers],
            "modules": module_rows(module, example, layers, costs["macs"], saved) if self.tree else [],
            "neurons": {"total": sum(len(layer.neurons) for layer in layers)},
            "uncounted_ops": uncounted(traced.run.tracer.uncounted),
        }


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The memory of two networks side by side; of a slim file the slim side."""
    later = second.get("after") or second.get("before")
    return {k: v for k, v in (("before", first.get("before")), ("after", later)) if v}


def is_dense(model: Any) -> bool:
    """Whether it is a module, or names one: code, or a TorchScript file."""
    return model is not None and not (isinstance(model, str) and model.lower().endswith((".safetensors", ".onnx")))


def is_slim(model: Any) -> bool:
    return isinstance(model, str) and model.endswith(".safetensors")


def _recorded_input(model: Any) -> Any:
    """The input that the numbers in a slim file are of."""
    about = read_document(model, SLIM)["model"] if is_slim(model) else {}
    return about.get("profiled_input", about.get("input"))


def _after(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a slim network, from one that has it beside the dense one."""
    if "kept" not in row:
        return row
    return {**row, "neurons": row["kept"], **{k: row[f"{k}_after"] for k in LAYER_COSTS if f"{k}_after" in row}}
