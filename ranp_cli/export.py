"""ONNX out: a slim network as a file that was checked, run in onnxruntime and compared with the module first."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import math
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import check_output, write_atomic
from .errors import USER_EXCEPTIONS, BadInput, VerificationFailed

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch import Tensor, nn

    from .example import Example

from .onnxfile import KIND, NORMS, ONE_FILE, axes_in

TOLERANCE = 1e-4  # of the output's scale, onnxruntime against the module
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
    made, result = _agreeing(_Twin(model, example))
    result |= _write(made, Path(path))
    return result


class _Twin:
    """A copy of the model in eval mode on the CPU, and noise to run it on."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        import torch

        from .shadow import map_tensors, replicate, script_copy, tensors_in

        self.script = isinstance(model, torch.jit.ScriptModule)
        own = script_copy(model, "cpu") if isinstance(model, torch.jit.ScriptModule) else replicate(model, lambda _, t: t.cpu())  # fmt: skip
        self.model: Any = own.eval()
        for p in self.model.parameters():
            p.requires_grad_(False)
        noise = torch.Generator().manual_seed(0)

        def draw(t: Tensor) -> Tensor:
            return torch.randn(t.shape, generator=noise).to(t.dtype) if t.is_floating_point() else t.detach().cpu()

        self.make: Callable[[Any], Any] = partial(map_tensors, make=draw)
        self.example = example
        self.names = self._names()
        try:
            self.outputs = len(self.run(self.sample(1)))
        except USER_EXCEPTIONS as error:
            raise BadInput(f"the model fails on an input of shape {example}: {_line(error)}; give the shape that it takes") from error  # fmt: skip
        leading = {t.shape[0] for t in tensors_in((example.args, example.kwargs)) if t.ndim > 1}
        self.batched = len(leading) == 1

    def sample(self, batch: int, resize: Callable[[int], int] | None = None, axes: Sequence[set[int]] = ()) -> Example:
        """Noise of the example's shape for `batch` samples; of other spatial sizes with `resize` on `axes` of each input."""
        import torch

        from .example import Example
        from .shadow import map_tensors

        given = self.example.with_batch(batch)
        at = iter(axes)

        def other(t: Tensor) -> Tensor:
            mine = next(at)
            if not mine:
                return t
            shape = [resize(n) if axis in mine and resize else n for axis, n in enumerate(t.shape)]
            return torch.zeros(shape, dtype=t.dtype)

        values = (given.args, given.kwargs)
        return Example(*self.make(map_tensors(values, other) if resize else values))

    def run(self, sample: Example) -> list[np.ndarray]:
        """All tensors that the module returns."""
        import torch

        from .shadow import map_tensors, seeded, tensors_in

        args, kwargs = map_tensors((sample.args, sample.kwargs), lambda t: t.clone())
        with seeded(), torch.no_grad():
            out = self.model(*args, **kwargs)
        return [t.detach().float().numpy() if t.dtype == torch.bfloat16 else t.detach().numpy() for t in tensors_in(out)]  # fmt: skip

    def _names(self) -> list[str]:
        """One name for each input tensor: the argument's."""
        from .shadow import tensors_in

        names = []
        for key, value in self.arguments(self.example).items():
            count = len(tensors_in(value))
            names += [key] if count == 1 else [f"{key}_{k}" for k in range(count)]
        return names

    def arguments(self, example: Example) -> dict[str, Any]:
        """Argument name -> value, in the order of the call."""
        import inspect

        if self.script:
            declared = [a.name for a in self.model.forward.schema.arguments[1:]]
            return {**dict(zip(declared, example.args, strict=False)), **example.kwargs}
        try:
            bound = inspect.signature(self.model.forward).bind(*example.args, **example.kwargs)
        except TypeError as error:
            raise BadInput(f"the model does not take the input: {error}; give the arguments of its forward") from error
        return dict(bound.arguments)


