"""What scoring costs beside its floor and its rivals: `python -m tests.benchmarks.scoring [--json FILE] [--write tests/benchmarks/RESULTS.md] [NETWORK ...]`.

In one run, turn by turn, for each network: `ranp.score`'s pass as it is, with `--low-memory`, in bf16, and in bf16 with
`--low-memory`; the floor (a plain fp32 forward and backward, as a user would write it); a step of SGD with momentum; the
explicit-mask way (a copy of the model whose every weight is multiplied by a mask, as SNIP codes do); and the Taylor importance
of torch-pruning, where it is installed (its groups are found beforehand, which takes a while and is not counted). Time is
the median of `--repeats`; memory the peak of torch's allocator (of the CPU or, with `--device cuda`, of the GPU) over one more
run, beyond the weights, the same for all.
How far bf16 scores agree with those of fp32: Spearman's rank correlation over all neurons, and the neurons that both keep
at a sparsity of 0.78 (RANP, by FLOPs) as a share of those that fp32 keeps.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from allocator import peak_of
from torch import nn
from torch.nn.utils import parametrize

from ranp_cli.api.options import LayerOptions, MethodOptions
from ranp_cli.api.ranking import Ranking
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.graph.graph import Graph
from ranp_cli.io.batches import Batch as CalibrationBatch
from ranp_cli.models.i3d import i3d
from ranp_cli.models.unet3d import unet3d
from ranp_cli.scoring.criteria import criterion
from ranp_cli.scoring.over_batches import score
from ranp_cli.scoring.setup import GradientSetup, Importance

from .page import put

MARKS = {
    "cpu": ("<!-- scoring -->", "<!-- end of scoring -->"),
    "cuda": ("<!-- scoring on a GPU -->", "<!-- end of scoring on a GPU -->"),
}
GROWTH_MARKS = "<!-- growth -->", "<!-- end of growth -->"
SPARSITY = 0.78
CPU = torch.device("cpu")
Batch = tuple[torch.Tensor, torch.Tensor]


def plain_conv_unet() -> nn.Module:
    """nnU-Net's, with the widths of its 3d_fullres plans, five stages."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    norm = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True, "eps": 1e-5}}
    return PlainConvUNet(
        1, 5, [32, 64, 128, 256, 320], nn.Conv3d, 3, [1, 2, 2, 2, 2], 2, 5, 2, conv_bias=True, **norm,
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def volume(size: int, classes: int) -> Callable[[], Batch]:
    return lambda: (torch.rand(1, 1, size, size, size), torch.randint(classes, (1, size, size, size)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "3D-UNet, 64^3": (lambda: unet3d(15, 64), volume(64, 50)),
    "PlainConvUNet, 96^3": (plain_conv_unet, volume(96, 5)),
    "I3D, 16 x 224^2": (i3d, lambda: (torch.rand(1, 3, 16, 224, 224), torch.randint(101, (1,)))),
    "3D-UNet, 96^3": (lambda: unet3d(15, 64), volume(96, 50)),
}


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()


class Masked(nn.Module):
    """Multiplies the weight that it parametrises by a mask of ones."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.ones_like(weight))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def explicit(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Scores of all neurons by mask parameters: |dL/dc| summed over each neuron's weights."""
    masked = copy.deepcopy(model)
    for module in list(masked.modules()):
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            module.weight.requires_grad_(False)
            parametrize.register_parametrization(module, "weight", Masked(module.weight))
    gradients(masked, x, y)
    return [
        m.mask.grad.abs().flatten(1).sum(1)
        for m in masked.modules()
        if isinstance(m, Masked) and m.mask.grad is not None
    ]


def taylor(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], Any] | str:
    """torch-pruning's importance of all its groups, from one backward pass; why not, where it does not run."""
    try:
        import torch_pruning as tp

        graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
        groups = list(graph.get_all_groups(root_module_types=[nn.Conv3d, nn.Linear]))
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"

    def run() -> None:
        gradients(model, x, y)
        importance = tp.importance.TaylorImportance()
        for group in groups:
            importance(group)

    return run


def synchronized(run: Callable[[], Any], device: torch.device) -> None:
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def agreement(graph: Graph, one: Importance, two: Importance) -> tuple[float, float]:
    """(Spearman's rank correlation of all scores, share of the neurons kept by the first that the second keeps)."""
    flat = [np.concatenate(i.scores) for i in (one, two)]
    ranking = Ranking.of(MethodOptions(), LayerOptions(min_neurons=1), 0)
    kept = [ranking.select(graph, i.scores, SPARSITY).keep[graph.unit] for i in (one, two)]
    return float(np.corrcoef(*map(ranks, flat))[0, 1]), float((kept[0] & kept[1]).sum() / kept[0].sum())


def rows_of(name: str, repeats: int, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    build, make = NETWORKS[name]
    model, (x, y) = build().train(), make()
    graph = analyse(model, Example((x,)))
    model, x, y = model.to(device), x.to(device), y.to(device)
    batches = [CalibrationBatch((x,), {}, y)]
    found: dict[str, Importance] = {}

    def ours(key: str, **way: Any) -> Callable[[], None]:
        def run() -> None:
            found[key] = score(model, graph, batches, F.cross_entropy, [criterion("mpmg-sum")], device, way=GradientSetup(**way))["mpmg-sum"]  # fmt: skip

        return run

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        gradients(model, x, y)
        optimizer.step()

    ways: dict[str, Callable[[], Any]] = {
        "floor": lambda: gradients(model, x, y),
        "ranp": ours("fp32"),
        "ranp --low-memory": ours("low", low_memory=True),
        "ranp --precision bf16": ours("bf16", precision="bf16"),
        "ranp --precision bf16 --low-memory": ours("bf16 low", precision="bf16", low_memory=True),
        "SGD step": step,
        "explicit masks": lambda: explicit(model, x, y),
    }
    if device.type == "cuda":
        ways["ranp --precision tf32"] = ours("tf32", precision="tf32")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, int] = {}
    rival = taylor(model, x, y)
    if callable(rival):
        ways["torch-pruning, Taylor"], seconds["torch-pruning, Taylor"] = rival, []
    for _ in range(repeats):
        for way, run in ways.items():
            model.zero_grad(set_to_none=True)
            start = time.perf_counter()
            synchronized(run, device)
            seconds[way].append(time.perf_counter() - start)
    for way, run in ways.items():
        model.zero_grad(set_to_none=True)
        peaks[way] = peak_of(run, device.type)
    correlation, kept = agreement(graph, found["fp32"], found["bf16"])
    tf32 = agreement(graph, found["fp32"], found["tf32"]) if "tf32" in found else None
    equal = all(np.array_equal(a, b) for a, b in zip(found["fp32"].scores, found["low"].scores, strict=True))
    return {
        "network": name, "seconds": {k: statistics.median(v) for k, v in seconds.items()}, "peaks": peaks,
        "rival": None if callable(rival) else rival, "rank_correlation": correlation, "kept_by_both": kept,
        "low_memory_is_equal": equal, "tf32_rank_correlation_and_kept": tf32,
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | way | time / floor | peak memory / floor |", "|---|---|---:|---:|"]
    for row in rows:
        for k, (way, value) in enumerate(row["seconds"].items()):
            first, base = row["network"] if k == 0 else "", row["seconds"]["floor"]
            memory = row["peaks"][way] / row["peaks"]["floor"]
            shown = f"{value / base:.2f} ({value:.3g} s)" if way == "floor" else f"{value / base:.2f}"
            sized = f"{memory:.2f} ({row['peaks'][way] / 2**20:.0f} MiB)" if way == "floor" else f"{memory:.2f}"
            lines.append(f"| {first} | {way} | {shown} | {sized} |")
        if row["rival"]:
            lines.append(f"| | torch-pruning, Taylor | {row['rival']} | |")
    lines.append("")
    for row in rows:
        same = "the same bits" if row["low_memory_is_equal"] else "not the same bits"
        lines.append(f"* {row['network']}: rank correlation of bf16 and fp32 scores {row['rank_correlation']:.4f}; of the neurons that fp32 "
                     f"keeps at {SPARSITY} bf16 keeps {row['kept_by_both']:.1%}; `--low-memory` gives {same}.")  # fmt: skip
        if row["tf32_rank_correlation_and_kept"]:
            correlation, kept = row["tf32_rank_correlation_and_kept"]
            lines.append(f"* {row['network']}: rank correlation of tf32 and fp32 scores {correlation:.4f}; of the neurons that fp32 "
                         f"keeps tf32 keeps {kept:.1%}.")  # fmt: skip
    return "\n".join(lines)


GROWTH = {
    "spatial size": [(32, 16, 1), (48, 16, 1), (64, 16, 1), (96, 16, 1)],
    "width": [(48, 8, 1), (48, 16, 1), (48, 32, 1), (48, 64, 1)],
    "mini-batches": [(32, 16, 1), (32, 16, 4), (32, 16, 16), (32, 16, 64)],
}  # what grows -> (size, width, mini-batches) of a 15-layer 3D-UNet


def growth(repeats: int) -> list[dict[str, Any]]:
    """Time and peak memory of scoring, against what it should grow with: voxels, width (squared), mini-batches."""
    rows = []
    for what, points in GROWTH.items():
        for size, width, count in points:
            torch.manual_seed(0)
            model, (x, y) = unet3d(15, width, 1, 5).train(), volume(size, 5)()
            graph = analyse(model, Example((x,)))
            batches = [CalibrationBatch((x,), {}, y)] * count

            def run(model: nn.Module = model, graph: Graph = graph, batches: Any = batches) -> None:
                score(model, graph, batches, F.cross_entropy, [criterion("mpmg-sum")], CPU)

            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            macs = sum(layer.macs for layer in graph.layers) * count
            rows.append({"what": what, "size": size, "width": width, "mini-batches": count, "macs": macs,
                         "seconds": statistics.median(seconds), "peak": peak_of(run), "voxels": size**3})  # fmt: skip
    return rows


def growth_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| grows | size | width | mini-batches | time, s | ns per multiply-add | peak memory, MiB | bytes per voxel |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for k, r in enumerate(rows):
        first = r["what"] if k == 0 or rows[k - 1]["what"] != r["what"] else ""
        lines.append(f"| {first} | {r['size']}^3 | {r['width']} | {r['mini-batches']} | {r['seconds']:.2f} | "
                     f"{1e9 * r['seconds'] / r['macs']:.3f} | {r['peak'] / 2**20:.0f} | {r['peak'] / r['voxels']:.0f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    parser.add_argument("--growth", action="store_true", help="the table of growth instead")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    if options.growth:
        found = growth(options.repeats)
        if options.write:
            put(Path(options.write), growth_table(found), GROWTH_MARKS)
        print(growth_table(found))
        return
    rows = []
    for name in options.networks or NETWORKS:
        rows.append(rows_of(name, options.repeats, options.device))
        print(json.dumps(rows[-1]), file=sys.stderr)
    if options.json:
        machine = torch.cuda.get_device_name() if options.device.type == "cuda" else platform.processor()
        about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": machine}
        Path(options.json).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    if options.write:
        put(Path(options.write), markdown(rows), MARKS[options.device.type])
    print(markdown(rows))


if __name__ == "__main__":
    main()
