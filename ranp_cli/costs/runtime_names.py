"""The runtimes by name, and which extra of the package each needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from ..core.errors import BadInput, nearest
from ..core.spelling import spelled
from .onnx_runtimes import OnnxRuntime, OpenVino
from .runtimes import CudaGraph, Runtime, Torch


def runtimes() -> Mapping[str, Callable[[], Runtime]]:
    """Name -> what makes it."""
    return {
        "torch": Torch,
        "torch-channels-last": lambda: Torch("torch-channels-last", channels_last=True),
        "torch-bf16": lambda: Torch("torch-bf16", channels_last=True, half=True),
        "onnxruntime": OnnxRuntime,
        "openvino": OpenVino,
        "openvino-bf16": lambda: OpenVino("openvino-bf16", exact=False),
        "tensorrt": lambda: OnnxRuntime("tensorrt", tensorrt=True),
        "cuda-graph": CudaGraph,
    }


NEEDS = {  # runtime -> (package, extra)
    "onnxruntime": ("onnxruntime", "onnx"),
    "tensorrt": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "openvino"),
    "openvino-bf16": ("openvino", "openvino"),
}


def runtime_of(name: str) -> Runtime:
    """The runtime of a name. Raises BadInput for one that there is not, or that is not installed: which extra has it."""
    known = runtimes()
    if name not in known:
        raise BadInput(
            f"{spelled('runtime', name)}: there is no such runtime{nearest(str(name), known)}; give one of {', '.join(known)}"
        )
    package, extra = NEEDS.get(name, ("torch", ""))
    if not _is_installed(package):
        raise BadInput(
            f"{spelled('runtime', name)}: {package} is not installed; pip install 'ranp-cli[{extra}]', or leave out {spelled('runtime')}"
        )
    return known[name]()


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # taken out of sys.modules
        return False
