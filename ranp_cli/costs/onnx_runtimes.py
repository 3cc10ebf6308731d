"""Runtimes that take ONNX: onnxruntime (on a GPU with CUDA or TensorRT) and OpenVINO.

A network is exported at the very sizes of the input, and kept in memory: what `-o slim.onnx` writes has free axes, and the
same ops. On a GPU neither CUDA's nor TensorRT's kernels of onnxruntime were ever run.
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import USER_EXCEPTIONS, BadInput, in_words
from ..core.example import Example
from ..core.random_state import globally_seeded
from ..core.silence import silence
from ..core.spelling import spelled
from ..core.tensors import map_tensors, tensors_in
from .runtimes import Run, needs_cuda


class Flat(nn.Module):
    """A network as ONNX has them: tensors in, a tuple of tensors out."""

    def __init__(self, module: nn.Module, example: Example) -> None:
        super().__init__()
        self.module, self.example = module, example

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        args, kwargs = map_tensors((self.example.args, self.example.kwargs), lambda _: next(given))
        return tuple(tensors_in(self.module(*args, **kwargs)))


def onnx_bytes(module: nn.Module, example: Example, runtime: str) -> tuple[bytes, dict[str, np.ndarray]]:
    """The network as an ONNX file, and its inputs by name. Raises BadInput when it cannot be exported."""
    tensors = [t.detach().cpu() for t in tensors_in((example.args, example.kwargs))]
    names = [f"input_{k}" for k in range(len(tensors))]
    script = isinstance(module, torch.jit.ScriptModule)  # no part of another module for the exporter
    network = module.cpu() if script else Flat(module.cpu(), example).eval()
    try:
        with tempfile.TemporaryDirectory() as folder, silence(), globally_seeded(), torch.no_grad():
            file = Path(folder) / "model.onnx"
            torch.onnx.export(
                network,
                example.args if script else tuple(tensors),
                str(file),
                kwargs=example.kwargs if script and example.kwargs else None,
                dynamo=False,
                verbose=False,
                input_names=names,
            )
            model = file.read_bytes()
    except USER_EXCEPTIONS as error:
        raise BadInput(
            f"{spelled('runtime', runtime)}: torch.onnx cannot export this network ({in_words(error, 200)}); give {spelled('runtime', 'torch')}"
        ) from error
    return model, {name: t.numpy() for name, t in zip(names, tensors, strict=True)}


def not_run(name: str, error: BaseException) -> BadInput:
    return BadInput(
        f"{spelled('runtime', name)} does not take this network: {in_words(error, 200)}; give {spelled('runtime', 'torch')}"
    )


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime: its CPU kernels; on a GPU its CUDA ones, or TensorRT's with `tensorrt`."""

    name: str = "onnxruntime"
    tensorrt: bool = False
    exact: bool = True

    def version(self) -> str:
        return str(importlib.import_module("onnxruntime").__version__)

    def prepare(self, module: nn.Module, example: Example, device: torch.device, threads: int) -> Run:
        provider = self._provider(device)
        model, feed = onnx_bytes(module, example, self.name)
        return self.run_bytes(model, feed, device, threads, provider)

    def run_bytes(
        self,
        model: bytes,
        feed: dict[str, np.ndarray],
        device: torch.device,
        threads: int,
        provider: str | None = None,
    ) -> Run:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(model, options, providers=[provider or self._provider(device)])
        except Exception as error:  # onnxruntime's own kinds, one a status code
            raise not_run(self.name, error) from error
        wanted = {node.name for node in session.get_inputs()}
        given = {name: array for name, array in feed.items() if name in wanted}
        if device.type == "cuda":
            return self._bound(session, given, device, ort)

        def run() -> Any:
            return session.run(None, given)

        return run

    def _provider(self, device: torch.device) -> str:
        if self.tensorrt and device.type != "cuda":
            raise needs_cuda(self.name, device)
        wanted = "Tensorrt" if self.tensorrt else "CUDA" if device.type == "cuda" else "CPU"
        name = f"{wanted}ExecutionProvider"
        if name not in importlib.import_module("onnxruntime").get_available_providers():
            raise BadInput(
                f"{spelled('runtime', self.name)} on {device}: this onnxruntime has no {name}; pip install onnxruntime-gpu, or give {spelled('device', 'cpu')}"
            )
        return name

    def _bound(self, session: Any, given: dict[str, np.ndarray], device: torch.device, ort: Any) -> Run:
        """A run whose inputs lie on the GPU and whose outputs stay there."""
        index = device.index or 0
        binding = session.io_binding()
        for name, array in given.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", index))
        for node in session.get_outputs():
            binding.bind_output(node.name, "cuda", index)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return binding.get_outputs()

        return run


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO on the CPU: in fp32, or in the 16 bits that it prefers where the processor has them."""

    name: str = "openvino"
    exact: bool = True

    def version(self) -> str:
        return str(importlib.import_module("openvino").__version__).partition("-")[0]

    def prepare(self, module: nn.Module, example: Example, device: torch.device, threads: int) -> Run:
        model, feed = onnx_bytes(module, example, self.name)
        return self.run_bytes(model, feed, device, threads)

    def run_bytes(self, model: bytes, feed: dict[str, np.ndarray], device: torch.device, threads: int) -> Run:
        if device.type != "cpu":
            raise BadInput(
                f"{spelled('runtime', self.name)} runs on the CPU, and the device is {device}; give {spelled('device', 'cpu')}"
            )
        openvino = importlib.import_module("openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": "f32" if self.exact else "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(model, b""), "CPU", settings)
        except Exception as error:  # RuntimeError, or what its bindings raise
            raise not_run(self.name, error) from error
        request = compiled.create_infer_request()
        wanted = {name for port in compiled.inputs for name in port.names}
        given = {name: array for name, array in feed.items() if name in wanted}
        ports = list(compiled.outputs)

        def run() -> list[np.ndarray]:
            found = request.infer(given, share_inputs=True)
            return [found[port] for port in ports]

        return run
