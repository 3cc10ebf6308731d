"""Element-wise ops: index i of the output meets index i of every operand, so their labels tie where they broadcast."""

from __future__ import annotations

from . import rule

UNARY = """
    abs acos acosh asin asinh atan atanh bitwise_not ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 floor
    frac i0 isfinite isinf isnan lgamma log log10 log1p log2 logical_not logit mish nan_to_num neg positive rad2deg
    reciprocal round rsqrt sgn sigmoid sign signbit silu sin sinc sinh sqrt square tan tanh trunc
    relu relu6 leaky_relu elu celu selu gelu softplus hardtanh hardswish hardsigmoid hardshrink softshrink
    log_sigmoid_forward threshold rrelu rrelu_with_noise clamp clamp_min clamp_max clip
    clone contiguous detach alias lift lift_fresh lift_fresh_copy detach_copy alias_copy _to_copy
    to type_as dropout native_dropout feature_dropout alpha_dropout bernoulli
    _conj conj _conj_physical conj_physical resolve_conj resolve_neg angle fake_quantize_per_tensor_affine
""".split()

BINARY = """
    add sub rsub subtract div divide true_divide floor_divide remainder fmod pow float_power
    maximum minimum fmax fmin atan2 hypot copysign xlogy logaddexp logaddexp2 lerp addcdiv nextafter
    eq ne lt le gt ge not_equal less less_equal greater greater_equal
    logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift
    where masked_fill heaviside polar complex
""".split()

# Constants of the shape of another tensor: index i of theirs goes with index i of the other.
LIKE = (
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like fill zero copy normal uniform".split()
)


@rule(*(f"aten.{name}" for name in UNARY + BINARY + LIKE))
def elementwise(ties, *operands, out, **options):
    """Labels of the operands tie where they broadcast together."""
    shape = out[0] if isinstance(out, list) else out
    tensors = [t for t in (*operands, *options.values()) if hasattr(t, "planes")]
    planes = ties.merge(shape, tensors)
    if isinstance(out, list):  # a second output (a mask, a norm) carries labels where it has the shape of the first
        return [planes if s == shape else None for s in out]
    return planes


@rule("aten.mul", "aten.multiply")
def mul(ties, a, b, *, out):
    """Labels of the operands tie where they broadcast together."""
    for factor, other in ((a, b), (b, a)):
        if getattr(other, "is_data", False) and hasattr(factor, "planes"):
            ties.scale(factor)
    return elementwise(ties, a, b, out=out)


@rule("aten.addcmul")
def addcmul(ties, x, a, b, *, out, value=1):
    """Labels of the operands tie where they broadcast together."""
    mul(ties, a, b, out=out)
    return elementwise(ties, x, a, b, out=out)


LOSSES = """
    mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits l1_loss
    kl_div
""".split()


@rule(*(f"aten.{name}" for name in LOSSES))
def loss(ties, x, target, *args, out, **options):
    """Element by element; reduced to one number, it is a mean over all that it sees, which is fixed."""
    tensors = [x, target, *(t for t in args if hasattr(t, "planes"))]
    planes = ties.merge(x.shape, tensors)
    if tuple(out) == tuple(x.shape):
        return planes
    for t in tensors:
        ties.fix(t.ids(), "a loss over channels")
    return None


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(ties, x, weight, *, out):
    """Axis 1 of x ties with the slopes, one for each channel or one for all."""
    # x (N, C, *S), weight (C), (1) or, already expanded, (1, C, 1, ...) -> y (N, C, *S)
    if weight.ndim == 1:
        ties.tie(ties.vector(x, 1 if x.ndim > 1 else 0), ties.vector(weight, 0))
        return x.planes
    return ties.merge(out, [x, weight])


CONSTANTS = """
    zeros ones full empty empty_strided rand randn randint randperm arange linspace logspace eye scalar_tensor
    tril_indices triu_indices new_zeros new_ones new_full new_empty new_empty_strided _local_scalar_dense
    is_same_size _assert_async _assert_tensor_metadata item
""".split()


@rule(*(f"aten.{name}" for name in CONSTANTS))
def constant(ties, *args, out, **options):
    """A constant of a shape given as numbers carries no labels: it must adapt by itself."""


@rule("aten._weight_norm_interface", "aten._weight_norm")
def weight_norm(ties, v, g, dim=0, *, out):
    """g and v tie along `dim`; along the other axes a zeroed slice of v leaves the norm as a removed one does."""
    # v of the weight's shape, g of size 1 but along dim -> weight, norm
    ties.consume(ties.along(v, [a for a in range(v.ndim) if a != dim % v.ndim]))
    planes = ties.merge(v.shape, [g, v])  # g names the labels of dim: it can be zeroed, a zeroed v would be 0/0
    return [planes] if isinstance(out, list) else planes