def _agreeing(twin: _Twin) -> tuple[ModelProto, dict[str, Any]]:
    """The most dynamic export that says what the module says, and what is known of it."""
    runs = importlib.util.find_spec("onnxruntime") is not None
    reasons: list[str] = []
    for exporter in ("dynamo", "torchscript"):
        if exporter == "dynamo" and (twin.script or not _installed("onnxscript")):
            continue
        wanted = ["batch+spatial", "batch", "none"] if twin.batched else ["none"]
        if exporter == "torchscript" and not runs:
            wanted = ["none"]  # tracing bakes sizes in silently: a dynamic axis that was not tried is not promised
        for level in wanted:
            sample = twin.sample(1 if level == "none" else 2)
            try:
                with _silence():
                    made = (_by_dynamo if exporter == "dynamo" else _by_torchscript)(twin, sample, level)
                _tidy(made, twin)
                _check(made)
            except USER_EXCEPTIONS as error:
                reasons.append(f"{exporter}, {level}: {_line(error)}")
                continue
            about = _describe(made, exporter)
            if not runs:
                about["verified"] = {"against": "onnx.checker", "error": f"onnxruntime is not installed, the file was not run; {INSTALL}"}  # fmt: skip
                return made, about
            try:
                about["verified"] = _verify(made, twin)
                return made, about
            except VerificationFailed as failure:
                if level == "none":
                    raise
                reasons.append(f"{exporter}, {level}: {failure}")
    if not _installed("onnxscript") and not twin.script:
        raise BadInput(f"this model needs onnxscript to be written as ONNX ({reasons[-1]}); {INSTALL}")
    raise BadInput(f"torch.onnx cannot export this model ({reasons[0]}); write a .safetensors instead")


