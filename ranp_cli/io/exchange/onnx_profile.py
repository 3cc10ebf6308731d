"""What an ONNX file costs, counted from the file alone, without torch."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, one_line, shortened
from ...core.reading import readable
from ...core.spelling import spelled
from .onnx_count import Count
from .onnx_shapes import axes_in

if TYPE_CHECKING:
    from onnx import ModelProto


ONE_FILE = 1_900_000_000  # bytes of weights; a protobuf holds at most 2 GB, so larger ones lie in a file beside it
MOST_NODES, MOST_DEPTH = 100_000, 100  # of a graph, and of functions that call functions
FOUR_BITS = (21, 22, 23, 25, 26)  # types of onnx.TensorProto of fewer than 8 bits
# what counting raises for a graph that the checker lets pass but that makes no sense, such as a Conv of vectors
_UNSOUND = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    RuntimeError,
)


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
    model = read_onnx(Path(path))
    import onnx

    try:
        return _counted(model, path, input_shapes)
    except (*_UNSOUND, onnx.checker.ValidationError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is no sound ONNX model ({one_line(error, 80)}); write it anew") from error


def _counted(model: ModelProto, path: str | Path, input_shapes: Any) -> dict[str, Any]:
    import onnx

    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    stored = {t.name for t in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    inputs = {v.name: v for v in model.graph.input if v.name not in stored}
    shapes = _shapes_of(path, inputs, _as_shapes(input_shapes))
    count = Count(model, shapes)
    for node in model.graph.node:
        count.see(node)
    samples = next((s[0] for s in shapes.values() if len(s) > 1 and s[0]), 1)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    signature = {
        "args": [{"shape": list(s), "dtype": count.dtype_name(name)} for name, s in shapes.items()],
        "kwargs": {},
    }
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


def read_onnx(path: Path) -> ModelProto:
    """The model in a file, which is small enough, sound by ONNX's own checker, and holds what it declares."""
    import onnx

    DecodeError = importlib.import_module("google.protobuf.message").DecodeError
    wanted = "give an .onnx file"
    try:
        model = onnx.load(str(readable(path, str(path), wanted=wanted)), load_external_data=False)
    except (DecodeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is not an ONNX file, or is truncated; {wanted}") from error
    if not model.ir_version or not model.HasField("graph"):
        raise BadInput(f"{path} is not an ONNX file, or is truncated: it holds no graph; {wanted}")
    _check_calls(model, path)
    large = model.ByteSize() >= ONE_FILE or any(t.data_location for t in model.graph.initializer)
    try:
        onnx.checker.check_model(str(path) if large else model)
        for tensor in model.graph.initializer:
            _check_tensor(tensor)
    except (onnx.checker.ValidationError, ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"{path} is no sound ONNX model, or is truncated: {shortened(error, 150)}; write it anew"
        ) from error
    return model


def _check_calls(model: ModelProto, path: Path) -> None:
    """BadInput where the functions of a model, written out, are too many nodes: functions that call functions grow fast."""
    functions = {(f.domain, f.name): f.node for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Any, depth: int) -> int:
        if depth > MOST_DEPTH:
            raise BadInput(
                f"{path}: its functions call one another more than {MOST_DEPTH} deep; write it anew, inlined"
            )
        total = 0
        for node in nodes:
            called = (node.domain, node.op_type)
            if called in functions and called not in sizes:
                sizes[called] = size(functions[called], depth + 1)
            inner = [graph for a in node.attribute for graph in (a.g, *a.graphs) if graph.node]
            total += sizes.get(called, 1) + sum(size(graph.node, depth + 1) for graph in inner)
            if total > MOST_NODES:
                raise BadInput(
                    f"{path}: has more than {MOST_NODES:,} nodes, its functions written out; give a smaller graph"
                )
        return total

    size(model.graph.node, 0)


def _check_tensor(tensor: Any) -> None:
    """ValueError where a stored tensor holds more or fewer bytes than its shape says."""
    from onnx import helper

    count = math.prod(tensor.dims)
    if min(tensor.dims, default=1) < 0:
        raise ValueError(f"tensor {tensor.name[:40]} has the shape {list(tensor.dims)[:8]}")
    if tensor.data_location or not tensor.HasField("raw_data"):
        held, wanted = _typed(tensor), count
    else:
        held, wanted = len(tensor.raw_data), count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    packed = tensor.data_type in FOUR_BITS  # two numbers a byte
    if (
        not tensor.data_location
        and not packed
        and held not in (wanted, 2 * wanted if tensor.data_type in (14, 15) else wanted)
    ):
        raise ValueError(f"tensor {tensor.name[:40]} holds {held} of {wanted}")


def _typed(tensor: Any) -> int:
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    return sum(len(getattr(tensor, name)) for name in fields)


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
        raise BadInput(
            f"{path} has {len(inputs)} inputs ({names}), {len(given)} shapes were given; give {spelled('inputs')} for each, in order"
        )
    shapes = {}
    for k, (name, value) in enumerate(inputs.items()):
        known = value.type.tensor_type.HasField("shape")
        dims = axes_in(value) if known else []
        asked = given[k] if given is not None else None
        declared = "x".join(str(d) for d in dims)
        if asked is None:
            free = [str(d) for d in dims[1:] if isinstance(d, str)]
            if free or not known:
                hint = "x".join(str(d) if isinstance(d, int) else "1" if a == 0 else "64" for a, d in enumerate(dims))
                raise BadInput(
                    f"{path}: axes {', '.join(free) or 'of unknown number'} of input '{name}' are dynamic; give {spelled('inputs')}, as in {spelled('inputs', hint or '1x1x64x64x64')}"
                )
            asked = tuple(1 if isinstance(d, str) else d for d in dims)
        elif known and (
            len(asked) != len(dims)
            or any(isinstance(d, int) and d != n for d, n in zip(dims[1:], asked[1:], strict=True))
        ):
            raise BadInput(
                f"{path}: input '{name}' is {declared}, the shape given is {'x'.join(map(str, asked))}; give one that fits"
            )
        batch = dims[0] if dims and isinstance(dims[0], int) else 1
        shapes[name] = (batch, *asked[1:]) if asked else ()
    return shapes
