"""Multiply-adds of the ops that `torch.utils.flop_counter` has no formula for, from shapes alone and without torch.

A formula has the parameters of the ATen schema, with shapes in the place of tensors, and `out`: the shape of the output
(a list of shapes when there are several). It returns multiply-adds, as the ops would cost that torch would otherwise
have taken: a fused layer counts what its matrix products and attention count when they are run one by one.

Element-wise work (activations, gates, scales, biases, softmax) counts nothing, here as in torch's own formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

Axis = TypeVar("Axis", int, str)
Shape = Sequence[int]
FORMULAS: dict[str, Callable[..., int]] = {}  # by name without overload, as rules are


def formula(*names: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register the formula of ops. A second one for an op raises."""

    def register(fn: Callable[..., int]) -> Callable[..., int]:
        for name in names:
            if name in FORMULAS:
                raise ValueError(f"{name} has a formula already: {FORMULAS[name].__qualname__}")
            FORMULAS[name] = fn
        return fn

    return register


# -- products


@formula("aten.mv")
def mv(a: Shape, x: Shape, *, out: Any) -> int:
    """[m] = [m, k] @ [k]"""
    return math.prod(a)


@formula("aten.addmv")
def addmv(y: Shape, a: Shape, x: Shape, *, out: Any, **scales: Any) -> int:
    """[m] = [m] + [m, k] @ [k]"""
    return math.prod(a)


@formula("aten.dot", "aten.vdot")
def dot(a: Shape, b: Shape, *, out: Any) -> int:
    """[] = [k] @ [k]"""
    return math.prod(a)


@formula("aten.addbmm")
def addbmm(y: Shape, a: Shape, b: Shape, *, out: Any, **scales: Any) -> int:
    """[m, p] = [m, p] + sum over n of [n, m, k] @ [n, k, p]"""
    return math.prod(a) * b[2]


@formula("aten._addmm_activation")
def addmm_activation(y: Shape, a: Shape, b: Shape, *, out: Any, **how: Any) -> int:
    """[m, p] = f([p] + [m, k] @ [k, p])"""
    return math.prod(a) * b[1]


@formula("aten._int_mm")
def int_mm(a: Shape, b: Shape, *, out: Any) -> int:
    """[m, p] = [m, k] @ [k, p], of whole numbers"""
    return math.prod(a) * b[1]


@formula("aten.conv_tbc")
def conv_tbc(x: Shape, weight: Shape, bias: Shape, pad: int = 0, *, out: Any) -> int:
    """[t', n, o] = a convolution along t of [t, n, i] by [k, i, o]"""
    result: int = math.prod(out) * weight[0] * weight[1]
    return result


@formula("aten._trilinear")
def trilinear(
    a: Shape,
    b: Shape,
    c: Shape,
    expand1: Any,
    expand2: Any,
    expand3: Any,
    sumdim: Any,
    unroll_dim: int = 1,
    *,
    out: Any,
) -> int:
    """nn.Bilinear: a and b are contracted first, over the axes that c has not, then the result with c.

    For x1 [n, i], weight [o, i, j], x2 [n, j]: n o i j and n o j, as the two products would cost one after the other.
    """
    rank = len(a) + len(expand1)
    sizes: list[dict[int, int]] = []  # axis -> size, of the axes that each factor really has
    for shape, missing in ((a, expand1), (b, expand2), (c, expand3)):
        own = [axis for axis in range(rank) if axis not in missing]
        sizes.append(dict(zip(own, shape, strict=True)))
    return contractions([set(s) for s in sizes], set(range(rank)) - set(sumdim), sizes[0] | sizes[1] | sizes[2])


def contractions(factors: Sequence[set[Axis]], kept: set[Axis], sizes: dict[Axis, int]) -> int:
    """The multiply-adds of a product of factors, given by their axes, taken pair by pair from the left.

    An axis is summed as soon as no later factor and not the output has it. One that only a single factor has is added
    up beforehand, and a pair with nothing to sum is an element-wise product: neither counts.
    """
    total = 0
    left = factors[0]
    for k, right in enumerate(factors[1:], 2):
        later = kept.union(*factors[k:])
        left = left - (left - right - later)
        right = right - (right - left - later)
        if (left & right) - later:
            total += math.prod(sizes[axis] for axis in left | right)
        left = (left | right) & later
    return total


