"""Speed by runtime and by rounding, and where the time of `ranp prune` itself goes: `python -m tests.benchmarks.runtimes`.

Each network is pruned at initialization with every `--round-to`; dense and slim ones are then timed turn by turn in each
runtime. `--own` measures `ranp prune` of the sample instead, by step, beside `import torch` of this machine. `--write
tests/benchmarks/RESULTS.md` puts a table between its marks there. Results are kept in `--lines FILE`, from which a later run goes on.
With `--device cuda` the runtimes are those of a GPU, training steps among them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.api.round_to import MULTIPLES, fastest
from ranp_cli.core.example import Example
from ranp_cli.costs.latency_table import processor
from ranp_cli.costs.runtime_names import runtime_of
from ranp_cli.costs.timing import Benchmark, Ground, Timings
from ranp_cli.models.mobilenetv2 import mobilenetv2_3d
from ranp_cli.models.unet3d import unet3d

from .page import Lines, put

MARKS = "<!-- runtimes -->", "<!-- end of runtimes -->"
OWN_MARKS = "<!-- own time -->", "<!-- end of own time -->"
GPU_MARKS = "<!-- runtimes on a GPU -->", "<!-- end of runtimes on a GPU -->"
STEP = "training step, "  # before a runtime: the step in place of the forward pass
CPU = torch.device("cpu")
RUNTIMES = {
    "cpu": ("torch", "torch-channels-last", "onnxruntime", "openvino", "openvino-bf16"),
    "cuda": ("torch", "torch-channels-last", "torch-bf16", "cuda-graph", f"{STEP}torch", f"{STEP}torch-bf16"),
}
SAMPLES = Path(__file__).parents[2] / "sample_configs"
OWN_RUNS = 5
FLOOR = """
import torch
from model import UNet3D
network = UNet3D()
for x, y in torch.load("calib.pt", weights_only=True):
    torch.nn.functional.cross_entropy(network(x), y.long(), ignore_index=255).backward()
