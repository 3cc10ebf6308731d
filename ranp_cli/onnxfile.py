"""What an ONNX file costs, counted from the file alone, without torch."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .counts import attention, einsum
from .errors import BadInput

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


ONE_FILE = 1_900_000_000  # bytes of weights; a protobuf holds at most 2 GB, so larger ones lie in a file beside it
KIND = "pkg.torch.export.graph_signature.InputSpec.kind"  # torch writes it beside an initializer: PARAMETER or BUFFER
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

    model = read_onnx(Path(path))
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


def read_onnx(path: Path) -> ModelProto:
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
        dims = axes_in(value) if known else []
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
                dims = axes_in(self.told[name])
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
            elif place or kind == "PARAMETER" or (node.op_type in SCALES and (value.size > 1 or self._called(value.root))):  # fmt: skip
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

    def _called(self, root: str) -> bool:
        """In a file that does not say what is a parameter: is this the name of one, and not made up by the exporter?"""
        return not self.kinds and not re.match(r"(?i)onnx::|val_|/|_|const|\d+$", root)

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
        if (products := self._products(op, how, ins)) is not None:
            self.macs += products
            return
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

    def _products(self, op: str, how: dict[str, Any], ins: list[_Value | None]) -> int | None:
        """The multiply-adds of an op that multiplies tensors and is no layer; None for other ops and unknown shapes."""
        shapes = [v.shape if v is not None else None for v in ins]
        if op == "Einsum":
            known = [s for s in shapes if s is not None]
            return einsum(how["equation"].s.decode(), known) if len(known) == len(shapes) else None
        if op != "Attention" or len(shapes) < 3:
            return None
        q, k, v = shapes[:3]
        if q is None or k is None or v is None:
            return None
        if len(q) == 3:  # (batch, places, heads * channels): the heads lie side by side
            heads, kv_heads = how["q_num_heads"].i, how["kv_num_heads"].i
            q, k, v = ((n, h, s, c // h) for (n, s, c), h in ((q, heads), (k, kv_heads), (v, kv_heads)))
        past = shapes[4] if len(shapes) > 4 else None
        k = (*k[:-2], k[-2] + (past[-2] if past is not None else 0), k[-1])
        return attention(q, k, v, out=None)

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


def axes_in(value: Any) -> list[int | str]:
    return [d.dim_param or ("?" if d.WhichOneof("value") is None else d.dim_value) for d in value.type.tensor_type.shape.dim]  # fmt: skip
