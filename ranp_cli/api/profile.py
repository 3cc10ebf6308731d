"""The story of `profile`: of a slim file nothing but its metadata is read, anything else is run on meta tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from ..io.slim_file import SLIM, load, read_document
from ..reporting.report import LAYER_COSTS, Report, layer_row, merge_rows, uncounted

if TYPE_CHECKING:
    from torch import nn

    from ..core.example import Example


Step = tuple[str | None, int | None, bool | None, str | None]  # optimizer, batch_size, tree, amp


def profile(
    model: nn.Module | str,
    inputs: Any = None,
    *,
    other: nn.Module | str | None = None,
    seed: int = 0,
    model_args: dict[str, Any] | None = None,
    weights: str | None = None,
    optimizer: str | None = None,
    batch_size: int | None = None,
    time: bool = False,
    tree: bool = False,
    amp: bool = False,
    device: str = "auto",
) -> Report:
    """Count what a network costs: one sample, eval mode, without running it.

    Args:
        model: an `nn.Module`, a spec, or a slim file; of the latter only the recorded numbers are read, without its
            code and without torch, unless `inputs` are given.
        inputs: shape(s) of the input such as `(1, 1, 64, 64, 64)`, a tensor, or a tuple of tensors; guessed when missing.
        other: a second model; the report then has both, side by side.
        optimizer, batch_size: of the training step whose memory is foretold (`sgd`, and the samples of the input).
        time: also run the networks on `device`, and say how long a forward pass takes; needs their code.
        tree: list every module (report part `modules`) with its own parameters, multiply-adds, output elements and bytes
            saved for the backward pass.
        amp: foretell the memory under 16-bit autocast: which ops run in 16 bits is what torch does on `device` (`cpu`, `cuda`
            where torch has one here, or `auto`).

    Returns: a Report: parameters, multiply-adds, FLOPs (2 * multiply-adds), bytes, and the paper's counting.

    Raises: BadInput.
    """
    report = Report("profile")
    model = str(model) if isinstance(model, Path) else model
    other = str(other) if isinstance(other, Path) else other
    if inputs is None and other is not None:  # both on the input that a slim file records
        inputs = _recorded_input(model) or _recorded_input(other)
        if (
            inputs is not None
            and is_slim(model)
            and is_slim(other)
            and _recorded_input(model) == _recorded_input(other)
        ):
            inputs = None  # what the files say is of the same input
    if tree and other is not None:
        raise BadInput("--tree shows one model: leave the second one out")
    step = (optimizer, batch_size, tree or None, autocast_device(amp, device))
    running: list[tuple[nn.Module, Example]] | None = [] if time else None
    first = _one(report, model, inputs, seed, model_args, weights, step, running)
    if other is None:
        report.parts = first
        if running:
            report.parts["speed"] = _speed(
                report, running, ["after" if "after" in first else "before"], device, batch_size
            )
        return report
    second = _one(report, other, inputs, seed, model_args, weights, step, running)
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
    }
    if running:
        macs = [side.get("after", side["before"])["macs"] for side in (first, second)]  # of what was run
        report.parts["speed"] = _speed(report, running, ["before", "after"], device, batch_size)
        report.parts["speed"]["theoretical_speedup"] = macs[0] / max(1, macs[1])
    return report


def _speed(report: Report, running: list[tuple[nn.Module, Example]], sides: list[str], device: str,
           batch_size: int | None) -> dict[str, Any]:  # fmt: skip
    """The time of a forward pass of each network, on the input of the first."""
    from ..costs.timing import Stand
    from .session import choose_device

    models, examples = zip(*running, strict=True)
    with report.timing("time"):
        stand = Stand(examples[0].with_batch(batch_size or examples[0].samples), choose_device(device))
        return stand.speed(stand.forward(*models), *sides)


def _one(
    report: Report,
    model: Any,
    inputs: Any,
    seed: int,
    args: dict[str, Any] | None,
    weights: str | None,
    step: Step,
    running: list[tuple[nn.Module, Example]] | None,
) -> dict[str, Any]:
    """The parts of one network's report; the network itself goes to the end of `running`, where that is asked for."""
    if is_slim(model):
        document = read_document(model, SLIM)
        about = {k: v for k, v in document["model"].items() if k != "parameters"} | {"file": model}
        known = _recorded_input(model)
        if inputs not in (None, known) or any(part is not None for part in step):
            about.pop("profiled_input", None)
            return _measured(report, load(model), about, inputs or known, step, running)
        if running is not None:
            from ..core.example import Example

            with report.timing("load"):
                running.append((load(model), Example.from_signature(known)))
        mask = document["mask"]
        told = {k: mask[k] for k in ("method", "sparsity", "neurons", "floored", "fixed")}
        return {"model": about, **told, **document["profile"]}
    from ..core.contexts import seeded
    from ..core.copies import uncompiled

    if not isinstance(model, str):
        return _measured(report, uncompiled(model), {"spec": None, "args": {}}, inputs, step, running)

    if model.lower().endswith(".onnx"):
        from ..io.exchange.onnx_profile import profile_onnx

        if running is not None:
            raise BadInput(f"--time: {model} is an .onnx file, and what is timed is a torch module; give the model or a slim "
                           ".safetensors, or leave out --time")  # fmt: skip
        if step[3]:
            raise BadInput(
                f"{model}: the training step of an .onnx file is not known; leave out --amp, or give the model itself"
            )
        if step[2]:
            raise BadInput(f"{model}: an .onnx file has no modules; leave out --tree, or give the model itself")
        if args or weights is not None:
            raise BadInput(f"{model}: an .onnx file holds its weights; leave out --model-arg and --weights")
        with report.timing("trace"):
            return profile_onnx(model, inputs)
    from ..io.model import TORCHSCRIPT_NOTE, load_model, load_weights

    with report.timing("load"), seeded(seed):
        loaded = load_model(model, args)
        if weights is not None:
            load_weights(loaded.module, weights)
    notes = {"notes": [TORCHSCRIPT_NOTE]} if loaded.kind == "torchscript" else {}
    return notes | _measured(report, loaded.module, {"spec": loaded.spec, "args": loaded.args}, inputs, step, running)


