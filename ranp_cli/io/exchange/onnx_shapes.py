"""The shapes of an ONNX graph's tensors, node by node, and the numbers of those that shapes are computed with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"}  # their output is their input's memory
SMALL = 4096  # numbers; values up to this size are followed through the graph, as they may be shapes
# the ops that shapes are computed with: the work of each is that of its inputs and outputs, which are small
FOLDED = set(
    # element-wise
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil "
    "Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor "
    # layout
    "Compress Concat Constant ConstantOfShape DepthToSpace Dropout Expand EyeLike Flatten Gather GatherElements GatherND "
    "Identity OneHot Pad Range Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice SpaceToDepth Split "
    "Squeeze Tile Transpose Trilu Unsqueeze NonZero".split()
) | {f"Reduce{how}" for how in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")}


@dataclass
class Value:
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


@dataclass
class Inference:
    """What the nodes of a model give; `values` has what is known so far, and is filled in by whoever goes through them."""

    model: ModelProto
    values: dict[str, Value]

    def __post_init__(self) -> None:
        self.opsets = {o.domain: o.version for o in self.model.opset_import}
        self.told = {v.name: v for v in [*self.model.graph.value_info, *self.model.graph.output]}

    def outputs(self, node: NodeProto) -> list[Value]:
        """Shapes of the outputs, and their numbers where they are made of known ones."""
        ins = {name: self.values[name] for name in node.input if name in self.values}
        named = [name for name in node.input if name]
        view = node.op_type in VIEWS and node.input[0] in ins
        stored = bool(named) and all(name in ins and ins[name].stored for name in named)
        root = ins[node.input[0]].root if view else ""
        data = self._evaluate(node, ins, named)
        if data is not None:
            from onnx import helper

            return [
                Value(d.shape, helper.np_dtype_to_tensor_dtype(d.dtype), root if stored and root else name, d, stored)
                for d, name in zip(data, node.output, strict=False)
            ]
        types = self._types(node, ins)
        outs = []
        for k, name in enumerate(node.output):
            shape, dtype = types.get(name, (None, 1))
            if shape is None and name in self.told:
                dims = axes_in(self.told[name])
                if self.told[name].type.tensor_type.HasField("shape") and all(isinstance(d, int) for d in dims):
                    shape, dtype = tuple(int(d) for d in dims), self.told[name].type.tensor_type.elem_type
            followed = (
                root
                if (view or (stored and node.op_type in ("Transpose", "Cast", "DequantizeLinear"))) and k == 0
                else name
            )
            if stored and not view and k == 0 and followed != name:
                followed = ins[node.input[0]].root
            outs.append(Value(shape, dtype, followed or name, None, stored and node.op_type != "Shape"))
        return outs

    def _evaluate(self, node: NodeProto, ins: dict[str, Value], named: list[str]) -> list[np.ndarray] | None:
        """The numbers that a node gives, when they are known and few: the shapes that a graph computes with."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in FOLDED | {"Shape", "Size"}:
            return None
        if node.op_type in ("Shape", "Size") and node.input[0] in ins:
            value = ins[node.input[0]]
            if value.shape is None:
                return None
            how = {a.name: a.i for a in node.attribute}
            sizes = np.array(value.shape, np.int64)
            return [
                np.int64(value.size).reshape(())
                if node.op_type == "Size"
                else sizes[how.get("start", 0) : how.get("end")]
            ]
        if any(name not in ins or ins[name].data is None for name in named) or (
            not named and node.op_type != "Constant"
        ):
            return None
        types = self._types(node, ins)
        if any(
            shape is None or math.prod(shape) > SMALL for shape, _ in (types.get(n, (None, 1)) for n in node.output)
        ):
            return None
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        feeds = {name: ins[name].data for name in named}
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(n, ins[n].dtype, list(ins[n].shape or ())) for n in dict.fromkeys(named)],
            [helper.make_tensor_value_info(n, types[n][1], None) for n in node.output],
        )
        try:
            made = helper.make_model(
                graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
            )
            return [np.asarray(v) for v in ReferenceEvaluator(made).run(None, feeds)]
        except Exception:  # an op that onnx has no numpy form of: its shape is still inferred
            return None

    def _types(self, node: NodeProto, ins: dict[str, Value]) -> dict[str, tuple[tuple[int, ...] | None, int]]:
        import onnx
        from onnx import helper, numpy_helper

        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, self.opsets.get("ai.onnx", 1)), domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {n: helper.make_tensor_type_proto(v.dtype, v.shape) for n, v in ins.items() if v.shape is not None},
                {n: numpy_helper.from_array(v.data, n) for n, v in ins.items() if v.data is not None},
                opset_imports=list(self.model.opset_import),
                ir_version=self.model.ir_version,
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError, TypeError, ValueError):
            return {}
        types: dict[str, tuple[tuple[int, ...] | None, int]] = {}
        for name, proto in found.items():
            dims = proto.tensor_type.shape.dim
            known = proto.tensor_type.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in dims)
            types[name] = (tuple(d.dim_value for d in dims) if known else None, proto.tensor_type.elem_type)
        return types


def axes_in(value: Any) -> list[int | str]:
    return [
        d.dim_param or ("?" if d.WhichOneof("value") is None else d.dim_value) for d in value.type.tensor_type.shape.dim
    ]
