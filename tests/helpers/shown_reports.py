"""Reports to look at, one of each command, and the page that a person sees of them."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from ranp_cli.cli.flags import FlagSpelling
from ranp_cli.core.spelling import spelling
from ranp_cli.reporting import show

Row = dict[str, Any]


def layer(name: str, op: str, kernel: int, neurons: int, kept: int, fan_in: int, fan_left: int, volume: int) -> Row:
    weights, weights_after = neurons * fan_in * kernel**3, kept * fan_left * kernel**3
    return {
        "name": name,
        "op": op,
        "kernel": [kernel] * 3,
        "neurons": neurons,
        "kept": kept,
        "macs": weights * volume,
        "macs_after": weights_after * volume,
        "output_elements": neurons * volume,
        "output_elements_after": kept * volume,
        "importance_mean": weights / (7 * volume),
        "tau": volume / 64**3,
    }


LAYERS = [
    layer("encoders.0.basic_module.conv1", "conv3d", 3, 32, 7, 1, 1, 64**3),
    layer("encoders.0.basic_module.conv2", "conv3d", 3, 64, 9, 32, 7, 64**3),
    layer("encoders.1.basic_module.conv1", "conv3d", 3, 64, 33, 64, 9, 32**3),
    layer("encoders.1.basic_module.conv2", "conv3d", 3, 128, 101, 64, 33, 32**3),
    layer("decoders.0.upsample", "conv_transpose3d", 2, 128, 128, 128, 101, 32**3),
    layer("decoders.0.basic_module.conv1", "conv3d", 3, 64, 12, 192, 137, 64**3),
    layer("decoders.0.basic_module.conv2", "conv3d", 3, 64, 1, 64, 12, 64**3),
    layer("final_conv", "conv3d", 1, 50, 50, 64, 1, 64**3),
]

MACS, MACS_AFTER = sum(row["macs"] for row in LAYERS), sum(row["macs_after"] for row in LAYERS)


def signature(*shape: int) -> Row:
    return {"args": [{"shape": list(shape), "dtype": "float32"}], "kwargs": {"dict": {}}}


PRUNE: Row = {
    "format": "ranp-report",
    "version": 1,
    "command": "prune",
    "ranp": "0.1.0",
    "torch": "2.13.0",
    "device": "cpu",
    "seconds": {"load": 0.1, "trace": 0.2, "score": 3.04, "select": 0.01, "refine": 0.1, "verify": 0.4, "total": 3.9},
    "model": {"spec": "model.py:UNet3D", "args": {}, "fingerprint": "ab" * 32, "input": signature(2, 1, 64, 64, 64)},
    "memory": {"before": {"samples": 2}, "after": {"samples": 2}},
    "method": {"name": "ranp", "criterion": "mpmg-sum", "resource": "mem", "lambda": 11.0, "seed": 0, "batches": 2},
    "sparsity": {"requested": 0.42, "achieved": 0.4259},
    "neurons": {"total": 594, "kept": 341},
    "before": {
        "params": 16_319_562,
        "params_bytes": 65_278_248,
        "macs": MACS,
        "flops": 2 * MACS,
        "activation_bytes": 1_045_430_272,
        "peak_forward_bytes": 402_653_184,
        "paper": {"param_mb": 62.26, "gflops": 237.85, "memory_mb": 997.0},
    },
    "after": {
        "params": 962_999,
        "params_bytes": 3_851_996,
        "macs": MACS_AFTER,
        "flops": 2 * MACS_AFTER,
        "activation_bytes": 313_629_081,
        "peak_forward_bytes": 402_653_184,
        "paper": {"param_mb": 3.67, "gflops": 9.55, "memory_mb": 299.1},
    },
    "verified": {
        "max_abs_error": 1e-7,
        "max_rel_error_fp32": 3.1e-7,
        "max_rel_error_fp64": 2.2e-16,
        "against": "masked",
        "not_comparable": ["encoders.0.basic_module.norm1 (group norm)"],
    },
    "layers": LAYERS,
    "floored": ["decoders.0.basic_module.conv2"],
    "fixed": {"final_conv": "network output"},
    "not_pruned": [{"layer": "decoders.0.upsample", "reason": "its channels meet aten.foo.default, which has no rule"}],
    "uncounted_ops": [{"op": "aten.foo.default", "module": "decoders.0", "count": 2}],
    "outputs": {"slim.safetensors": {"bytes": 3_859_112, "sha256": "0123456789abcdef" * 4}},
}

SCORE: Row = {
    "command": "score",
    "device": "cpu",
    "model": {"spec": "model.py:UNet3D"},
    "method": {"name": "ranp", "criterion": "mpmg-sum", "resource": "flops", "lambda": 11.0, "seed": 0},
    "neurons": {"total": 594},
    "layers": [{key: row[key] for key in row if key != "kept" and not key.endswith("_after")} for row in LAYERS],
    "seconds": {"load": 0.1, "score": 3.0, "total": 3.1},
}

PROFILE: Row = {
    "command": "profile",
    "model": {"spec": "slim.safetensors", "input": signature(1, 1, 64, 64, 64), "input_guessed": True},
    "before": PRUNE["before"],
    "layers": [
        {key: row[key] for key in ("name", "op", "kernel", "neurons", "macs", "output_elements")} for row in LAYERS
    ],
}

# two models whose layers differ: each row may lack one side
COMPARE: Row = {
    "command": "profile",
    "before": PRUNE["before"],
    "after": PRUNE["before"] | {"params": 17_000_000, "macs": 1},
    "layers": [
        {"name": "both", "op": "conv3d", "neurons": 8, "kept": 8, "macs": 8000, "macs_after": 7000},
        {"name": "gone", "op": "conv3d", "neurons": 16, "macs": 300},
        {"name": "new", "op": "linear", "kept": 4, "macs_after": 12},
    ],
}

REPORTS = {"prune": PRUNE, "score": SCORE, "profile": PROFILE, "compare": COMPARE}


def page(report: Row, width: int = 100, depth: int | None = None) -> str:
    """The page as a pipe gets it."""
    out = io.StringIO()
    with spelling(FlagSpelling()):
        show.show_report(report, Console(file=out, width=width), depth)
    return out.getvalue()
