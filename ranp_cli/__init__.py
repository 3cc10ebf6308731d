"""ranp: make 3D CNNs small before they are trained (RANP, Xu et al., 3DV 2020).

    import ranp_cli as ranp

    result = ranp.prune(model, batches, sparsity=0.78, resource="mem")  # .model .mask .report
    result.save("slim.safetensors")
    slim = ranp.load("slim.safetensors", model)

torch is imported when one of the functions is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "score": "pipeline",
    "prune": "pipeline",
    "refine": "pipeline",
    "profile": "profiling",
    "compare": "comparison",
    "Pruned": "results",
    "Scores": "results",
    "Comparison": "comparison",
    "load": "checkpoint",
    "Mask": "mask",
    "Report": "report",
    "RanpError": "errors",
    "BadInput": "errors",
    "Infeasible": "errors",
    "VerificationFailed": "errors",
}
__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from .checkpoint import load
    from .comparison import Comparison, compare
    from .errors import BadInput, Infeasible, RanpError, VerificationFailed
    from .mask import Mask
    from .pipeline import prune, refine, score
    from .profiling import profile
    from .report import Report
    from .results import Pruned, Scores


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ranp_cli' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
