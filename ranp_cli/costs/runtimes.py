"""The programs that networks run in: torch and its variants here, those that take ONNX in `onnx_runtimes.py`, their names in
`runtime_names.py`.

A runtime makes of a module and an input something to call, which runs the network once, in inference, and returns its
outputs. CUDA graphs ran on an H200; TensorRT is written to its documentation, and was never run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..core.contexts import SharedFlag, in_tf32, products, seeded
from ..core.errors import BadInput
from ..core.example import Example
from ..core.spelling import spelled
from ..core.tensors import channels_last, map_tensors, tensors_in

Run = Callable[[], Any]
EXACT = 1e-3  # of the outputs' scale, how far those of a runtime that computes in fp32 may be from the module's
TF32_ERRORS = 4  # in TF32: so many times what the rounding of weights and input alone moves them by


class Runtime(Protocol):
    """What networks are timed in; `exact`: it computes in fp32, as the module does."""

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def version(self) -> str: ...

    def prepare(self, module: nn.Module, example: Example, device: torch.device, threads: int) -> Run:
        """What runs `module`, a copy of its own in eval mode on `device`, and returns its outputs in order."""
        ...


# -- torch


@dataclass(frozen=True)
class Torch:
    """torch, op by op, as users run it; with channels last, or under autocast in bf16, where asked for."""

    name: str = "torch"
    channels_last: bool = False
    half: bool = False

    @property
    def exact(self) -> bool:
        return not self.half

    def version(self) -> str:
        return torch.__version__

    def prepare(self, module: nn.Module, example: Example, device: torch.device, threads: int) -> Run:
        if self.channels_last:
            module, example = to_channels_last(module), Example(*channels_last((example.args, example.kwargs)))
        device_type, half = device.type, self.half

        def run() -> list[Tensor]:
            with torch.no_grad(), torch.autocast(device_type, torch.bfloat16) if half else nullcontext():
                return tensors_in(module(*example.args, **example.kwargs))

        return run


def to_channels_last(module: nn.Module) -> nn.Module:
    """The module itself, its weights of 4 and 5 axes in the order that has the channels last."""
    with torch.no_grad():
        for p in module.parameters():
            if not p.is_meta:
                p.data = channels_last(p.data)
    return module


@dataclass(frozen=True)
class CudaGraph:
    """torch on a GPU with all kernels of a forward pass launched at once."""

    name: str = "cuda-graph"
    exact: bool = True

    def version(self) -> str:
        return torch.__version__

    def prepare(self, module: nn.Module, example: Example, device: torch.device, threads: int) -> Run:
        if device.type != "cuda":
            raise needs_cuda(self.name, device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):  # as torch asks for before a capture
                module(*example.args, **example.kwargs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.no_grad():
            outputs = tensors_in(module(*example.args, **example.kwargs))

        def run() -> list[Tensor]:
            graph.replay()
            return outputs

        return run


def needs_cuda(name: str, device: torch.device) -> BadInput:
    return BadInput(
        f"{spelled('runtime', name)} runs on a GPU, and the device is {device}; give {spelled('device', 'cuda')}, or another {spelled('runtime')}"
    )


# -- threads

_threads = SharedFlag(torch.get_num_threads, torch.set_num_threads)


@contextmanager
def on_threads(threads: int | None) -> Iterator[int]:
    """torch runs on so many threads inside, or on as many as before where that is None; yields how many these are."""
    if threads is None or threads == torch.get_num_threads():
        yield torch.get_num_threads()
        return
    with _threads.at(threads):
        yield threads


# -- is it the same network?


def difference(module: nn.Module, example: Example, outputs: Any) -> float:
    """How far the outputs of a runtime are from the module's, at most, as a share of their scale."""
    arrays = [t if isinstance(t, (Tensor, np.ndarray)) else t.numpy() for t in outputs]  # onnxruntime's own on a GPU
    return _distance(_outputs(module, example), [torch.as_tensor(each) for each in arrays])


def allowed_error(module: nn.Module, example: Example, device: torch.device) -> float:
    """The most that `difference` may be for a runtime that computes in fp32. The module is used up: its weights may be rounded.

    That is EXACT, and where torch may multiply in TF32 as well (its default for convolutions on a GPU), what this does to the
    outputs of this network: measured by rounding its weights and its input so, TF32_ERRORS times, as every layer's input is rounded too.
    """
    if not in_tf32(device):
        return EXACT
    with products(device):
        wanted = _outputs(module, example)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(to_tf32(p))
        rounded = _outputs(module, Example(*map_tensors((example.args, example.kwargs), to_tf32)))
    return max(EXACT, TF32_ERRORS * _distance(wanted, rounded))


def to_tf32(t: Tensor) -> Tensor:
    """fp32 numbers rounded to the 10 bits after the point that TF32 has; others as they are."""
    if t.dtype != torch.float32:
        return t
    bits = t.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _outputs(module: nn.Module, example: Example) -> list[Tensor]:
    with seeded(), torch.no_grad():
        return tensors_in(module(*example.args, **example.kwargs))


def _distance(wanted: list[Tensor], found: list[Tensor]) -> float:
    wanted, found = ([t.double().cpu() for t in each if t.is_floating_point()] for each in (wanted, found))
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return float("inf")
    scale = max((float(t.abs().max()) for t in wanted if t.numel()), default=0.0) or 1.0
    far = max((float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True) if a.numel()), default=0.0)
    return far / scale if far == far else float("inf")
