"""What ops allocate and free inside themselves on a CPU, as torch's allocator sees it: convolutions, and mixed dtypes.

oneDNN wants its tensors in blocks of 16 channels (AVX-512), so it copies input, weight and output into that layout and
back; where it has no kernel for that, windows are unfolded into columns. The sequences were read off the allocator's
events, and the layouts off ONEDNN_VERBOSE=1, for torch 2.13, in fp32 and (with AVX-512's own bfloat16) in 16 bits: there,
with several threads, the gradient of the weight is told within a fifth or so. tests/benchmarks/memory.py shows how well
they estimate whole networks. On CUDA the workspace is cuDNN's choice: an allowance there, and no part of a peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..core.aten import op_name
from ..core.tensors import is_channels_last
from .cpu_attention import FLASH, HEADS, LAYER, attention_workspace

BLOCK = 16
TURNED = 1.07  # rows that are turned round are a little longer than they were
SCRATCH = 4112  # bytes of oneDNN for each thread, and once more
SLICE = 512  # places of a slice, for each thread, from which on the threads share it
SAMPLE = 16384  # bytes by which its buffer for a sample grows
LONG = 14  # longer kernels have no gradient of the weight of their own in oneDNN
NATIVE = 20480  # ATen's own loops take a single sample of fewer elements (all axes but the last)
CONVOLUTIONS = ("aten.convolution", "aten._convolution", "aten.convolution_backward")  # the second: of a traced module


@dataclass(frozen=True)
class ConvCall:
    """One convolution x -> y. A transposed one is another's gradient: `inner` and `outer` are that other's input and output."""

    x: Tensor
    y: Tensor
    weight: Tensor
    bias: bool
    stride: Any
    padding: Any
    dilation: Any
    transposed: bool
    groups: int

    @property
    def half(self) -> bool:
        return self.x.dtype == torch.bfloat16

    @property
    def inner(self) -> Tensor:
        return self.y if self.transposed else self.x

    @property
    def outer(self) -> Tensor:
        return self.x if self.transposed else self.y

    @property
    def fan(self) -> int:
        return self.inner.shape[1] // self.groups

    @property
    def volume(self) -> bool:
        return self.x.ndim == 5

    @property
    def pointwise(self) -> bool:
        return self.window == 1 and not (self.volume and self.strided)

    @property
    def unit(self) -> int:
        """Channels of a block: those of grouped convolutions have to fill it, or (0) windows are unfolded."""
        if self.groups == 1 or self.depthwise:
            return 0 if self.depthwise and self.volume else BLOCK
        fans = (self.fan, self.outer.shape[1] // self.groups)
        return next((n for n in (BLOCK, 8, 4) if not any(fan % n for fan in fans)), 0)

    @property
    def window(self) -> int:
        return math.prod(self.weight.shape[2:])

    @property
    def depthwise(self) -> bool:
        return 1 < self.groups == self.x.shape[1] == self.y.shape[1]

    @property
    def strided(self) -> bool:
        return any(n != 1 for n in self.stride)

    @property
    def dilated(self) -> bool:
        return any(n != 1 for n in self.dilation)

    @property
    def fits(self) -> bool:
        """Has oneDNN a kernel of its own for the weight's gradient, if there are channels enough?

        Not for volumes where a window that begins in the padding reaches to the end of the depth.
        """
        if self.x.ndim == 5:
            depth, before, window = self.inner.shape[2], self.padding[0], self.weight.shape[2]
            return not self.dilated and (before == 0 or depth + before > window)
        reach = max(d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight.shape[2:], strict=True))
        return not self.dilated or reach <= min(self.outer.shape[2:])

    def filled(self, inputs: bool = True) -> int:
        """Bytes of the weight with the output channels of each group filled up to a block, and its input channels."""
        fans = (self.y.shape[1] // self.groups, self.x.shape[1] // self.groups)
        more = math.prod(round_up(n) / n for n in (fans if inputs else fans[:1]))
        return int(size(self.weight) * more)

    @property
    def blocked(self) -> bool:
        """Does ATen hand it to oneDNN? (As in its `use_mkldnn`; 16 bits always.)"""
        if self.half:
            return True
        kernel = self.weight.shape[-2:]
        worth = any(n != 1 for n in (*self.stride, *self.dilation, *kernel))
        worth = worth or self.x.shape[0] >= 16 or torch.get_num_threads() > 1
        large = self.groups > 1 or min(kernel) > 3 or self.x.shape[0] > 1 or math.prod(self.x.shape[:4]) > NATIVE
        return worth and large and self.x.dtype == torch.float32


def workspace(func: Any, args: Any, out: Any) -> int:
    """Bytes alive inside an op besides its operands and results."""
    if (name := op_name(func)) in CONVOLUTIONS:
        return convolution_workspace(name, args, out)
    if name == "aten._safe_softmax":  # a flag for each number: is its row masked altogether?
        return int(out.numel())
    if name.startswith(FLASH) or name in (HEADS, LAYER):
        return attention_workspace(name, args)
    return casts(args, out) if torch.Tag.pointwise in func.tags and isinstance(out, Tensor) else 0


def casts(args: Any, out: Tensor) -> int:
    """Element-wise ops over several dtypes: every operand, and an output in place, is copied into the common one."""
    operands = [t for t in args if isinstance(t, Tensor) and t.ndim > 0]
    if len(operands) > 2 and operands[0].dtype == torch.bool:  # `where`'s condition stays as it is
        operands = operands[1:]
    if all(t.dtype == out.dtype for t in operands):
        return 0
    common = reduce(torch.promote_types, (t.dtype for t in operands))
    if out.is_floating_point() and not common.is_floating_point:  # a quotient, a root
        common = out.dtype
    return sum(t.numel() for t in operands if t.dtype != common) * common.itemsize


def convolution_workspace(name: str, args: Any, out: Any) -> int:
    """Bytes alive inside an `aten.convolution` or `aten.convolution_backward`, besides its operands and results."""
    backward = name.endswith("backward")
    x, y = (args[1], args[0]) if backward else (args[0], out)
    weight, bias, *geometry = args[2 if backward else 1 :]
    if not x.is_floating_point() or x.ndim < 3:
        return 0
    stride, padding, dilation, transposed, _, groups = geometry[:6]
    if x.ndim == 3:  # a picture of one row
        x, y, weight = (t.unsqueeze(2) for t in (x, y, weight))
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    call = ConvCall(x, y, weight, bias is not None, stride, padding, dilation, transposed, groups)
    channels_last = is_channels_last(call.x)
    if not call.blocked:
        return columns(call, backward) + (relaid(call) if channels_last else 0)
    of_input, of_weight = (args[10][0], args[10][1]) if backward else (False, False)
    if channels_last:
        return last_backward(call, of_weight) if backward else last_forward(call)
    return blocked_backward(call, of_input, of_weight) if backward else blocked_forward(call)


def last_forward(c: ConvCall) -> int:
    """Over channels-last tensors nothing but the weight is copied, and copied into blocks."""
    if c.depthwise:
        return size(c.weight) // c.groups * round_up(c.groups)
    half = c.half
    blocks = c.filled(inputs=c.groups > 1 and not half)
    return (size(c.weight) if c.window > 1 else 0) + blocks + (scratch() if c.groups == 1 or half else 0)


def last_backward(c: ConvCall, of_weight: bool) -> int:
    """The weight's gradient in blocks beside the copies of the weight: 256 times a depthwise one, each group its own block."""
    w, fan, half = size(c.weight), c.x.shape[1] // c.groups, c.half
    if c.depthwise and c.x.ndim == 4 and c.weight.shape[-1] <= 3 and not (half and c.strided):
        return 2 * w // c.groups * round_up(c.groups)
    if half and c.groups > 1:
        filled = sum(size(t) // t.shape[1] * c.groups * round_up(t.shape[1] // c.groups) for t in (c.x, c.y))
        return 3 * c.filled() + int(TURNED * filled / c.x.shape[0]) if of_weight else w + c.filled(inputs=False)
    if half and not c.dilated:
        return 4 * w
    if of_weight and c.window > 1 and not c.transposed and not c.fits and (fan >= BLOCK or c.dilated):
        return w + unfolded(c) + each_sample(c) * size(c.x) // c.x.shape[0]
    if c.groups > 1:
        return c.filled() + (w if c.window == 1 or c.depthwise else 2 * w)
    return c.filled() + max(w if c.window == 1 else 2 * w, (strided_scratch(c) if c.strided else scratch()) - w)


def unfolded(c: ConvCall) -> int:
    """The windows of one slice of a sample and the weights four times for each thread, and as often once more of 16 bits."""
    threads = each_sample(c)
    return threads * window_rows(c) + 4 * (threads + c.half) * size(c.weight)


def each_sample(c: ConvCall, forward: bool = False) -> int:
    """The threads at work, each on a group of a sample; of a large picture, or a single one, they share the windows."""
    tasks, threads = c.x.shape[0] * c.groups, torch.get_num_threads()
    single = c.x.shape[0] == 1 and c.groups <= 2
    shared = not (forward or c.depthwise) and (single or math.prod(c.outer.shape[-2:]) >= SLICE * threads)
    return 1 if shared else min(threads, tasks)


def scratch() -> int:
    """Bytes that a oneDNN convolution has besides its tensors."""
    return SCRATCH * (1 + torch.get_num_threads())


def strided_scratch(c: ConvCall) -> int:
    """More for the gradient of a strided one's input: each thread has a padded sample of the output."""
    threads = torch.get_num_threads()
    rows = zip(c.outer.shape[2:], c.weight.shape[2:], c.stride, c.padding, strict=True)
    places = math.prod(n + 2 * ((k - 1) // s) - (0 < p < k) * (k > s) for n, k, s, p in rows)
    sample = places * round_up(c.outer.shape[1], 8) * c.x.element_size()
    return SCRATCH * (3 + (2 + c.half) * threads) + threads * round_up(sample, SAMPLE // (1 + c.half))


def round_up(n: int, unit: int = BLOCK) -> int:
    """Filled up to whole blocks."""
    return -(-n // unit) * unit


def blocked_forward(c: ConvCall) -> int:
    """Input and weight are copied, the output is made in blocks, and copied back when the first two are gone."""
    copies, blocks, again = to_inner(c) if c.transposed else to_outer(c)
    return max(copies + blocks - size(c.y), blocks + again * size(c.y))


def blocked_backward(c: ConvCall, of_input: bool, of_weight: bool) -> int:
    """First the gradient of the input (where one is wanted), as in a forward, then that of the weight."""
    i, w, first = size(c.x), size(c.weight), 0
    if of_input:
        copies, blocks, again = to_outer(c) if c.transposed else to_inner(c)
        first = max(copies + blocks - i, blocks + again * i) - of_weight * w
    return max(first, to_weight(c) if of_weight else 0)


def to_outer(c: ConvCall) -> tuple[int, int, bool]:
    """A convolution's output: bytes of what is copied, of the output in blocks, and whether its copy is copied once more."""
    if not c.unit:
        if c.depthwise:
            return size(c.inner) + filled(c, BLOCK), size(c.outer), True
        return each_sample(c, forward=True) * window_rows(c), size(c.outer), False
    sums = fp32_sums(c, c.outer) + thinned(c)
    reads = blocks_of(c.inner, c) if c.groups > 1 or c.fan >= BLOCK or c.pointwise else 0
    return reads + sums + filled(c, c.unit, reads > 0), blocks_of(c.outer, c), False


def to_inner(c: ConvCall) -> tuple[int, int, bool]:
    """The gradient of its input: a strided one's is made channels last, and copied twice if there are several."""
    whole = not any(k % s for k, s in zip(c.weight.shape[2:], c.stride, strict=True))
    biased = c.bias and c.transposed  # without the bias at first
    fp32 = (1 + c.half) * biased  # in numbers of 32 bits
    if c.groups == 1:
        last = True
    elif c.half:
        last = c.depthwise or not c.unit
    else:
        last = (
            not c.depthwise and c.outer.shape[1] // c.groups % BLOCK == 0 and (not c.unit or (c.transposed and whole))
        )
    long = max(c.weight.shape[2:]) > LONG and (c.volume or c.fan == 1)
    if c.strided and last and (not long or c.half):
        reads = size(c.outer) if c.outer.shape[1] > 1 else 0
        sums = 0 if whole or not c.transposed else fp32 * size(c.inner) + torch.get_num_threads() * SAMPLE
        copies = reads + filled_inputs(c) + strided_scratch(c) + sums
        return copies, size(c.inner), c.inner.shape[1] > 1
    if not c.unit or long:
        return fp32 * size(c.inner) + each_sample(c) * window_rows(c), size(c.inner), False
    blocks = blocks_of(c.inner, c)
    return fp32 * blocks + blocks_of(c.outer, c) + filled(c, c.unit) + fp32_sums(c, c.inner), blocks, False


def to_weight(c: ConvCall) -> int:
    """The gradient of its weight, from copies of both sides in blocks of 16 or 8 channels, or from unfolded windows."""
    padded_volume, longest, outer = c.volume and any(c.padding), max(c.weight.shape[2:]), c.outer.shape[1]
    flat, unit = c.groups == 1 and c.fan <= (BLOCK - 1 if c.half else 3) and not c.pointwise, c.unit
    if longest > (3 if c.depthwise else 2 * LONG if c.half and flat else LONG) or unit == 4:
        unit = 0
    elif c.half:
        narrow = flat and outer % BLOCK > 0
        unit = BLOCK if unit == BLOCK and not narrow and not (c.volume and c.dilated) else 0
    elif c.groups == 1 and c.fan < BLOCK and not c.pointwise:
        unit = BLOCK if flat else 0 if padded_volume or c.dilated else 8
    elif (unit == 8 and (padded_volume or c.dilated)) or not (c.depthwise or c.pointwise or c.fits):
        unit = 0
    if not unit:
        return unfolded(c)
    weight = size(c.weight) // outer * round_up(outer) if flat else filled(c, unit)
    reads = thinned(c) + blocks_of(c.outer, c, unit) + (0 if flat else blocks_of(c.inner, c, unit))
    if c.half:
        reads += 2 * weight + (0 if c.depthwise else turned(c, flat))
    elif others := parts(c, unit, weight) - 1:
        reads += others * weight + SCRATCH * torch.get_num_threads()
    return max(reads + weight - size(c.weight), weight)


def parts(c: ConvCall, unit: int, weight: int) -> int:
    """In how many parts the threads take the batch, each with a weight of its own: whatever moves the fewest bytes."""
    if c.groups > 1:
        return 1
    threads, inner, outer = (
        torch.get_num_threads(),
        4 * size(c.inner) / math.prod(c.stride),
        blocks_of(c.outer, c, unit),
    )
    inner_blocks, outer_blocks = (-(-t.shape[1] // unit) for t in (c.inner, c.outer))
    best = (math.inf, 1)
    for m in range(1, threads + 1):
        for o in (n for n in range(1, threads // m + 1) if outer_blocks % n == 0):
            i = max(n for n in range(1, threads // m // o + 1) if inner_blocks % n == 0)
            best = min(best, (inner / (m * i) + outer / (m * o) + 8 * weight / (o * i), m))
    return best[1]


def turned(c: ConvCall, flat: bool) -> int:
    """In 16 bits each thread turns a sample of both sides round, in rows that are a little longer."""
    if c.pointwise and (not c.volume or min(c.fan, c.outer.shape[1]) <= BLOCK):
        return 0
    width = c.inner.shape[-1]
    longer = round_up(width, 4) + 4 if c.strided else width + 2
    inner = 0 if flat else blocks_of(c.inner, c) / c.x.shape[0] * longer / width
    threads = min(torch.get_num_threads(), c.x.shape[0])
    return threads * int(inner + blocks_of(c.outer, c) / c.x.shape[0] + 2 * SCRATCH)


def fp32_sums(c: ConvCall, t: Tensor) -> int:
    """A 1x1 convolution in 16 bits adds up in 32, each thread over a sample."""
    if not c.half or not c.pointwise or c.groups > 1:
        return 0
    return torch.get_num_threads() * 2 * blocks_of(t, c) // t.shape[0]


def thinned(c: ConvCall) -> int:
    """Of a strided 1x1 convolution over pictures each thread has a sample with only the places it reads."""
    if not (c.pointwise and c.strided and c.groups == 1):
        return 0
    return torch.get_num_threads() * round_up(c.fan) * math.prod(c.outer.shape[2:]) * c.x.element_size()


def filled_inputs(c: ConvCall) -> int:
    """The weight of a strided one's input's gradient: the outputs of its groups fill no blocks, but pairs of 16 bits."""
    fan, out = c.fan, c.outer.shape[1] // c.groups
    blocks = round_up(fan, BLOCK if c.groups == 1 or c.half else 8)
    return size(c.weight) // (fan * out) * blocks * round_up(out, 1 + c.half)


def window_rows(c: ConvCall) -> int:
    """The windows of one slice of a sample, unfolded."""
    return c.fan * c.window * math.prod(c.outer.shape[-2:]) * c.x.element_size()


def blocks_of(t: Tensor, c: ConvCall, unit: int = BLOCK) -> int:
    """Bytes with the channels filled up to whole blocks; those of grouped convolutions fill theirs."""
    return size(t) if c.groups > 1 and not c.depthwise else size(t) // t.shape[1] * round_up(t.shape[1], unit)


def filled(c: ConvCall, unit: int, inputs: bool = True) -> int:
    """Bytes of the weight with its channels filled up to whole blocks (a depthwise one's groups)."""
    if c.depthwise:
        return size(c.weight) // c.groups * round_up(c.groups)
    fan, out = c.fan, c.outer.shape[1] // c.groups
    return size(c.weight) // (fan * out) * round_up(fan, unit if inputs else 1 + c.half) * round_up(out, unit)


def relaid(c: ConvCall) -> int:
    """ATen's own loops take channels-last tensors of two axes, with the weight turned, and others as copies."""
    return size(c.x) if c.x.ndim == 5 else size(c.weight) if c.window > 1 else 0


def columns(c: ConvCall, backward: bool) -> int:
    """Windows unfolded for the whole batch."""
    if c.window == 1 and not c.strided:
        if backward:
            return size(c.x) if c.volume or c.groups > 1 else 0
        return size(c.y) if c.groups > 1 else 0
    if c.transposed:
        rows = c.fan * c.window * math.prod(c.x.shape[2:]) * c.x.element_size()
        if backward or not c.volume:
            return rows
        return max(rows, size(c.x)) + c.bias * math.prod(c.y.shape[2:]) * c.x.element_size()
    return c.x.shape[0] * c.x.shape[1] * c.window * math.prod(c.y.shape[2:]) * c.x.element_size()


def size(t: Tensor) -> int:
    return t.numel() * t.element_size()