def _by_dynamo(twin: _Twin, sample: Example, level: str) -> ModelProto:
    import torch

    from .shadow import seeded, tensors_in

    auto = torch.export.Dim.AUTO

    def axes(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {axis: auto for axis in _axes(value.ndim, level) if value.shape[axis] > 1}
        if isinstance(value, (list, tuple)):
            return type(value)(axes(v) for v in value)
        if isinstance(value, dict):
            return {k: axes(v) for k, v in value.items()}
        return None

    dynamic = None if level == "none" else {k: axes(v) for k, v in twin.arguments(sample).items()}
    outputs = ["output" if k == 0 else f"output_{k}" for k in range(twin.outputs)]
    assert len(twin.names) == len(tensors_in((sample.args, sample.kwargs)))
    with seeded(), torch.no_grad():
        program = torch.onnx.export(twin.model, sample.args, None, kwargs=sample.kwargs, dynamo=True, verbose=False,
                                    dynamic_shapes=dynamic, input_names=twin.names, output_names=outputs)  # fmt: skip
    assert program is not None
    return program.model_proto


def _by_torchscript(twin: _Twin, sample: Example, level: str) -> ModelProto:
    import onnx
    import torch

    from .shadow import seeded, tensors_in

    tensors = tensors_in((sample.args, sample.kwargs))
    dynamic = {name: {axis: f"{name}_{axis}" for axis in _axes(t.ndim, level)}
               for name, t in zip(twin.names, tensors, strict=True)}  # fmt: skip
    outputs = ["output" if k == 0 else f"output_{k}" for k in range(twin.outputs)]
    with tempfile.TemporaryDirectory() as folder, seeded(), torch.no_grad():
        file = Path(folder) / "model.onnx"
        torch.onnx.export(twin.model, sample.args, str(file), kwargs=sample.kwargs or None, dynamo=False, verbose=False,
                          dynamic_axes=dynamic, input_names=twin.names, output_names=outputs)  # fmt: skip
        return onnx.load(str(file))


def _axes(rank: int, level: str) -> list[int]:
    """The axes of an input that count samples or places: 0, and 2 and up."""
    batch = [0] if rank > 1 and level != "none" else []
    return batch + (list(range(2, rank)) if level == "batch+spatial" else [])


_CHATTER = (  # (category, start of the message): what torch says about itself while it exports
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (FutureWarning, r"_check_is_size will be removed"),
    (UserWarning, r"The tensor attributes? .* (was|were) assigned during export"),
    (UserWarning, r"# 'dynamic_axes' is not recommended"),
    (UserWarning, r"ONNX export mode is set to TrainingMode\.EVAL"),
    (UserWarning, r"Exporting a model to ONNX with a batch_size other than 1"),
    (UserWarning, r"no signature found for"),
    (UserWarning, r"Model has no forward function"),
    (UserWarning, r"Constant folding"),
    (DeprecationWarning, r"The feature will be removed"),
    (UserWarning, r"Provided key .* for dynamic axes is not a valid"),
    (UserWarning, r"Exporting aten::"),
    (UserWarning, r"The shape inference of"),
    (UserWarning, r"This overload of"),
    (DeprecationWarning, r"You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, r"`torch\.jit\."),
    (DeprecationWarning, r"'(asyncio|inspect)\."),
)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress lines, log lines and known warnings of the exporters; those that the user's code gives stay."""
    import torch

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")]  # fmt: skip
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for category, start in _CHATTER:
            warnings.filterwarnings("ignore", start, category)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # what tracing bakes in shows in the comparison
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _tidy(made: ModelProto, twin: _Twin) -> None:
    """Names that a person can read, and nothing of the machine that it was made on (the exporter notes source paths)."""
    graph = made.graph
    renamed = _axis_names(made, twin)
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


def _axis_names(made: ModelProto, twin: _Twin) -> dict[str, str]:
    """Symbol of the exporter -> batch, depth, height, width or length."""
    places = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}
    names: dict[str, str] = {}
    for value in made.graph.input:
        dims = value.type.tensor_type.shape.dim
        words = ("batch", "", *places.get(len(dims), ()))
        for axis, dim in enumerate(dims):
            if dim.dim_param and dim.dim_param not in names:
                word = words[axis] if axis < len(words) and words[axis] else f"{value.name}_{axis}"
                taken = set(names.values())
                names[dim.dim_param] = word if word not in taken or word == "batch" else f"{word}_{value.name}"
    return names


def _check(made: ModelProto) -> None:
    import onnx

    if made.ByteSize() < ONE_FILE:
        onnx.checker.check_model(made, full_check=True)


def _describe(made: ModelProto, exporter: str) -> dict[str, Any]:
    inputs, outputs = ({v.name: axes_in(v) for v in values} for values in (made.graph.input, made.graph.output))
    free = {("batch" if axis == 0 else "spatial") for dims in inputs.values() for axis, n in enumerate(dims) if isinstance(n, str)}  # fmt: skip
    opset = next(o.version for o in made.opset_import if o.domain in ("", "ai.onnx"))
    return {"exporter": exporter, "opset": opset, "dynamic": "+".join(sorted(free)) or "none", "inputs": inputs, "outputs": outputs}  # fmt: skip


def _verify(made: ModelProto, twin: _Twin) -> dict[str, Any]:
    """Run the file on one sample, and on three of another spatial size where its axes are dynamic; compare."""
    onnxruntime = importlib.import_module("onnxruntime")
    inputs = {v.name: axes_in(v) for v in made.graph.input}
    axes = [{k for k, n in enumerate(inputs.get(name, [])) if isinstance(n, str) and k > 0} for name in twin.names]
    batch = any(isinstance(dims[0], str) for dims in inputs.values() if dims)
    about: dict[str, Any] = {"against": f"onnxruntime {onnxruntime.__version__}"}
    samples = [twin.sample(1)]
    wants = [twin.run(samples[0])]
    if any(axes):
        found = _another_size(twin, 3 if batch else 1, axes)
        if found is None:
            raise VerificationFailed("no other spatial size was found that the model takes")
        samples.append(found[0])
        wants.append(found[1])
    elif batch:
        samples.append(twin.sample(3))
        wants.append(twin.run(samples[1]))
    absolute = relative = 0.0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        try:
            session = onnxruntime.InferenceSession(_stored(made, Path(folder)), options, providers=["CPUExecutionProvider"])  # fmt: skip
        except Exception as error:
            if type(error).__name__ == "NotImplemented":  # a kernel that onnxruntime lacks is no fault of the file
                return {**about, "error": f"onnxruntime cannot run it: {_line(error)}"}
            raise VerificationFailed(f"onnxruntime does not load the file: {_line(error)}; nothing was written") from error  # fmt: skip
        for sample, want in zip(samples, wants, strict=True):
            try:
                got = session.run(None, _feed(sample, twin, set(inputs)))
            except Exception as error:
                raise VerificationFailed(f"onnxruntime fails on an input of shape {sample}: {_line(error)}; nothing was written") from error  # fmt: skip
            far, part = _compare(want, [np.asarray(v) for v in got])
            absolute, relative = max(absolute, far), max(relative, part)
            if not part <= TOLERANCE:
                raise VerificationFailed(f"the ONNX file differs from the model by {part:.1e} of the output's scale on an input of shape {sample}, where {TOLERANCE:.0e} is allowed; nothing was written")  # fmt: skip
    return {**about, "input": [str(s) for s in samples], "max_abs_error": absolute, "max_rel_error": relative}


def _another_size(twin: _Twin, batch: int, axes: list[set[int]]) -> tuple[Example, list[np.ndarray]] | None:
    """A sample of other spatial sizes that the module takes, the cheap ones tried first, and what it says on it."""
    from .shadow import tensors_in

    def size(e: Example) -> int:
        return sum(t.numel() for t in tensors_in((e.args, e.kwargs)))

    whole = size(twin.sample(1))
    steps: tuple[Callable[[int], int], ...] = (
        lambda n: n // 2, lambda n: 3 * n // 4, lambda n: n - 32, lambda n: n - 16, lambda n: 3 * n // 2, lambda n: 2 * n,
    )  # fmt: skip
    sizes = [t.shape[k] for t, mine in zip(tensors_in((twin.example.args, twin.example.kwargs)), axes, strict=True) for k in mine]  # fmt: skip
    for step in steps:
        if min(step(n) for n in sizes) < 2 or all(step(n) == n for n in sizes):
            continue
        sample = twin.sample(batch, step, axes)
        if size(sample) > max(3 * whole, 1 << 22):
            continue
        try:
            return sample, twin.run(sample)
        except USER_EXCEPTIONS:  # not this size
            continue
    return None


def _feed(sample: Example, twin: _Twin, wanted: set[str]) -> dict[str, np.ndarray]:
    from .shadow import tensors_in

    tensors = tensors_in((sample.args, sample.kwargs))
    return {name: t.numpy() for name, t in zip(twin.names, tensors, strict=True) if name in wanted}


def _compare(want: list[np.ndarray], got: list[np.ndarray]) -> tuple[float, float]:
    """(largest difference, the same as a fraction of the output's scale); of integer outputs the share that differs."""
    if [a.shape for a in want] != [b.shape for b in got]:
        raise VerificationFailed(f"the ONNX file returns shapes {[b.shape for b in got]}, the model {[a.shape for a in want]}; nothing was written")  # fmt: skip
    floats = [k for k, a in enumerate(want) if a.dtype.kind == "f" and a.size]
    scale = max((float(np.abs(want[k]).max()) for k in floats), default=0.0)
    error = max((float(np.abs(want[k].astype(float) - got[k].astype(float)).max()) for k in floats), default=0.0)
    part = error / scale if scale else math.inf if error else 0.0
    whole = [float((a != b).mean()) for a, b in zip(want, got, strict=True) if a.dtype.kind != "f" and a.size]
    if max(whole, default=0.0) > 1e-3:  # a near tie of an argmax may fall either way, no more
        part = math.inf
    return error, math.inf if math.isnan(error) else part


def _stored(made: ModelProto, folder: Path) -> bytes | str:
    """The model as onnxruntime takes it: bytes, or a file where it is too large for that."""
    if made.ByteSize() < ONE_FILE:
        return made.SerializeToString(deterministic=True)
    return str(_store_large(made, folder / "model.onnx"))


def _store_large(made: ModelProto, file: Path) -> Path:
    import onnx

    beside = type(made)()
    beside.CopyFrom(made)  # saving moves the weights out of the model that it is given
    onnx.save_model(beside, str(file), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{file.name}.data", size_threshold=1024)  # fmt: skip
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


def _line(error: BaseException) -> str:
    """The first words of an exception."""
    cause = error
    while cause.__cause__ is not None and type(cause).__name__ in ("TorchExportError", "ConversionError"):
        cause = cause.__cause__
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text[:200]}".rstrip(": ")
