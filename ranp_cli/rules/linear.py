"""Matrix products. A parameter as the right factor is a linear layer; two computed factors (attention) contract channels
that no weight can make good for, so those are fixed."""

from __future__ import annotations

from typing import Any

from . import rule
from .labels import Labels


def contract(ties, a: Labels, i: int, b: Labels, j: int) -> None:
    """Axis i of a is summed against axis j of b."""
    va, vb = ties.vector(a, i), ties.vector(b, j)
    if a.is_data and b.is_data:
        for v in (va, vb):
            ties.fix(v, "contracted with computed values (attention)")
    ties.tie(va, vb)
    for t, v in ((a, va), (b, vb)):
        if not t.is_data:
            ties.consume(v)


def product(ties, a: Labels, b: Labels, out, bias: Labels | None = None) -> tuple[Any, ...]:
    """Planes of a @ b over the last two axes: rows of a, columns of b, a batch axis that ties."""
    n = len(out)
    contract(ties, a, -1, b, -2)
    rows = ties.collapse(a, [-1])
    columns = ties.collapse(b, [-2])
    for side, other, axis in ((b, a, -1), (a, b, -2)):
        if side.origin and not side.is_data and other.is_data:
            ties.layer("linear", side, ties.vector(side, axis), axis=axis % side.ndim, bias=bias is not None)
    pad = [
        Labels(out, tuple(p.reshape((1,) * (n - p.ndim) + tuple(p.shape)) for p in t.planes)) for t in (rows, columns)
    ]
    if bias is not None:
        pad.append(bias)
    result: tuple[Any, ...] = ties.merge(out, pad)
    return result


@rule("aten.mm", "aten.bmm", "aten.matmul", free=False)
def mm(ties, a, b, *, out):
    """[m, p] = [m, k] @ [k, p]: k ties, m and p pass."""
    return product(ties, a, b, out)


@rule("aten.addmm", "aten.baddbmm", free=False)
def addmm(ties, bias, a, b, *, out, beta=1, alpha=1):
    """[m, p] = [p] + [m, k] @ [k, p]: k ties, m and p pass."""
    return product(ties, a, b, out, bias)


@rule("aten.linear", free=False)
def linear(ties, x, weight, bias=None, *, out):
    """[..., p] = [..., k] @ [p, k].T + [p]: k ties, p passes."""
    turned = Labels(weight.shape[::-1], tuple(p.t() for p in weight.planes), weight.origin)
    contract(ties, x, -1, turned, -2)
    neurons = ties.vector(weight, 0)
    if weight.origin:
        ties.layer("linear", weight, neurons, axis=0, bias=bias is not None)
    passed = ties.collapse(x, [-1]).planes
    mine = () if neurons is None else (neurons.view([1] * (len(out) - 1) + [-1]),)
    bias_planes = [bias] if bias is not None else []
    return ties.merge(out, [Labels(out, (*passed, *mine)), *bias_planes])


@rule("aten.mv", free=False)
def mv(ties, a, x, *, out):
    """[m] = [m, k] @ [k]: k ties, m passes."""
    contract(ties, a, 1, x, 0)
    return tuple(p.squeeze(1) for p in ties.collapse(a, [1]).planes)


@rule("aten.dot", "aten.vdot", free=False)
def dot(ties, a, b, *, out):
    """[] = [k] @ [k]: k ties."""
    contract(ties, a, 0, b, 0)


@rule("aten.embedding", free=True)
def embedding(ties, weight, indices, *args, out):
    """Rows are picked by the input and stay; columns pass."""
    ties.fix(ties.along(weight, [0]), "rows of an embedding")
    columns = ties.vector(weight, 1)
    return () if columns is None else (columns.view([1] * (len(out) - 1) + [-1]),)


ATTENTION = """
    aten.scaled_dot_product_attention aten._scaled_dot_product_flash_attention
    aten._scaled_dot_product_flash_attention_for_cpu aten._scaled_dot_product_efficient_attention
    aten._scaled_dot_product_cudnn_attention aten._scaled_dot_product_attention_math
    aten._scaled_dot_product_fused_attention_overrideable
""".split()


@rule(*ATTENTION, free=False)
def attention(ties, q, k, v, *args, out, **options):
    """Queries and keys contract channels and the scale depends on their count, so they stay; values pass."""
    for t in (q, k):
        ties.fix(t.ids(), "contracted with computed values (attention)")
    shape = out[0] if isinstance(out, list) else out
    ties.fix(ties.along(v, [-2]), "contracted with computed values (attention)")
    passed = ties.collapse(v, [-2]).planes
    planes = ties.merge(shape, [Labels(shape, passed)])
    return [planes] if isinstance(out, list) else planes
