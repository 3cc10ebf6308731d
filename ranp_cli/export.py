"""ONNX: write a slim network (checked, run and compared first), and count one from its file alone, without torch."""

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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import check_output, write_atomic
from .errors import USER_EXCEPTIONS, BadInput, VerificationFailed

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch import Tensor, nn

    from .units import Example

TOLERANCE = 1e-4  # of the output's scale, onnxruntime against the module
ONE_FILE = 1_900_000_000  # bytes of weights; a protobuf holds at most 2 GB, so larger ones lie in a file beside it
INSTALL = "pip install 'ranp-cli[onnx]'"
KIND = "pkg.torch.export.graph_signature.InputSpec.kind"  # torch writes it beside an initializer: PARAMETER or BUFFER


# -- writing


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

        from .trace import map_tensors, replicate, script_copy, tensors_in

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

        from .trace import map_tensors
        from .units import Example

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

        from .trace import map_tensors, seeded, tensors_in

        args, kwargs = map_tensors((sample.args, sample.kwargs), lambda t: t.clone())
        with seeded(), torch.no_grad():
            out = self.model(*args, **kwargs)
        return [t.detach().float().numpy() if t.dtype == torch.bfloat16 else t.detach().numpy() for t in tensors_in(out)]  # fmt: skip

    def _names(self) -> list[str]:
        """One name for each input tensor: the argument's."""
        from .trace import tensors_in

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

    from .trace import seeded, tensors_in

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

    from .trace import seeded, tensors_in

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
    inputs, outputs = ({v.name: _dims(v) for v in values} for values in (made.graph.input, made.graph.output))
    free = {("batch" if axis == 0 else "spatial") for dims in inputs.values() for axis, n in enumerate(dims) if isinstance(n, str)}  # fmt: skip
    opset = next(o.version for o in made.opset_import if o.domain in ("", "ai.onnx"))
    return {"exporter": exporter, "opset": opset, "dynamic": "+".join(sorted(free)) or "none", "inputs": inputs, "outputs": outputs}  # fmt: skip


def _dims(value: Any) -> list[int | str]:
    return [d.dim_param or ("?" if d.WhichOneof("value") is None else d.dim_value) for d in value.type.tensor_type.shape.dim]  # fmt: skip


def _verify(made: ModelProto, twin: _Twin) -> dict[str, Any]:
    """Run the file on one sample, and on three of another spatial size where its axes are dynamic; compare."""
    onnxruntime = importlib.import_module("onnxruntime")
    inputs = {v.name: _dims(v) for v in made.graph.input}
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
    from .trace import tensors_in

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
    from .trace import tensors_in

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


# -- counting a file

# what the profile knowingly counts no multiply-adds for, as the rules of torch ops have it
FREE = set(
    # element-wise
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil "
    "Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor "
    # layout
    "Compress Concat Constant ConstantOfShape DepthToSpace Dropout Expand EyeLike Flatten Gather GatherElements GatherND "
    "Identity OneHot Pad Range Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice SpaceToDepth Split "
    "Squeeze Tile Transpose Trilu Unsqueeze NonZero "
    # normalisation, reduction, windows
    "ArgMax ArgMin AveragePool BatchNormalization CumSum GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample "
    "GroupNormalization Hardmax InstanceNormalization LRN LayerNormalization LogSoftmax LpNormalization LpPool MaxPool "
    "MeanVarianceNormalization RMSNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare Resize Softmax TopK Upsample "
    # numbers out of nothing, other number formats
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli DequantizeLinear QuantizeLinear".split()
)
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"}  # their output is their input's memory
NORMS = {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "BatchNormalization"}
WEIGHTS = {  # which inputs of an op are parameters
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "PRelu": (1,), "Gather": (0,),
    "GRU": (1, 2, 3), "LSTM": (1, 2, 3, 7), "RNN": (1, 2, 3), **dict.fromkeys(NORMS, (1, 2)),
}  # fmt: skip
SCALES = {"Mul", "Add", "Sub", "Div", "Pow", "Concat", "Expand", "Where"}  # of these, tensors of several numbers are
SMALL = 4096  # numbers; values up to this size are followed through the graph, as they may be shapes