def einsum(equation: str, shapes: Sequence[Shape]) -> int:
    """The multiply-adds of an einsum, its factors taken pair by pair from the left, as torch takes them.

    Example:
        >>> einsum("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)])
        120
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    factors, sizes = [], {}  # type: list[list[str]], dict[str, int]
    for term, shape in zip(terms.split(","), shapes, strict=True):
        free = len(shape) - len(term.replace("...", ""))  # axes that the dots stand for, numbered from the right
        axes = _axes(term, free)
        factors.append(axes)
        sizes |= {axis: max(n, sizes.get(axis, 1)) for axis, n in zip(axes, shape, strict=True)}
    dots = {axis for axis in sizes if len(axis) > 1}
    implied = dots | {
        axis for axis in sizes if terms.count(axis) == 1
    }  # as numpy has it: the dots, and what stands once
    kept = set(_axes(result, len(dots))) if arrow else implied
    return contractions([set(axes) for axes in factors], kept, sizes)


def _axes(term: str, dots: int) -> list[str]:
    before, _, after = term.partition("...")
    return [*before, *(f"..{k}" for k in range(dots, 0, -1) if "..." in term), *after]


# -- attention


@formula(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def attention(q: Shape, k: Shape, v: Shape, *how: Any, out: Any, **options: Any) -> int:
    """[n, h, s, e'] = softmax([n, h, s, e] @ [n, h, t, e].T) @ [n, h, t, e']; masked places count, as in the products"""
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


@formula("aten._scaled_dot_product_flash_attention_for_cpu_backward")
def attention_backward(grad: Shape, q: Shape, k: Shape, v: Shape, *how: Any, out: Any, **options: Any) -> int:
    """b h n m (3 d + 2 e): the scores once more, then the gradients of weights, values, queries and keys"""
    return q[0] * q[1] * q[2] * k[2] * (3 * q[3] + 2 * v[3])


@formula("aten._native_multi_head_attention")
def multi_head_attention(
    q: Shape,
    k: Shape,
    v: Shape,
    embed_dim: int,
    num_head: int,
    qkv_weight: Shape,
    qkv_bias: Shape,
    proj_weight: Shape,
    *how: Any,
    out: Any,
    **options: Any,
) -> int:
    """nn.MultiheadAttention in one op: [n, s, e] attends to [n, t, e]; weights [3e, e] and [e, e]"""
    n, s, e = q
    t = k[1]
    return n * (s + 2 * t) * e * e + n * s * t * 2 * e + n * s * math.prod(proj_weight)


@formula("aten._transformer_encoder_layer_fwd")
def encoder_layer(
    src: Shape,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Shape,
    qkv_bias: Shape,
    proj_weight: Shape,
    proj_bias: Shape,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Shape,
    norm_bias_1: Shape,
    norm_weight_2: Shape,
    norm_bias_2: Shape,
    ffn_weight_1: Shape,
    ffn_bias_1: Shape,
    ffn_weight_2: Shape,
    *rest: Any,
    out: Any,
    **options: Any,
) -> int:
    """nn.TransformerEncoderLayer in one op: attention, and two linear layers for each of the n s places"""
    own = multi_head_attention(src, src, src, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, out=out)
    return own + math.prod(src[:-1]) * (math.prod(ffn_weight_1) + math.prod(ffn_weight_2))


# -- recurrent layers: each weight meets each step of each sample once


@formula("aten.mkldnn_rnn_layer")
def mkldnn_rnn_layer(x: Shape, w_input: Shape, w_hidden: Shape, *rest: Any, out: Any, **options: Any) -> int:
    """One direction of one layer on a CPU: x [t, n, i], weights [gates h, i] and [gates h, h]"""
    return math.prod(x[:-1]) * (math.prod(w_input) + math.prod(w_hidden))


@formula("aten._cudnn_rnn")
def cudnn_rnn(x: Shape, weights: Iterable[Shape], *rest: Any, out: Any, **options: Any) -> int:
    """All layers and directions on a GPU: x [t, n, i] (or [steps, i], packed); of the weights, biases have one axis"""
    return math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) > 1)
