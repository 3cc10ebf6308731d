"""The costs of an ONNX graph, added up node by node: parameters, multiply-adds, activations, peak."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.flop_formulas import attention, einsum
from .onnx_shapes import FOLDED, SMALL, VIEWS, Inference, Value

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


KIND = "pkg.torch.export.graph_signature.InputSpec.kind"  # torch writes it beside an initializer: PARAMETER or BUFFER
# what the profile knowingly counts no multiply-adds for, as the rules of torch ops have it
FREE = FOLDED | set(
    # normalisation, reduction, windows
    "ArgMax ArgMin AveragePool BatchNormalization CumSum GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "GroupNormalization Hardmax InstanceNormalization LRN LayerNormalization LogSoftmax LpNormalization LpPool MaxPool "
    "MeanVarianceNormalization RMSNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare Resize Softmax TopK Upsample "
    # numbers out of nothing, other number formats
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli DequantizeLinear QuantizeLinear".split()
)
NORMS = {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "BatchNormalization"}
WEIGHTS = {  # which inputs of an op are parameters
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "Gather": (0,),
    "GRU": (1, 2, 3),
    "LSTM": (1, 2, 3, 7),
    "RNN": (1, 2, 3),
    **dict.fromkeys(NORMS, (1, 2)),
}
SCALES = {"Mul", "Add", "Sub", "Div", "Pow", "Concat", "Expand", "Where"}  # of these, tensors of several numbers are


@dataclass
class Row:
    name: str
    op: str
    kernel: tuple[int, ...]
    neurons: int
    params: int
    macs: int = 0
    output_elements: int = 0
    output_bytes: int = 0


@dataclass
class Count:
    """Goes through the nodes in order, with the shape of every tensor, and adds up."""

    model: ModelProto
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Value] = field(default_factory=dict)
    layers: dict[str, Row] = field(default_factory=dict)
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
        self.inference = Inference(self.model, self.values)
        self.kinds = {v.name: p.value for v in graph.value_info for p in v.metadata_props if p.key == KIND}
        self.tensors = {t.name: t for t in graph.initializer}
        for t in graph.initializer:
            shape = tuple(t.dims)
            data = numpy_helper.to_array(t) if math.prod(shape) <= SMALL and not t.data_location else None
            self.values[t.name] = Value(shape, t.data_type, t.name, data, stored=True)
            self.held += self.values[t.name].bytes
        for v in graph.input:
            if v.name in self.shapes:
                self.values[v.name] = Value(self.shapes[v.name], v.type.tensor_type.elem_type, v.name)
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
        outs = self.inference.outputs(node)
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

    # -- parameters

    def _parameters(self, node: NodeProto, ins: list[Value | None]) -> None:
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
            elif (
                place
                or kind == "PARAMETER"
                or (node.op_type in SCALES and (value.size > 1 or self._called(value.root)))
            ):
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

    def _neutral(self, node: NodeProto, k: int, value: Value) -> bool:
        """Is it the 1 or 0 that an exporter gives a norm without parameters, or the inner part of a group norm?"""
        if node.op_type not in NORMS or not self._constant_or_one(value, 1.0 if k == 1 else 0.0):
            return False
        maker = next((n for n in self.model.graph.node if node.input[0] in n.output), None)
        inner = node.op_type == "InstanceNormalization" and maker is not None and maker.op_type == "Reshape"
        return inner or (self.kinds.get(value.root) != "PARAMETER" and not re.search(r"\.(weight|bias)$", value.root))

    def _constant_or_one(self, value: Value, number: float) -> bool:
        return value.data is not None and bool((value.data == number).all())

    # -- work

    def _work(self, node: NodeProto, ins: list[Value | None], outs: list[Value]) -> None:
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if op in FREE or all(v.data is not None for v in outs):
            return
        how = {a.name: a for a in node.attribute}
        wanted = [v.shape for v in (*ins[:2], outs[0]) if v is not None]
        if (products := self._products(op, how, ins)) is not None:
            self.macs += products
            return
        if (
            op not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN")
            or None in wanted
            or len(wanted) < 3
        ):
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
            self._layer(
                node,
                ins,
                1,
                "conv_transpose" if transposed else "conv",
                w[2:],
                w[1] * groups if transposed else w[0],
                macs,
                math.prod(y),
            )
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

    def _products(self, op: str, how: dict[str, Any], ins: list[Value | None]) -> int | None:
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

    def _layer(
        self,
        node: NodeProto,
        ins: list[Value | None],
        at: int,
        op: str,
        kernel: tuple[int, ...],
        neurons: int,
        macs: int,
        elements: int,
    ) -> None:
        self.macs += macs
        weight, name = ins[at], self._name(node, ins[at])
        assert weight is not None
        row = self.layers.get(name)
        if row is None:
            bias = ins[2] if len(ins) > 2 and node.op_type != "MatMul" else self._added(node, neurons)
            params = weight.size if weight.stored else 0
            op = f"{op}{len(kernel)}d" if kernel else op
            row = self.layers[name] = Row(name, op, kernel, neurons, params + (bias.size if bias is not None else 0))
        row.macs += macs
        row.output_elements += elements
        row.output_bytes += elements * weight.bytes // max(1, weight.size)

    def _added(self, node: NodeProto, neurons: int) -> Value | None:
        """The bias that an Add gives to the output of a MatMul."""
        for reader in self.readers.get(node.output[0], []):
            for name in reader.input if reader.op_type == "Add" else ():
                value = self.values.get(name)
                if value is not None and value.stored and value.size == neurons:
                    return value
        return None

    def _name(self, node: NodeProto, weight: Value | None) -> str:
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
            {
                "name": r.name,
                "op": r.op,
                "kernel": list(r.kernel),
                "neurons": r.neurons,
                "params": r.params,
                "macs": r.macs // samples,
                "output_elements": r.output_elements // samples,
                "output_bytes": r.output_bytes // samples,
            }
            for r in self.layers.values()
        ]

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
