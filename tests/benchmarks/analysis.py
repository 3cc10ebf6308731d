"""How long it takes to find what belongs together: ranp's analysis, one forward on meta tensors, and torch-pruning.

    python -m tests.benchmarks.analysis [--json FILE] [--limit SECONDS] [NETWORK ...]

The networks are those of tests/laws/packages.py, and for growth plain and dense ones of up to 1,000 layers and 100,000
neurons. torch-pruning (`pip install --no-deps torch-pruning==1.6.1`) builds its dependency graph of the same network on
the same input and lists its groups, in a process of its own that is ended after `--limit` seconds; without the package
its columns are empty.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import package_imports
import packages
import torch
import zoo
from torch import nn

from ranp_cli.core.copies import meta_copy
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.models.unet3d import unet3d

Build = Callable[[], nn.Module]


def plain(layers: int, width: int) -> nn.Module:
    """Convolution, batch norm, ReLU, one after the other."""
    body = [m for _ in range(layers - 2) for m in (nn.Conv3d(width, width, 1), nn.BatchNorm3d(width), nn.ReLU())]
    return nn.Sequential(nn.Conv3d(1, width, 1), *body, nn.Conv3d(width, 2, 1))


class Dense(nn.Module):
    """Each layer reads the concatenation of all before it; its code is as quadratic as its weights."""

    def __init__(self, layers: int, growth: int = 4):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(1 + growth * i, growth, 1) for i in range(layers - 1))
        self.head = nn.Conv3d(1 + growth * (layers - 1), 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x]
        for conv in self.convs:
            parts.append(torch.relu(conv(torch.cat(parts, 1))))
        return self.head(torch.cat(parts, 1))


def growth() -> dict[str, tuple[Build, tuple[int, ...]]]:
    tiny = (1, 1, 2, 2, 2)
    out: dict[str, tuple[Build, tuple[int, ...]]] = {}
    for layers, width in ((10, 100), (100, 100), (1000, 100), (100, 10), (100, 1000)):
        out[f"plain {layers} x {width}"] = (lambda n=layers, w=width: plain(n, w)), tiny
    for layers in (10, 100, 300, 1000):
        out[f"dense {layers}"] = (lambda n=layers: Dense(n)), tiny
    return out


def full() -> dict[str, tuple[Build, tuple[int, ...]]]:
    """Networks at the size at which they are used: a forward on real tensors is no longer cheap."""
    return {
        "3D-UNet, 64 maps, 64^3": ((lambda: unet3d(15, 64)), (1, 1, 64, 64, 64)),
        "ResNet-18 3D, 64 maps, 96^3": (
            (
                lambda: package_imports.monai(
                    "resnet18", spatial_dims=3, n_input_channels=1, num_classes=3, shortcut_type="B"
                )
            ),
            (1, 1, 96, 96, 96),
        ),
        "DenseNet-121 3D, 96^3": ((lambda: package_imports.monai("DenseNet121", 3, 1, 3)), (1, 1, 96, 96, 96)),
    }


def ours(build: Build, shape: tuple[int, ...]) -> dict[str, Any]:
    """Median of three of the analysis, and of one forward on meta tensors in eval mode."""
    model, example = build(), Example((torch.zeros(shape),))
    copy, x = meta_copy(model, False).eval(), torch.zeros(shape, device="meta")
    seconds: dict[str, list[float]] = {"forward": [], "analysis": []}
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            copy(x)
        middle = time.perf_counter()
        graph = analyse(model, example)
        seconds["forward"].append(middle - start)
        seconds["analysis"].append(time.perf_counter() - middle)
    row = {name: statistics.median(values) for name, values in seconds.items()}
    return {"neurons": graph.n, "labels": graph.ties.size, "ops": len(graph.eval_run.tracer.ops), **row}


def rival(build: Build, shape: tuple[int, ...], end: Any) -> None:
    """The seconds that torch-pruning takes to find its groups, or the exception that ends it."""
    warnings.simplefilter("ignore")
    import torch_pruning

    model, x = build(), torch.rand(shape)
    start = time.perf_counter()
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
        list(graph.get_all_groups())
        end.send(time.perf_counter() - start)
    except Exception as error:  # whatever it is, it is the result
        end.send(f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")


def timed_rival(build: Build, shape: tuple[int, ...], limit: float) -> float | str:
    """`rival` in a process of its own, ended after `limit` seconds."""
    if find_spec("torch_pruning") is None:
        return ""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=rival, args=(build, shape, there))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else f"over {limit:.0f} s"
    except EOFError:  # it died
        return "died"
    finally:
        process.kill()
        process.join()


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | neurons | forward on meta, s | analysis, s | torch-pruning, s | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        theirs = r["torch_pruning"]
        known = isinstance(theirs, float)
        cells = [r["network"], str(r["neurons"]), f"{r['forward']:.2f}", f"{r['analysis']:.2f}"]
        cells += [f"{theirs:.2f}", f"{theirs / r['analysis']:.1f}"] if known else [theirs.partition(":")[0], ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names; all by default")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON as well")
    parser.add_argument("--limit", type=float, default=60, help="seconds for torch-pruning on a network")
    options = parser.parse_args()
    torch.set_num_threads(1)  # forked processes cannot share a pool of threads
    known: dict[str, tuple[Build, tuple[int, ...]]] = {
        case.name: ((lambda c=case: zoo.build(c)), case.shape) for case in packages.CASES
    }
    known |= growth() | full()
    if unknown := set(options.networks) - set(known):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    rows = []
    ours(*known["r3d_18"])  # torch's own start-up of meta tensors
    for name in options.networks or known:
        build, shape = known[name]
        try:
            rows.append(
                {"network": name, **ours(build, shape), "torch_pruning": timed_rival(build, shape, options.limit)}
            )
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps({"threads": 1, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
