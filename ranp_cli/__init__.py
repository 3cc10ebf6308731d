"""ranp: make 3D CNNs small before they are trained (RANP, Xu et al., 3DV 2020).

    import ranp_cli as ranp

    result = ranp.prune(model, batches, sparsity=0.78, resource="mem")  # .model .mask .report
    result.save("slim.safetensors")
    slim = ranp.load("slim.safetensors", model)

torch is imported when one of the functions is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all of this

__version__ = "0.1.0"

_HOME = {
    "score": "api.score",
    "prune": "api.prune",
    "refine": "api.refine",
    "profile": "api.profile",
    "compare": "api.compare",
    "Pruner": "api.pruner",
    "Removal": "api.shrinking",
    "Pruned": "api.results",
    "Scores": "api.results",
    "Comparison": "api.comparison.result",
    "load": "io.slim_loading",
    "build": "io.header",
    "Mask": "pruning.mask",
    "Report": "reporting.report",
    "RanpError": "core.errors",
    "BadInput": "core.errors",
    "Infeasible": "core.errors",
    "VerificationFailed": "core.errors",
}
__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from typing import Any

    from .api.compare import compare
    from .api.comparison.result import Comparison
    from .api.profile import profile
    from .api.prune import prune
    from .api.pruner import Pruner
    from .api.refine import refine
    from .api.results import Pruned, Scores
    from .api.score import score
    from .api.shrinking import Removal
    from .core.errors import BadInput, Infeasible, RanpError, VerificationFailed
    from .io.header import build
    from .io.slim_loading import load
    from .pruning.mask import Mask
    from .reporting.report import Report


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ranp_cli' has no attribute '{name}'")
    from importlib import import_module

    from .core.start_up import timed_import

    value = getattr(timed_import(lambda: import_module(f".{_HOME[name]}", __name__)), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
