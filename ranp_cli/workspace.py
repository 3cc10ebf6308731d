"""What ops allocate and free inside themselves on a CPU, as torch's allocator sees it: convolutions, and mixed dtypes.

oneDNN wants its tensors in blocks of 16 channels (AVX-512), so it copies input, weight and output into that layout and
back; small convolutions unfold windows into columns. The sequences were read off the allocator's events for torch 2.13,
in fp32 and (with AVX-512's own bfloat16; coarser, the backward pass within a tenth or two) in 16 bits; tests/benchmarks/memory.py shows how well they foretell whole networks. On CUDA the workspace is cuDNN's choice: an
allowance there, and no part of a peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .attention import FLASH, HEADS, LAYER, attention_workspace
from .schema import op_name

BLOCK = 16
TURNED = 1.07  # rows that are turned round are a little longer than they were
SCRATCH = 4112  # bytes of oneDNN for each thread, and once more
NATIVE = 20480  # ATen's own loops take a single sample of fewer elements (all axes but the last)
CONVOLUTIONS = ("aten.convolution", "aten._convolution", "aten.convolution_backward")  # the second: of a traced module


@dataclass(frozen=True)
class Call:
    """One convolution: its tensors (x -> y), and their bytes plain and in blocks."""

    x: Tensor
    y: Tensor
    weight: Tensor
    stride: Any
    dilation: Any
    transposed: bool
    groups: int

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
        """Has oneDNN a kernel of its own for the weight's gradient, if there are channels enough?"""
        if self.x.ndim == 5:
            return not self.dilated and (self.strided or min(self.y.shape[2:]) > 2)
        reach = max(d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight.shape[2:], strict=True))
        return not self.dilated or reach <= min(self.y.shape[2:])

    def filled(self, inputs: bool = True) -> int:
        """Bytes of the weight with the output channels of each group filled up to a block, and its input channels."""
        fans = (self.y.shape[1] // self.groups, self.x.shape[1] // self.groups)
        more = math.prod(up(n) / n for n in (fans if inputs else fans[:1]))
        return int(size(self.weight) * more)

    @property
    def blocked(self) -> bool:
        """Does ATen hand it to oneDNN? (As in its `use_mkldnn`; 16 bits always, but for a depthwise transposed one.)"""
        if self.x.dtype == torch.bfloat16:
            return not (self.transposed and 1 < self.groups == self.x.shape[1])
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
    if backward:
        call = Call(args[1], args[0], args[2], args[4], args[6], args[7], args[9])
    else:
        call = Call(args[0], out, args[1], args[3], args[5], args[6], args[8])
    if not call.x.is_floating_point() or call.x.ndim < 4:
        return 0
    last = torch.channels_last_3d if call.x.ndim == 5 else torch.channels_last
    channels_last = not call.x.is_contiguous() and call.x.is_contiguous(memory_format=last)
    if not call.blocked:
        return columns(call, backward) + (relaid(call) if channels_last else 0)
    of_input, of_weight = (args[10][0], args[10][1]) if backward else (False, False)
    if channels_last:
        return last_backward(call, of_weight) if backward else last_forward(call)
    if call.x.dtype == torch.bfloat16:
        return half_backward(call, of_input) if backward else half_forward(call)
    return blocked_backward(call, of_input, of_weight) if backward else blocked_forward(call)


def last_forward(c: Call) -> int:
    """Over channels-last tensors nothing but the weight is copied, and copied into blocks."""
    if c.depthwise:
        return size(c.weight) // c.groups * up(c.groups)
    half = c.x.dtype == torch.bfloat16
    blocks = c.filled(inputs=c.groups > 1 and not half)
    return (size(c.weight) if c.window > 1 else 0) + blocks + (scratch() if c.groups == 1 or half else 0)


def last_backward(c: Call, of_weight: bool) -> int:
    """The weight's gradient in blocks beside the copies of the weight: 256 times a depthwise one, each group its own block."""
    w, fan, half = size(c.weight), c.x.shape[1] // c.groups, c.x.dtype == torch.bfloat16
    if c.depthwise and c.x.ndim == 4 and c.weight.shape[-1] <= 3 and not (half and c.strided):
        return 2 * w // c.groups * up(c.groups)
    if half and c.groups > 1:
        filled = sum(size(t) // t.shape[1] * c.groups * up(t.shape[1] // c.groups) for t in (c.x, c.y))
        return 3 * c.filled() + int(TURNED * filled / c.x.shape[0]) if of_weight else w + c.filled(inputs=False)
    if half and not c.dilated:
        return 4 * w
    if of_weight and c.window > 1 and not c.transposed and not c.fits and (fan >= BLOCK or c.dilated):
        return w + each_sample(c) * (unfolded(c) + size(c.x) // c.x.shape[0])
    if c.groups > 1:
        return c.filled() + (w if c.window == 1 or c.depthwise else 2 * w)
    return c.filled() + max(w if c.window == 1 else 2 * w, scratch(c.strided) - w)


def unfolded(c: Call) -> int:
    """The windows of one slice of a sample and the weights besides, as each thread has them."""
    fan, places = c.x.shape[1] // c.groups, math.prod((c.x if c.transposed else c.y).shape[-2:])
    weights = 6 if c.x.dtype == torch.bfloat16 else 4
    return fan * c.window * places * c.x.element_size() + weights * size(c.weight)


def each_sample(c: Call) -> int:
    """The threads at work: over volumes each has a sample of its own, over pictures a part of one."""
    return min(torch.get_num_threads(), c.x.shape[0] if c.x.ndim == 5 else torch.get_num_threads())


def scratch(of_input: bool = False) -> int:
    """Bytes that a oneDNN convolution has besides its tensors; more for the gradient of a strided one's input."""
    threads = torch.get_num_threads()
    return SCRATCH * (3 + 6 * threads if of_input else 1 + threads)


def up(channels: int) -> int:
    """Filled up to whole blocks."""
    return -(-channels // BLOCK) * BLOCK


def blocked_forward(c: Call) -> int:
    """Input and weight are copied, the output is made in blocks, and copied back when the first two are gone."""
    o, o_blocks = size(c.y), padded(c.y, 1)
    reads = padded(c.x, c.groups) if c.x.shape[1] >= BLOCK or c.transposed or c.window == 1 else 0
    twice = c.transposed or (c.x.ndim == 5 and c.groups == c.x.shape[1] == c.y.shape[1])  # the copy is copied once more
    weight = c.filled(inputs=c.x.shape[1] >= BLOCK) if c.groups == 1 and not c.transposed else size(c.weight)
    return max(reads + weight + o_blocks - o, o_blocks + (o if twice else 0))


def blocked_backward(c: Call, of_input: bool, of_weight: bool) -> int:
    """First the gradient of the input (where one is wanted), in blocks, then that of the weight, from copies or columns."""
    i, w, threads = size(c.x), size(c.weight), torch.get_num_threads()
    i_blocks, o_blocks = padded(c.x, c.groups), padded(c.y, c.groups)
    first = o_blocks + i_blocks - i if of_input else 0
    if of_input and c.strided and not c.transposed:
        first = max(first + (scratch(True) if c.groups == 1 else 0), 2 * i_blocks)
    if not of_weight:
        return first
    fan = c.x.shape[1] // c.groups
    if c.transposed or c.window == 1 or (fan >= BLOCK and c.fits):
        second = max(o_blocks + i_blocks + (threads - 1) * w, c.filled())
    elif fan <= 3 and c.groups == 1:
        second = max(padded(c.y, 1), c.filled(inputs=False))
    else:
        second = each_sample(c) * unfolded(c)
    return max(first, second)


def half_forward(c: Call) -> int:
    """As in fp32; a 1x1 convolution adds up in fp32, each thread over all positions of a sample."""
    if c.window == 1 and not c.transposed and c.groups == 1:
        return padded(c.x, 1) + padded(c.y, 1) + size(c.weight) + sums(c.y) - size(c.y)
    if padded(c.y, 1) > size(c.y) and (c.transposed or c.groups > 1):
        return max(padded(c.y, 1), padded(c.x, c.groups) + size(c.weight))
    return blocked_forward(c)


def half_backward(c: Call, of_input: bool) -> int:
    """First the gradient of the input, then that of the weight, for which each thread turns a sample of both round."""
    i_blocks, o_blocks = padded(c.x, c.groups), padded(c.y, c.groups)
    narrow = c.y.shape[1] < BLOCK
    first = i_blocks if c.strided or (c.transposed and narrow) else o_blocks + i_blocks - size(c.x)
    if c.depthwise and c.strided:
        first = max((c.x.ndim - 3) * i_blocks, o_blocks + 2 * BLOCK * size(c.weight) + 4 * scratch())
    if c.window == 1 and c.groups == 1:
        first += sums(c.x)
    threads, fan = torch.get_num_threads(), c.x.shape[1] // c.groups
    both, sums_of_weight = i_blocks + o_blocks, 2 * size(c.weight)
    turned = both + TURNED * threads * both / c.x.shape[0] + sums_of_weight
    if c.window == 1 and c.groups == 1 and (c.x.ndim == 4 or min(fan, c.y.shape[1]) <= BLOCK):
        second = both + sums_of_weight
    elif (c.x.ndim == 5 and (c.groups > 1 or c.dilated)) or c.depthwise or (narrow and (fan < BLOCK or c.transposed)):
        second = each_sample(c) * unfolded(c)
    elif fan < BLOCK:
        second = both + sums_of_weight
    else:
        second = int(turned)
    return max(first if of_input else 0, second)


def sums(t: Tensor) -> int:
    """Bytes of fp32 sums for one sample of t, for each thread."""
    return torch.get_num_threads() * 4 * padded(t, 1) // t.element_size() // t.shape[0]


def relaid(c: Call) -> int:
    """ATen's own loops take channels-last tensors of two axes, with the weight turned, and others as copies."""
    return size(c.x) if c.x.ndim == 5 else size(c.weight) if c.window > 1 else 0


def columns(c: Call, backward: bool) -> int:
    """Windows unfolded for the whole batch."""
    if c.window == 1:
        return size(c.x) if backward else 0
    if c.transposed:
        rows = c.y.shape[1] * c.window * math.prod(c.x.shape[2:])
        return (rows + (0 if backward else math.prod(c.y.shape[2:]))) * c.x.element_size()
    return c.x.shape[0] * c.x.shape[1] * c.window * math.prod(c.y.shape[2:]) * c.x.element_size()


def size(t: Tensor) -> int:
    return t.numel() * t.element_size()


def padded(t: Tensor, groups: int) -> int:
    """Bytes with the channels filled up to whole blocks; grouped convolutions are left as they are."""
    return size(t) if groups > 1 else size(t) // t.shape[1] * up(t.shape[1])
