"""What a convolution allocates and frees inside itself on a CPU, as torch's allocator sees it.

oneDNN wants its tensors in blocks of 16 channels (AVX-512), so it copies input, weight and output into that layout and
back; small convolutions unfold windows into columns. The sequences were read off the allocator's events for torch 2.13,
in fp32 and (with AVX-512's own bfloat16; coarser, the backward pass within a tenth or two) in 16 bits; tests/benchmarks/memory.py shows how well they foretell whole networks. On CUDA the workspace is cuDNN's choice: an
allowance there, and no part of a peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 16
TURNED = 1.07  # rows that are turned round are a little longer than they were
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
    def blocked(self) -> bool:
        """Does ATen hand it to oneDNN? (As in its `use_mkldnn`; 16 bits always, but for a depthwise transposed one.)"""
        if self.x.dtype == torch.bfloat16:
            return not (self.transposed and 1 < self.groups == self.x.shape[1])
        kernel = self.weight.shape[-2:]
        worth = any(n != 1 for n in (*self.stride, *self.dilation, *kernel))
        worth = worth or self.x.shape[0] >= 16 or torch.get_num_threads() > 1
        large = self.groups > 1 or min(kernel) > 3 or self.x.shape[0] > 1 or math.prod(self.x.shape[:4]) > NATIVE
        return worth and large and self.x.dtype == torch.float32


def convolution_workspace(name: str, args: Any, out: Any) -> int:
    """Bytes alive inside an `aten.convolution` or `aten.convolution_backward`, besides its operands and results."""
    backward = name.endswith("backward")
    if backward:
        call = Call(args[1], args[0], args[2], args[4], args[6], args[7], args[9])
    else:
        call = Call(args[0], out, args[1], args[3], args[5], args[6], args[8])
    if not call.x.is_floating_point() or call.x.ndim < 4:
        return 0
    if not call.blocked:
        return columns(call, backward)
    last = torch.channels_last_3d if call.x.ndim == 5 else torch.channels_last
    if not call.x.is_contiguous() and call.x.is_contiguous(memory_format=last):
        return (4 if backward else 2) * size(call.weight)  # nothing but the weight is copied
    of_input, of_weight = (args[10][0], args[10][1]) if backward else (False, False)
    if call.x.dtype == torch.bfloat16:
        return half_backward(call, of_input) if backward else half_forward(call)
    return blocked_backward(call, of_input, of_weight) if backward else blocked_forward(call)


def blocked_forward(c: Call) -> int:
    """Input and weight are copied, the output is made in blocks, and copied back when the first two are gone."""
    o, o_blocks = size(c.y), padded(c.y, 1)
    reads = padded(c.x, c.groups) if c.x.shape[1] >= BLOCK or c.transposed or c.window == 1 else 0
    twice = c.transposed or (c.x.ndim == 5 and c.groups == c.x.shape[1] == c.y.shape[1])  # the copy is copied once more
    return max(reads + size(c.weight) + o_blocks - o, o_blocks + (o if twice else 0))


def blocked_backward(c: Call, of_input: bool, of_weight: bool) -> int:
    """First the gradient of the input (where one is wanted), in blocks, then that of the weight, from copies or columns."""
    i, w = size(c.x), size(c.weight)
    i_blocks, o_blocks = padded(c.x, c.groups), padded(c.y, c.groups)
    first = o_blocks + i_blocks - i if of_input else 0
    strided = any(n != 1 for n in c.stride)
    if of_input and strided and not c.transposed:
        first = max(first, 2 * i_blocks)
    if not of_weight:
        return first
    threads, fan = torch.get_num_threads(), c.x.shape[1] // c.groups
    dilated = any(n != 1 for n in c.dilation)
    if c.transposed or c.window == 1 or (fan >= BLOCK and not dilated and (strided or min(c.y.shape[2:]) > 2)):
        second = o_blocks + i_blocks + (threads - 1) * w
    elif fan <= 3 and c.groups == 1:
        second = padded(c.y, 1)
    else:
        copies = threads if c.x.ndim == 5 else 1
        second = copies * (fan * c.window * math.prod(c.y.shape[-2:]) * c.x.element_size() + 4 * w)
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
    strided, narrow = any(n != 1 for n in c.stride), c.y.shape[1] < BLOCK
    first = i_blocks if strided or (c.transposed and narrow) else o_blocks + i_blocks - size(c.x)
    if c.window == 1 and c.groups == 1:
        first += sums(c.x)
    threads, fan = torch.get_num_threads(), c.x.shape[1] // c.groups
    both, sums_of_weight = i_blocks + o_blocks, 2 * size(c.weight)
    turned = both + TURNED * threads * both / c.x.shape[0] + sums_of_weight
    if c.window == 1 and c.groups == 1 and (c.x.ndim == 4 or min(fan, c.y.shape[1]) <= BLOCK):
        second = both + sums_of_weight
    elif c.groups > 1 or any(n != 1 for n in c.dilation) or (narrow and (fan < BLOCK or c.transposed)):
        places = math.prod((c.x if c.transposed else c.y).shape[-2:])
        second = threads * (fan * c.window * places * c.x.element_size() + 3 * sums_of_weight)
    elif fan < BLOCK:
        second = both + sums_of_weight
    else:
        second = int(turned)
    return max(first if of_input else 0, second)


def sums(t: Tensor) -> int:
    """Bytes of fp32 sums for one sample of t, for each thread."""
    return torch.get_num_threads() * 4 * padded(t, 1) // t.element_size() // t.shape[0]


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
    return size(t) if groups > 1 else size(t) // t.shape[1] * (-(-t.shape[1] // BLOCK) * BLOCK)
