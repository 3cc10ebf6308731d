"""ONNX out: a slim network as a file that was checked, run in onnxruntime and compared with the module first."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.atomic import check_output, write_atomic
from ...core.errors import BadInput, VerificationFailed
from .export_check import (
    ExportCandidate,
    ExportForm,
    Refused,
    axes_at,
    axis_names,
    compared,
    dynamic_of,
    dynamic_shapes,
    first_words,
    most_dynamic,
    trials,
)
from .onnx_count import KIND, NORMS
from .onnx_profile import ONE_FILE
from .onnx_shapes import axes_in

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch import nn

    from ...core.example import Example


INSTALL = "pip install 'ranp-cli[onnx]'"


def to_onnx(model: nn.Module, example: Example, path: str | Path) -> dict[str, Any]:
    """Write `model`, in eval mode, as an ONNX file that was checked, run and compared.

    The batch and spatial axes are dynamic where the network allows and the comparison at another size agrees.
    `model` is not changed. A network whose weights take more than 2 GB gets its weights in `path` + ".data".

    Args:
        example: what the model is called with; noise of its shapes is used, its integer tensors as they are.

    Returns: `bytes` and `sha256` of the file, `exporter`, `opset`, `dynamic` ("batch+spatial", "batch", "spatial" or
        "none"), `inputs` and `outputs` with their axes, and `verified` (errors against onnxruntime; `error` instead
        when it was not run).

    Raises: BadInput when the network cannot be exported; VerificationFailed when the file computes something else.

    Example:
        to_onnx(slim, Example((torch.empty(1, 1, 64, 64, 64),)), "slim.onnx")
    """
    check_output(path)
    twin = ExportCandidate(model, example)
    try:
        made, exporter, verified = most_dynamic(twin, _ways(twin), lambda made: _verify(made, twin))
    except Refused as refused:
        if not _installed("onnxscript") and not twin.script:
            raise BadInput(
                f"this model needs onnxscript to be written as ONNX ({refused.reasons[-1]}); {INSTALL}"
            ) from refused
        raise BadInput(f"torch.onnx cannot export this model ({refused}); write a .safetensors instead") from refused
    return {**_describe(made, exporter), "verified": verified, **_write(made, Path(path))}


def _ways(twin: ExportCandidate) -> list[ExportForm[ModelProto]]:
    """The exporters that are there, the better one first."""
    ways = []
    if not twin.script and _installed("onnxscript"):
        ways.append(ExportForm("dynamo", _by_dynamo, twin.levels))
    # tracing bakes sizes in silently: a dynamic axis that was not tried is not promised
    ways.append(
        ExportForm("torchscript", _by_torchscript, twin.levels if _installed("onnxruntime") else twin.levels[-1:])
    )
    return [ExportForm(way.name, partial(_sound, way.make), way.levels) for way in ways]


def _sound(
    make: Callable[[ExportCandidate, Example, str], ModelProto], twin: ExportCandidate, sample: Example, level: str
) -> ModelProto:
    made = make(twin, sample, level)
    _tidy(made, twin)
    _check(made)
    return made


def _by_dynamo(twin: ExportCandidate, sample: Example, level: str) -> ModelProto:
    import torch

    from ...core.random_state import globally_seeded
    from ...core.tensors import tensors_in

    outputs = ["output" if k == 0 else f"output_{k}" for k in range(twin.outputs)]
    assert len(twin.names) == len(tensors_in((sample.args, sample.kwargs)))
    with globally_seeded(), torch.no_grad():
        program = torch.onnx.export(
            twin.model,
            sample.args,
            None,
            kwargs=sample.kwargs,
            dynamo=True,
            verbose=False,
            dynamic_shapes=dynamic_shapes(twin, sample, level),
            input_names=twin.names,
            output_names=outputs,
        )
    assert program is not None
    return program.model_proto


def _by_torchscript(twin: ExportCandidate, sample: Example, level: str) -> ModelProto:
    import onnx
    import torch

    from ...core.random_state import globally_seeded
    from ...core.tensors import tensors_in

    tensors = tensors_in((sample.args, sample.kwargs))
    dynamic = {
        name: {axis: f"{name}_{axis}" for axis in axes_at(t.ndim, level)}
        for name, t in zip(twin.names, tensors, strict=True)
    }
    outputs = ["output" if k == 0 else f"output_{k}" for k in range(twin.outputs)]
    with tempfile.TemporaryDirectory() as folder, globally_seeded(), torch.no_grad():
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            twin.model,
            sample.args,
            str(file),
            kwargs=sample.kwargs or None,
            dynamo=False,
            verbose=False,
            dynamic_axes=dynamic,
            input_names=twin.names,
            output_names=outputs,
        )
        return onnx.load(str(file))


def _tidy(made: ModelProto, twin: ExportCandidate) -> None:
    """Names that a person can read, and nothing of the machine that it was made on (the exporter notes source paths)."""
    graph = made.graph
    renamed = axis_names({v.name: axes_in(v) for v in graph.input})
    for value in [*graph.input, *graph.output, *graph.value_info]:
        kind = next((p.value for p in value.metadata_props if p.key == KIND), None)
        del value.metadata_props[:]
        if kind is not None:
            value.metadata_props.add(key=KIND, value=kind)
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: renamed.get(m[0], m[0]), dim.dim_param)
    used: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
        if scopes is not None:
            modules = re.findall(r"'([^']*)'", scopes)[:-1]
            _part(made, node, twin.model, modules[-1] if modules else "")
            name = "/".join(["", *(m for m in modules[-1:] if m), node.op_type])
            used[name] += 1
            node.name = name if used[name] == 1 else f"{name}_{used[name] - 1}"
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del graph.metadata_props[:], made.metadata_props[:]
    graph.name, graph.doc_string = "slim", ""


def _part(made: ModelProto, node: NodeProto, model: Any, module: str) -> None:
    """Give a norm without parameters ones and zeros of its own: the exporter lets it share a neighbour's equal weight."""
    try:
        own = getattr(model.get_submodule(module), "weight", model)
    except AttributeError:  # the exporter named something else
        return
    if node.op_type not in NORMS or own is not None:
        return
    shared = {t.name: t for t in made.graph.initializer}
    for k, number in ((1, "ones"), (2, "zeros")):
        if k < len(node.input) and node.input[k] in shared:
            name = f"{module}.{number}"
            if name not in shared:
                made.graph.initializer.add().CopyFrom(shared[node.input[k]])
                made.graph.initializer[-1].name = name
            node.input[k] = name