def _measured(
    report: Report,
    module: nn.Module,
    about: dict[str, Any],
    inputs: Any,
    step: Step,
    running: list[tuple[nn.Module, Example]] | None,
) -> dict[str, Any]:
    from ..core.example import as_example
    from ..core.fingerprint import fingerprint
    from ..costs.by_module import module_rows
    from ..costs.memory import check_optimizer, memory_of, with_training
    from ..graph.analyse import measure
    from ..graph.guess import guess_example

    optimizer, batch_size = step[0] or "sgd", step[1]
    check_optimizer(optimizer)
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"batch-size {batch_size}: give 1 or more samples")
    guessed = {"input_guessed": True} if inputs is None else {}
    with report.timing("trace"):
        example: Example = guess_example(module) if inputs is None else as_example(inputs)
        run, layers, costs = measure(module, example)
    if running is not None:
        running.append((module, example))
    with report.timing("memory"):
        memory = memory_of(module, example.with_batch(batch_size or example.samples), optimizer, step[3])
    saved = {row["module"]: row["bytes"] for row in memory["by_module"]} if "by_module" in memory else None
    modules = module_rows(module, example, layers, costs["macs"], saved) if step[2] else []
    return {
        "model": {**about, "fingerprint": fingerprint(module), "input": example.signature, **guessed},
        "before": with_training(costs, memory),
        "memory": {"before": memory},
        "layers": [layer_row(layer) for layer in layers],
        "modules": modules,
        "neurons": {"total": sum(len(layer.neurons) for layer in layers)},
        "uncounted_ops": uncounted(run.tracer.uncounted),
    }


def autocast_device(amp: bool, device: str) -> str | None:
    """Where autocast is modelled; None without it."""
    if not amp:
        return None
    from .session import choose_device

    return choose_device(device).type


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The memory of two networks side by side; of a slim file the slim side."""
    later = second.get("after") or second.get("before")
    return {k: v for k, v in (("before", first.get("before")), ("after", later)) if v}


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