@dataclass
class _Value:
    """A tensor of the graph. `root`: the tensor whose memory it shares; `stored`: an initializer or made of them."""

    shape: tuple[int, ...] | None
    dtype: int  # of onnx.TensorProto
    root: str
    data: np.ndarray | None = None
    stored: bool = False

    @property
    def size(self) -> int:
        return 0 if self.shape is None else math.prod(self.shape)

    @property
    def bytes(self) -> int:
        from onnx import helper

        try:
            return self.size * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize
        except (KeyError, TypeError, ValueError):  # text
            return 0


def profile_onnx(path: str | Path, input_shapes: Any = None) -> dict[str, Any]:
    """Count what an ONNX file costs, from the file alone: one sample, without running it and without torch.

    Parameters are the numbers stored for weights, biases, norms and scales; `buffers` (running statistics) stand apart.
    An exporter may fold a batch norm into a convolution (its C biases then replace the norm's 2C parameters) and store
    equal tensors once; constant ones that stand in several places are counted in each, as the network has them.
    Activations: what every op makes (views of another tensor nothing); the peak follows them in the file's order.

    Args:
        input_shapes: a shape for each input, such as `(1, 1, 64, 64, 64)` or `[(1, 1, 64, 64), (1, 10)]`; needed when
            spatial axes are dynamic. A dynamic batch axis counts as 1.

    Returns: the parts `model`, `before`, `layers`, `neurons` and `uncounted_ops` of a report.

    Raises: BadInput for a file that is missing, truncated or no ONNX, and for a shape that is missing or does not fit.

    Example:
        >>> profile_onnx("slim.onnx", (1, 1, 64, 64, 64))["before"]["macs"]  # doctest: +SKIP
        1290240
    """
    import onnx

    model = _read(Path(path))
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    stored = {t.name for t in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    inputs = {v.name: v for v in model.graph.input if v.name not in stored}
    shapes = _shapes_of(path, inputs, _as_shapes(input_shapes))
    count = _Count(model, shapes)
    for node in model.graph.node:
        count.see(node)
    samples = next((s[0] for s in shapes.values() if len(s) > 1 and s[0]), 1)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    signature = {"args": [{"shape": list(s), "dtype": count.dtype_name(name)} for name, s in shapes.items()], "kwargs": {}}  # fmt: skip
    layers = count.rows(samples)
    about: dict[str, Any] = {"spec": str(path), "args": {}, "opset": opset, "input": signature}
    if model.producer_name:
        about["producer"] = f"{model.producer_name} {model.producer_version}".strip()
    return {
        "model": about,
        "before": count.costs(samples),
        "layers": layers,
        "neurons": {"total": sum(row["neurons"] for row in layers)},
        "uncounted_ops": [{"op": op, "module": module, "count": n} for (op, module), n in count.uncounted.items()],
    }


def _read(path: Path) -> ModelProto:
    import onnx

    DecodeError = importlib.import_module("google.protobuf.message").DecodeError
    wanted = "give an .onnx file"
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; {wanted}") from error
    except (DecodeError, ValueError) as error:
        raise BadInput(f"{path} is not an ONNX file, or is truncated; {wanted}") from error
    if not model.ir_version or not model.HasField("graph"):
        raise BadInput(f"{path} is not an ONNX file, or is truncated: it holds no graph; {wanted}")
    large = model.ByteSize() >= ONE_FILE or any(t.data_location for t in model.graph.initializer)
    try:
        onnx.checker.check_model(str(path) if large else model)
    except (onnx.checker.ValidationError, ValueError) as error:
        text = " ".join(str(error).split())
        raise BadInput(f"{path} is no sound ONNX model, or is truncated: {text[:200]}; write it anew") from error
    return model


def _as_shapes(given: Any) -> list[tuple[int, ...]] | None:
    """Shapes in order, from one shape, a list of them, or the signature that a report records."""
    if given is None:
        return None
    if isinstance(given, dict):
        if "shape" in given:
            return [tuple(given["shape"])]
        return [s for value in given.values() for s in _as_shapes(value) or []]
    if isinstance(given, (list, tuple)) and given and all(type(n) is int for n in given):
        return [tuple(given)]
    if isinstance(given, (list, tuple)):
        return [s for value in given for s in _as_shapes(value) or []]
    return [tuple(given.shape)] if hasattr(given, "shape") else []


def _shapes_of(path: Any, inputs: dict[str, Any], given: list[tuple[int, ...]] | None) -> dict[str, tuple[int, ...]]:
    """The shape of every input: as the file says, dynamic axes as given, a dynamic batch axis 1."""
    if given is not None and len(given) != len(inputs):
        names = ", ".join(inputs)
        raise BadInput(f"{path} has {len(inputs)} inputs ({names}), {len(given)} shapes were given; give --input for each, in order")  # fmt: skip
    shapes = {}
    for k, (name, value) in enumerate(inputs.items()):
        known = value.type.tensor_type.HasField("shape")
        dims = _dims(value) if known else []
        asked = given[k] if given is not None else None
        declared = "x".join(str(d) for d in dims)
        if asked is None:
            free = [str(d) for d in dims[1:] if isinstance(d, str)]
            if free or not known:
                hint = "x".join(str(d) if isinstance(d, int) else "1" if a == 0 else "64" for a, d in enumerate(dims))
                raise BadInput(f"{path}: axes {', '.join(free) or 'of unknown number'} of input '{name}' are dynamic; give --input, as in --input {hint or '1x1x64x64x64'}")  # fmt: skip
            asked = tuple(1 if isinstance(d, str) else d for d in dims)
        elif known and (len(asked) != len(dims) or any(isinstance(d, int) and d != n for d, n in zip(dims[1:], asked[1:], strict=True))):  # fmt: skip
            raise BadInput(f"{path}: input '{name}' is {declared}, the shape given is {'x'.join(map(str, asked))}; give one that fits")  # fmt: skip
        batch = dims[0] if dims and isinstance(dims[0], int) else 1
        shapes[name] = (batch, *asked[1:]) if asked else ()
    return shapes


@dataclass
class _Row:
    name: str
    op: str
    kernel: tuple[int, ...]
    neurons: int
    params: int
    macs: int = 0
    output_elements: int = 0


@dataclass
class _Count:
    """Goes through the nodes in order, with the shape of every tensor, and adds up."""

    model: ModelProto
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, _Value] = field(default_factory=dict)
    layers: dict[str, _Row] = field(default_factory=dict)
    macs: int = 0
    activations: int = 0
    params: Counter[str] = field(default_factory=Counter)  # elements, by place
    params_bytes: int = 0
    buffers: int = 0
    held: int = 0
    live: int = 0
    peak: int = 0
    uncounted: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        from onnx import numpy_helper

        graph = self.model.graph
        self.opsets = {o.domain: o.version for o in self.model.opset_import}
        self.kinds = {v.name: p.value for v in graph.value_info for p in v.metadata_props if p.key == KIND}
        self.told = {v.name: v for v in [*graph.value_info, *graph.output]}
        self.tensors = {t.name: t for t in graph.initializer}
        for t in graph.initializer:
            shape = tuple(t.dims)
            data = numpy_helper.to_array(t) if math.prod(shape) <= SMALL and not t.data_location else None
            self.values[t.name] = _Value(shape, t.data_type, t.name, data, stored=True)
            self.held += self.values[t.name].bytes
        for v in graph.input:
            if v.name in self.shapes:
                self.values[v.name] = _Value(self.shapes[v.name], v.type.tensor_type.elem_type, v.name)
        self.given = sum(self.values[name].bytes for name in self.shapes)
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in _reads(node):
                self.readers.setdefault(name, []).append(node)
        self.left = Counter({name: len(nodes) for name, nodes in self.readers.items()})
        self.left.update(v.name for v in graph.output)
        self.alive: Counter[str] = Counter()  # root -> names that still need it
        self.cost: dict[str, int] = {}
        self.seen: set[tuple[str, int | None]] = set()

    # -- one node

    def see(self, node: NodeProto) -> None:
        outs = self._infer(node)
        ins = [self.values.get(name) for name in node.input]
        self._parameters(node, ins)
        for name, value in zip(node.output, outs, strict=True):
            if name:
                self.values[name] = value
        self._work(node, ins, outs)
        for name, value in zip(node.output, outs, strict=True):
            if not name or value.stored or value.data is not None:
                continue
            if value.root == name:
                self.cost[name] = value.bytes
                self.live += value.bytes
                self.activations += value.bytes
            self.alive[value.root] += self.left[name] > 0
        self.peak = max(self.peak, self.live)
        for name in _reads(node):
            self.left[name] -= 1
            if self.left[name] == 0 and name in self.values:
                self.alive[self.values[name].root] -= 1
        for root in {v.root for v in [*outs, *(self.values[n] for n in _reads(node) if n in self.values)]}:
            if self.alive[root] <= 0:
                self.live -= self.cost.pop(root, 0)

    def _infer(self, node: NodeProto) -> list[_Value]:
        """Shapes of the outputs, and their numbers where they are made of known ones."""
        ins = {name: self.values[name] for name in node.input if name in self.values}
        named = [name for name in node.input if name]
        view = node.op_type in VIEWS and node.input[0] in ins
        stored = bool(named) and all(name in ins and ins[name].stored for name in named)
        root = ins[node.input[0]].root if view else ""
        data = self._evaluate(node, ins, named)
        if data is not None:
            from onnx import helper

            return [_Value(d.shape, helper.np_dtype_to_tensor_dtype(d.dtype), root if stored and root else name, d, stored)
                    for d, name in zip(data, node.output, strict=False)]  # fmt: skip
        types = self._types(node, ins)
        outs = []
        for k, name in enumerate(node.output):
            shape, dtype = types.get(name, (None, 1))
            if shape is None and name in self.told:
                dims = _dims(self.told[name])
                if self.told[name].type.tensor_type.HasField("shape") and all(isinstance(d, int) for d in dims):
                    shape, dtype = tuple(int(d) for d in dims), self.told[name].type.tensor_type.elem_type
            followed = root if (view or (stored and node.op_type in ("Transpose", "Cast", "DequantizeLinear"))) and k == 0 else name  # fmt: skip
            if stored and not view and k == 0 and followed != name:
                followed = ins[node.input[0]].root
            outs.append(_Value(shape, dtype, followed or name, None, stored and node.op_type != "Shape"))
        return outs

    def _evaluate(self, node: NodeProto, ins: dict[str, _Value], named: list[str]) -> list[np.ndarray] | None:
        """The numbers that a node gives, when they are known and few: the shapes that a graph computes with."""
        if node.domain not in ("", "ai.onnx") or node.op_type.startswith(("Random", "Bernoulli", "If", "Loop", "Scan")):
            return None
        if node.op_type in ("Shape", "Size") and node.input[0] in ins:
            value = ins[node.input[0]]
            if value.shape is None:
                return None
            how = {a.name: a.i for a in node.attribute}
            sizes = np.array(value.shape, np.int64)
            return [np.int64(value.size).reshape(()) if node.op_type == "Size" else sizes[how.get("start", 0) : how.get("end")]]  # fmt: skip
        if any(name not in ins or ins[name].data is None for name in named) or (not named and node.op_type != "Constant"):  # fmt: skip
            return None
        types = self._types(node, ins)
        if any(shape is None or math.prod(shape) > SMALL for shape, _ in (types.get(n, (None, 1)) for n in node.output)):  # fmt: skip
            return None
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        feeds = {name: ins[name].data for name in named}
        graph = helper.make_graph([node], "one", [helper.make_tensor_value_info(n, ins[n].dtype, list(ins[n].shape or ())) for n in dict.fromkeys(named)],
                                  [helper.make_tensor_value_info(n, types[n][1], None) for n in node.output])  # fmt: skip
        try:
            made = helper.make_model(
                graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
            )
            return [np.asarray(v) for v in ReferenceEvaluator(made).run(None, feeds)]
        except Exception:  # an op that onnx has no numpy form of: its shape is still inferred
            return None

    def _types(self, node: NodeProto, ins: dict[str, _Value]) -> dict[str, tuple[tuple[int, ...] | None, int]]:
        import onnx
        from onnx import helper, numpy_helper

        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, self.opsets.get("ai.onnx", 1)), domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, node,
                {n: helper.make_tensor_type_proto(v.dtype, v.shape) for n, v in ins.items() if v.shape is not None},
                {n: numpy_helper.from_array(v.data, n) for n, v in ins.items() if v.data is not None},
                opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version,
            )  # fmt: skip
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError, TypeError, ValueError):
            return {}
        types: dict[str, tuple[tuple[int, ...] | None, int]] = {}
        for name, proto in found.items():
            dims = proto.tensor_type.shape.dim
            known = proto.tensor_type.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in dims)
            types[name] = (tuple(d.dim_value for d in dims) if known else None, proto.tensor_type.elem_type)
        return types

    # -- parameters

    def _parameters(self, node: NodeProto, ins: list[_Value | None]) -> None:
        """Count the stored tensors that this node takes as parameters, each once."""
        for k, value in enumerate(ins):
            if value is None or not value.stored or value.root not in self.tensors:
                continue
            if value.dtype in (6, 7, 9, 12, 13):  # whole numbers: indices, shapes
                continue
            kind = self.kinds.get(value.root)
            place = k in WEIGHTS.get(node.op_type, ())
            running = node.op_type == "BatchNormalization" and k in (3, 4)
            if running or (kind == "BUFFER" and not place):
                if self._first(value.root, node, k):
                    self.buffers += value.size
            elif place and self._neutral(node, k, value):
                continue
            elif place or kind == "PARAMETER" or (node.op_type in SCALES and value.size > 1):
                if node.op_type in VIEWS or node.op_type in ("Transpose", "Cast"):
                    continue  # counted where it is used
                if self._first(value.root, node, k):
                    self.params[value.root] += self.values[value.root].size
                    self.params_bytes += self.values[value.root].bytes

    def _first(self, root: str, node: NodeProto, k: int) -> bool:
        """Was this tensor not counted yet? One that is all the same number may stand for several equal ones."""
        key = (root, None) if not self._constant(root) else (root, hash((tuple(node.output), k)))
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def _constant(self, root: str) -> bool:
        data = self.values[root].data
        return data is not None and data.size > 1 and bool((data == data.flat[0]).all())

    def _neutral(self, node: NodeProto, k: int, value: _Value) -> bool:
        """Is it the 1 or 0 that an exporter gives a norm without parameters, or the inner part of a group norm?"""
        if node.op_type not in NORMS or not self._constant_or_one(value, 1.0 if k == 1 else 0.0):
            return False
        maker = next((n for n in self.model.graph.node if node.input[0] in n.output), None)
        inner = node.op_type == "InstanceNormalization" and maker is not None and maker.op_type == "Reshape"
        return inner or (self.kinds.get(value.root) != "PARAMETER" and not re.search(r"\.(weight|bias)$", value.root))

    def _constant_or_one(self, value: _Value, number: float) -> bool:
        return value.data is not None and bool((value.data == number).all())

    # -- work

    def _work(self, node: NodeProto, ins: list[_Value | None], outs: list[_Value]) -> None:
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if op in FREE or all(v.data is not None for v in outs):
            return
        how = {a.name: a for a in node.attribute}
        wanted = [v.shape for v in (*ins[:2], outs[0]) if v is not None]
        if op not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN") or None in wanted or len(wanted) < 3:  # fmt: skip
            self.uncounted[op, self._module(node)] += 1
            return
        x, w, y = wanted
        assert x is not None
        assert w is not None
        assert y is not None
        if op in ("Conv", "ConvTranspose"):
            groups = how["group"].i if "group" in how else 1
            transposed = op == "ConvTranspose"
            window = math.prod(w[1:])  # inputs (of a transposed one, outputs) of a group times the kernel
            macs = math.prod(x if transposed else y) * window
            self._layer(node, ins, 1, "conv_transpose" if transposed else "conv", w[2:], w[1] * groups if transposed else w[0], macs, math.prod(y))  # fmt: skip
        elif op in ("Gemm", "MatMul"):
            turned = op == "Gemm" and "transA" in how and how["transA"].i
            macs = math.prod(y) * (x[0] if turned else x[-1])
            at = 1 if ins[1] is not None and ins[1].stored else 0
            stored = ins[at]
            neurons = y[-1] if at or len(y) < 2 else y[-2]
            if stored is not None and stored.stored:
                self._layer(node, ins, at, "linear", (), neurons, macs, math.prod(y))
            else:
                self.macs += macs
        else:  # x (T, N, I), w (D, gates * H, I), r (D, gates * H, H): each weight meets each step of each sample once
            r = ins[2]
            steps = x[0] * x[1]
            self.macs += steps * (math.prod(w) + (0 if r is None else r.size))

    def _layer(self, node: NodeProto, ins: list[_Value | None], at: int, op: str, kernel: tuple[int, ...], neurons: int, macs: int,
               elements: int) -> None:  # fmt: skip
        self.macs += macs
        weight, name = ins[at], self._name(node, ins[at])
        assert weight is not None
        row = self.layers.get(name)
        if row is None:
            bias = ins[2] if len(ins) > 2 and node.op_type != "MatMul" else self._added(node, neurons)
            params = weight.size if weight.stored else 0
            op = f"{op}{len(kernel)}d" if kernel else op
            row = self.layers[name] = _Row(name, op, kernel, neurons, params + (bias.size if bias is not None else 0))
        row.macs += macs
        row.output_elements += elements

    def _added(self, node: NodeProto, neurons: int) -> _Value | None:
        """The bias that an Add gives to the output of a MatMul."""
        for reader in self.readers.get(node.output[0], []):
            for name in reader.input if reader.op_type == "Add" else ():
                value = self.values.get(name)
                if value is not None and value.stored and value.size == neurons:
                    return value
        return None

    def _name(self, node: NodeProto, weight: _Value | None) -> str:
        """The layer's name: the owner of its weight, else the module that the node was made in."""
        if weight is not None and weight.root in self.tensors and weight.root.endswith(".weight"):
            return weight.root.removesuffix(".weight")
        name = self._module(node) or node.name or node.output[0]
        taken = self.layers.get(name)
        same = weight is not None and weight.stored and self.owners.setdefault(name, weight.root) == weight.root
        return name if taken is None or same else f"{name}/{node.name or node.output[0]}"

    @property
    def owners(self) -> dict[str, str]:
        return self.__dict__.setdefault("_owners", {})

    def _module(self, node: NodeProto) -> str:
        """`/encoders.0/conv1/Conv` -> `encoders.0.conv1`."""
        return ".".join(p for p in node.name.split("/")[1:-1] if p)

    # -- the sums

    def costs(self, samples: int) -> dict[str, Any]:
        return {
            "params": sum(self.params.values()),
            "params_bytes": self.params_bytes,
            **({"buffers": self.buffers} if self.buffers else {}),
            "macs": self.macs // samples,
            "flops": 2 * (self.macs // samples),
            "activation_bytes": self.activations // samples,
            "peak_forward_bytes": self.held + (self.given + self.peak) // samples,
        }

    def rows(self, samples: int) -> list[dict[str, Any]]:
        return [
            {"name": r.name, "op": r.op, "kernel": list(r.kernel), "neurons": r.neurons, "params": r.params,
             "macs": r.macs // samples, "output_elements": r.output_elements // samples}
            for r in self.layers.values()
        ]  # fmt: skip

    def dtype_name(self, name: str) -> str:
        from onnx import helper

        return str(helper.tensor_dtype_to_np_dtype(self.values[name].dtype))


def _reads(node: NodeProto) -> list[str]:
    """The tensors that a node reads, each once, those of its branches too."""
    names = dict.fromkeys(n for n in node.input if n)
    for a in node.attribute:
        for graph in [a.g, *a.graphs] if a.HasField("g") or a.graphs else ():
            for inner in graph.node:
                names |= dict.fromkeys(_reads(inner))
    return list(names)