"""


def plain_conv_unet() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        1, 4, (32, 64, 128, 256), nn.Conv3d, 3, (1, 2, 2, 2), (2, 2, 2, 2), 4, (2, 2, 2), True, nn.InstanceNorm3d,
        {"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A dense network, how far it is pruned, the shape of a sample and of its target: `size` is the edge of a volume."""

    make: Callable[[], nn.Module]
    classes: int
    sparsity: float
    clip: tuple[int, ...] = ()  # of a network for clips, whatever the size

    def data(self, samples: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self.clip or (1, size, size, size)
        return torch.randn(samples, *shape), torch.randint(self.classes, (samples, *(() if self.clip else shape[1:])))


NETWORKS = {
    "3D-UNet": Network(lambda: unet3d(layers=15, width=32, num_classes=50), 50, 0.78),
    "PlainConvUNet": Network(plain_conv_unet, 4, 0.7),
    "MobileNetV2-3D": Network(mobilenetv2_3d, 101, 0.5, (3, 16, 112, 112)),
}


@cache
def networks(name: str, device: torch.device, samples: int, size: int) -> tuple[list[nn.Module], Example, list[int]]:
    """The dense network and those of each rounding, their input, and their multiply-adds of one sample."""
    network, on = NETWORKS[name], str(device)
    torch.manual_seed(0)
    dense, (x, target) = network.make(), network.data(samples, size)
    settle_statistics(dense, x[:1])
    scores = ranp.score(dense, [(x[:1], target[:1])], device=on)
    found = [
        ranp.prune(dense, scores=scores, sparsity=network.sparsity, device=on, min_neurons=1, round_to=multiple)
        for multiple in MULTIPLES
    ]
    reports = [each.report.to_dict() for each in found]
    macs = [reports[0]["before"]["macs"], *(report["after"]["macs"] for report in reports)]
    return [dense, *(each.model for each in found)], Example((x,)), macs


def settle_statistics(module: nn.Module, x: torch.Tensor) -> None:
    """Running statistics as after a training: with those of a new network the outputs hardly depend on the input."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(x)


def measured(name: str, runtime: str, threads: int, device: torch.device, samples: int, size: int) -> dict[str, Any]:
    """Dense and slim networks in one runtime: seconds, gains, multiply-adds, and the error of the outputs."""
    models, example, macs = networks(name, device, samples, size)
    stand = Benchmark(example, Ground(device, runtime_of(runtime.removeprefix(STEP)), threads))
    timings = (stand.step if runtime.startswith(STEP) else stand.forward)(*models)
    slim = Timings(timings.seconds[1:], timings.repeats, timings.runs[1:])  # as `--round-to auto` races them
    return {
        "seconds": timings.seconds,
        "repeats": timings.repeats,
        "auto": MULTIPLES[fastest(slim)],
        "error": None if runtime.startswith(STEP) else stand.error,
        "macs": macs,
    }


def cell(row: dict[str, Any], k: int) -> str:
    """`84 x15.5`: milliseconds, and how many times as fast as dense in the same runtime."""
    seconds = row["seconds"]
    return f"{1000 * seconds[k]:.{0 if seconds[k] >= 0.01 else 1}f} x{seconds[0] / seconds[k]:.1f}"


def markdown(rows: list[dict[str, Any]], samples: int, about: str) -> str:
    """A table for all networks, a row a runtime; a line for each network on what the multiply-adds promise."""
    rounded = [f"round {multiple}" for multiple in MULTIPLES[1:]]
    lines = [
        f"| network | runtime | dense | as cut | {' | '.join(rounded)} | auto | promised of it | error |",
        f"|---|---|{'---:|' * (len(MULTIPLES) + 4)}",
    ]
    for row in rows:
        k = 1 + MULTIPLES.index(row["auto"])
        slim = [cell(row, j) for j in range(1, len(row["seconds"]))]
        slim[k - 1] = f"**{slim[k - 1]}**"
        share = row["seconds"][0] / row["seconds"][k] / (row["macs"][0] / row["macs"][k])
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        lines.append(
            f"| {row['network']} | {row['runtime']} | {cell(row, 0).split()[0]} | {' | '.join(slim)} | "
            f"{row['auto'] if row['auto'] > 1 else 'none'} | {share:.0%} | {error} |"
        )
    promised = [
        f"{name} (sparsity {NETWORKS[name].sparsity}) {', '.join(f'{macs[0] / n:.1f}' for n in macs[1:])}"
        for name, macs in {row["network"]: row["macs"] for row in rows}.items()
    ]
    repeats = [row["repeats"] for row in rows]
    return "\n".join(
        [*lines, "", f"Milliseconds of a forward pass of {samples} sample{'s' * (samples != 1)}, and x of dense in the same runtime; bold: what `--round-to auto` takes from "
         "these times, and in the next column how much of the gain that its multiply-adds promise it gives. Error: of the outputs against torch's in fp32, "
         f"of their scale, the largest of the five networks. Promised by multiply-adds, as cut and rounded to {', '.join(map(str, MULTIPLES[1:]))}: {'; '.join(promised)}. "
         f"{about}; medians of {min(repeats)} to {max(repeats)} turns."])  # fmt: skip


# -- own time


def own_time() -> dict[str, Any]:
    """Seconds of `import torch`, of the floor and of `ranp prune` of the sample by step, medians of a few processes, in turns.

    Modules are read as bytecode, as they are from the second run after an install on.
    """
    imports, floors, walls, steps = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
        command = [sys.executable, "-m", "ranp_cli", "prune", "model.py:UNet3D", "--batch", "calib.pt", "--sparsity", "0.78", "--resource", "mem",
                   "-o", f"{folder}/slim.safetensors", "--json", str(report), "--quiet"]  # fmt: skip
        for turn in range(1 + OWN_RUNS):  # the first writes the bytecode
            plain = ([sys.executable, "-c", code] for code in ("import torch", FLOOR))
            seconds = [wall(each, environment) for each in (*plain, command)]
            if turn:
                for times, each in zip((imports, floors, walls), seconds, strict=True):
                    times.append(each)
                steps.append(json.loads(report.read_text())["seconds"])
    median = {name: statistics.median(each.get(name, 0.0) for each in steps) for name in steps[0] if name != "total"}
    return {
        "import torch": statistics.median(imports),
        "floor": statistics.median(floors),
        "wall": statistics.median(walls),
        "steps": median,
    }


def wall(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=SAMPLES, env=environment, capture_output=True)
    return time.perf_counter() - start


def own_markdown(found: dict[str, Any], about: str) -> str:
    base = found["import torch"]
    rest = found["wall"] - sum(found["steps"].values())
    rows = {**found["steps"], "the interpreter, and what no step counts": rest, "all": found["wall"]}
    lines = ["| step of `ranp prune` of the sample | of `import torch` |", "|---|---:|"]
    lines += [f"| {name} | {seconds / base:.2f} |" for name, seconds in rows.items() if seconds / base >= 0.005]
    lines += [
        f"| the floor: `import torch`, the network, and the passes that are scored | {found['floor'] / base:.2f} |"
    ]
    return "\n".join([*lines, "", f"Wall time by step; 1 is a process that does `import torch` and no more ({base:.1f} s). {about}; medians of {OWN_RUNS} processes, in turns."])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    parser.add_argument("--samples", type=int, default=1, help="in a mini-batch")
    parser.add_argument("--size", type=int, default=48, help="voxels along each edge of a volume")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of them, with commas between")
    parser.add_argument("--lines", metavar="FILE", type=Path, default=Path("runtimes.jsonl"))
    parser.add_argument("--own", action="store_true", help="measure ranp prune itself")
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    device = options.device
    about = f"{processor(device)}, torch {torch.__version__}"
    if options.own:
        table, marks = own_markdown(own_time(), f"{about}, {torch.get_num_threads()} threads"), OWN_MARKS
    else:
        lines = Lines(options.lines, ("network", "runtime", "threads"))
        rows = [
            lines.get(
                lambda name=name, runtime=runtime: measured(name, runtime, options.threads, device, options.samples, options.size),
                network=name, runtime=runtime, threads=options.threads,
            )
            for name in options.networks.split(",") for runtime in RUNTIMES[device.type]
        ]  # fmt: skip
        if device.type == "cpu":
            versions = ", ".join(f"{name} {runtime_of(name).version()}" for name in ("onnxruntime", "openvino"))
            about += f", {versions}, {options.threads} thread{'s' * (options.threads != 1)} of a shared machine"
        table = markdown(rows, options.samples, f"Volumes of {options.size}^3, clips of 16 x 112^2; {about}")
        marks = GPU_MARKS if device.type == "cuda" else MARKS
    if options.write:
        put(Path(options.write), table, marks)
    print(table)


if __name__ == "__main__":
    main()