def _check(made: ModelProto) -> None:
    import onnx

    if made.ByteSize() < ONE_FILE:
        onnx.checker.check_model(made, full_check=True)


def _describe(made: ModelProto, exporter: str) -> dict[str, Any]:
    inputs, outputs = ({v.name: axes_in(v) for v in values} for values in (made.graph.input, made.graph.output))
    opset = next(o.version for o in made.opset_import if o.domain in ("", "ai.onnx"))
    return {"exporter": exporter, "opset": opset, "dynamic": dynamic_of(inputs), "inputs": inputs, "outputs": outputs}


def _verify(made: ModelProto, twin: ExportCandidate) -> dict[str, Any]:
    """Run the file in onnxruntime, where it is installed, and compare."""
    if not _installed("onnxruntime"):
        return {"against": "onnx.checker", "error": f"onnxruntime is not installed, the file was not run; {INSTALL}"}
    onnxruntime = importlib.import_module("onnxruntime")
    inputs = {v.name: axes_in(v) for v in made.graph.input}
    about: dict[str, Any] = {"against": f"onnxruntime {onnxruntime.__version__}"}
    tried = trials(twin, [inputs.get(name, []) for name in twin.names])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        try:
            session = onnxruntime.InferenceSession(
                _stored(made, Path(folder)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            if type(error).__name__ == "NotImplemented":  # a kernel that onnxruntime lacks is no fault of the file
                return {**about, "error": f"onnxruntime cannot run it: {first_words(error)}"}
            raise VerificationFailed(
                f"onnxruntime does not load the file: {first_words(error)}; nothing was written"
            ) from error

        def run(sample: Example) -> list[np.ndarray]:
            return [np.asarray(v) for v in session.run(None, _feed(sample, twin, set(inputs)))]

        return about | compared(tried, run, "the ONNX file")


def _feed(sample: Example, twin: ExportCandidate, wanted: set[str]) -> dict[str, np.ndarray]:
    from ...core.tensors import tensors_in

    tensors = tensors_in((sample.args, sample.kwargs))
    return {name: t.numpy() for name, t in zip(twin.names, tensors, strict=True) if name in wanted}


def _stored(made: ModelProto, folder: Path) -> bytes | str:
    """The model as onnxruntime takes it: bytes, or a file where it is too large for that."""
    if made.ByteSize() < ONE_FILE:
        return made.SerializeToString(deterministic=True)
    return str(_store_large(made, folder / "model.onnx"))


def _store_large(made: ModelProto, file: Path) -> Path:
    import onnx

    beside = type(made)()
    beside.CopyFrom(made)  # saving moves the weights out of the model that it is given
    onnx.save_model(
        beside,
        str(file),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{file.name}.data",
        size_threshold=1024,
    )
    onnx.checker.check_model(str(file), full_check=True)
    return file


def _write(made: ModelProto, path: Path) -> dict[str, Any]:
    import hashlib

    if made.ByteSize() < ONE_FILE:
        data = made.SerializeToString(deterministic=True)
        write_atomic(path, data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with tempfile.TemporaryDirectory() as folder:
        file = _store_large(made, Path(folder) / path.name)
        weights = file.with_name(f"{file.name}.data")
        beside = path.with_name(f"{path.name}.data")
        total = weights.stat().st_size
        write_atomic(beside, weights.read_bytes())
        data = file.read_bytes()
        write_atomic(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "external_data": {str(beside): total}}


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # taken out of sys.modules
        return False
