"""What single convolutions allocate inside themselves, forward and backward, against what torch's CPU allocator reports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from allocator import peak_of

from ranp_cli.costs.cpu_workspace import convolution_workspace

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the blocks of 16 channels are those of AVX-512"
    ),
]

# batch, channels in and out, kernel, stride, places, and what else sets it apart
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 32, 32, 3, 1, 12), {}),
    "first layer": ((2, 1, 16, 3, 1, 16), {}),
    "few inputs": ((2, 6, 16, 3, 1, 12), {}),
    "few outputs": ((2, 16, 6, 3, 1, 12), {}),
    "1d strided": ((2, 8, 32, 4, 4, 1024), {"dims": 1}),
    "strided": ((2, 32, 64, 3, 2, 12), {}),
    "strided 1x1 2d": ((2, 64, 32, 1, 2, 32), {"dims": 2}),
    "patches 2d": ((1, 3, 64, 16, 16, 96), {"dims": 2}),
    "patches": ((1, 1, 96, 8, 8, 32), {"of_input": False}),
    "large patches": ((1, 1, 64, 16, 16, 48), {}),
    "transposed to 1": ((2, 16, 1, 2, 2, 12), {"transposed": True}),
    "transposed to 2": ((2, 16, 2, 3, 2, 12), {"transposed": True}),
    "transposed to 6": ((2, 32, 6, 2, 2, 8), {"transposed": True}),
    "transposed to 12, 2d": ((2, 32, 12, 4, 2, 16), {"transposed": True, "dims": 2}),
    "transposed, no bias": ((2, 16, 8, 3, 2, 8), {"transposed": True, "bias": False}),
    "transposed, one small sample": ((1, 64, 2, 2, 2, 16), {"transposed": True}),
    "transposed, groups of 6": ((2, 24, 24, 2, 2, 8), {"transposed": True, "groups": 4}),
    "transposed depthwise": ((2, 16, 16, 2, 2, 8), {"transposed": True, "groups": 16}),
    "transposed depthwise 2d": ((2, 20, 20, 3, 2, 16), {"transposed": True, "groups": 20, "dims": 2}),
    "groups of 16": ((2, 32, 32, 3, 1, 12), {"groups": 2}),
    "groups of 6, strided": ((2, 24, 24, 3, 2, 12), {"groups": 4}),
    "depthwise": ((2, 20, 20, 3, 1, 12), {"groups": 20}),
    "depthwise strided": ((2, 32, 32, 3, 2, 16), {"groups": 32}),
    "depthwise 2d": ((2, 20, 20, 3, 1, 32), {"groups": 20, "dims": 2}),
    "depthwise 2d, 7x7": ((2, 32, 32, 7, 1, 16), {"groups": 32, "dims": 2}),
    "dilated": ((2, 32, 32, 3, 1, 12), {"dilation": 2}),
}
CHANNELS_LAST: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 32, 64, 3, 1, 8), {}),
    "depthwise": ((2, 64, 64, 3, 1, 8), {"groups": 64}),
    "depthwise 2d, 7x7": ((2, 64, 64, 7, 1, 16), {"groups": 64, "dims": 2}),
}


THREADS = [
    *((1, name) for name in CONVOLUTIONS),
    *(
        (2, name)
        for name in ("plain", "few outputs", "1d strided", "large patches", "transposed to 2", "groups of 6, strided")
    ),
]


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """`peak_of` collects garbage first: what was loaded before need not be gone through every time."""
    gc.freeze()
    yield
    gc.unfreeze()


def errors(shape: tuple[int, ...], dims: int = 3, groups: int = 1, dilation: int = 1, transposed: bool = False,
           bias: bool = True, of_input: bool = True, dtype: torch.dtype = torch.float32,
           memory_format: torch.memory_format = torch.contiguous_format) -> tuple[float, float]:  # fmt: skip
    """By how much the forward's and the backward's peak are off, as a part of all that is alive at them."""
    n, inputs, outputs, k, stride, places = shape
    x = torch.randn(n, inputs, *[places] * dims, dtype=dtype).to(memory_format=memory_format)
    fans = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    weight = torch.randn(*fans, *[k] * dims, dtype=dtype)
    b = torch.randn(outputs, dtype=dtype) if bias else None
    padding = 0 if transposed or k == stride else k // 2 * dilation
    args = ([stride] * dims, [padding] * dims, [dilation] * dims, transposed, [0] * dims, groups)
    y = torch.ops.aten.convolution(x, weight, b, *args)
    g, mask = torch.randn_like(y), [of_input, True, bias]
    sizes = [outputs] if bias else None

    def forward() -> None:
        torch.ops.aten.convolution(x, weight, b, *args)

    def backward() -> None:
        torch.ops.aten.convolution_backward(g, x, weight, sizes, *args, mask)

    told = [
        y.nbytes + convolution_workspace("aten.convolution", (x, weight, b, *args), y),
        of_input * x.nbytes + weight.nbytes
        + convolution_workspace("aten.convolution_backward", (g, x, weight, sizes, *args, mask), None),
    ]  # fmt: skip
    alive = x.nbytes + weight.nbytes
    off = []
    for run, expected, operands in zip((forward, backward), told, (alive, alive + y.nbytes), strict=True):
        run()
        off.append((expected - peak_of(run)) / (expected + operands))
    return off[0], off[1]


@pytest.mark.parametrize(("threads", "name"), THREADS)
def test_what_a_convolution_copies(threads: int, name: str) -> None:
    torch.set_num_threads(threads)
    shape, more = CONVOLUTIONS[name]
    forward, backward = errors(shape, **more)
    assert abs(forward) < 0.02
    assert abs(backward) < 0.06


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_what_it_copies_in_channels_last(name: str) -> None:
    shape, more = CHANNELS_LAST[name]
    last = torch.channels_last if more.get("dims") == 2 else torch.channels_last_3d
    assert max(map(abs, errors(shape, **more, memory_format=last))) < 0.04


@pytest.mark.parametrize(
    "name", [n for n, (_, more) in CONVOLUTIONS.items() if "groups" in more or "transposed" in more]
)
def test_what_it_copies_in_16_bits(name: str) -> None:
    shape, more = CONVOLUTIONS[name]
    assert max(map(abs, errors(shape, **more, dtype=torch.bfloat16))) < 0.08


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("depth", "kernel", "padding"),
    [(1, (1, 3, 3), 0), (1, (3, 1, 1), 1), (2, (3, 3, 3), 1), (3, (3, 3, 3), 1), (2, (3, 1, 1), 2), (3, (5, 1, 1), 2), (4, (5, 1, 1), 2)],
)  # fmt: skip
def test_volumes_of_little_depth_have_their_windows_unfolded(depth, kernel, padding, stride) -> None:
    x, weight = torch.randn(2, 32, depth, 6, 6), torch.randn(32, 32, *kernel)
    args = ([stride, 1, 1], [padding, kernel[1] // 2, kernel[2] // 2], [1, 1, 1], False, [0, 0, 0], 1)
    g, mask = torch.randn_like(torch.ops.aten.convolution(x, weight, None, *args)), [True, True, False]

    def backward() -> None:
        torch.ops.aten.convolution_backward(g, x, weight, None, *args, mask)

    told = x.nbytes + weight.nbytes
    told += convolution_workspace("aten.convolution_backward", (g, x, weight, None, *args, mask), None)
    backward()
    assert told == pytest.approx(peak_of(backward), rel=0.1)
