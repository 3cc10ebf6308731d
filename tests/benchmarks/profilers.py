"""Multiply-adds of the same networks by ranp and by the profilers that people use: `python -m tests.benchmarks.profilers`.

A row a network, a cell a tool: giga multiply-adds of one sample in eval mode, and the seconds that counting took. ranp
counts on meta tensors; the others run the network on the CPU. Every count has a process of its own (some tools leave
torch or the model changed), in which the tool has counted one small convolution before: loading is not timed.
Prints a Markdown table; `--json FILE` writes the rows; `--write tests/benchmarks/RESULTS.md` puts the table between the marks there.

The rivals are needed by this file alone. Beside an installed ranp and the packages of its tests, without a second torch:

    pip install --no-deps fvcore iopath yacs portalocker termcolor tabulate thop ptflops torchinfo calflops
    pip install --no-deps transformers accelerate tokenizers regex requests psutil   # calflops imports them

What is read of each, as its documentation has it, checked on convolutions counted by hand (`--check` prints that):

    torch      FlopCounterMode.get_total_flops() / 2: it counts two FLOPs a multiply-add. Convolutions and products only.
    fvcore     FlopCountAnalysis.total(): a fused multiply-add is one flop there. Norms and interpolation are counted too.
    thop       the first number of profile(): "macs". Norms, pooling and interpolation are counted too.
    ptflops    the first number of get_model_complexity_info(), MACs, with its default backend. Biases are counted too.
    torchinfo  summary().total_mult_adds. By parameters: each of a layer's, biases and norms too, once a position of its output.
    calflops   the second number of calculate_flops(): MACs.

A tool that is not installed, or raises, or takes longer than `--limit` seconds has a cell that says so; the JSON has the
exception.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import package_imports
import packages
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.models.i3d import i3d
from ranp_cli.models.mobilenetv2 import mobilenetv2_3d
from ranp_cli.models.unet3d import unet3d

from .page import put

MARKS = "<!-- profilers -->", "<!-- end of profilers -->"
CLOSE = 0.01  # of ours; what is further off has its ratio beside it
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    name: str
    make: Callable[[], nn.Module]
    shape: Shape

    @property
    def title(self) -> str:
        return f"{self.name}, {'x'.join(map(str, self.shape[1:]))}"


def nnunet_plain() -> nn.Module:
    """As nnU-Net plans it for a 3D full resolution of five stages."""
    with package_imports.quietly():
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        return PlainConvUNet(
            1, 5, (32, 64, 128, 256, 320), nn.Conv3d, 3, (1, 2, 2, 2, 2), 2, 3, 2, conv_bias=True, norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )  # fmt: skip


NETWORKS = [
    Network("3D-UNet", unet3d, (1, 1, 64, 64, 64)),
    Network("nnU-Net PlainConvUNet", nnunet_plain, (1, 1, 64, 64, 64)),
    Network(
        "MONAI DynUNet",
        lambda: package_imports.monai("DynUNet", 3, 1, 3, [3] * 5, [1, 2, 2, 2, 2], [2] * 4),
        (1, 1, 64, 64, 64),
    ),
    Network("MONAI SegResNet", lambda: package_imports.monai("SegResNet", 3, 16, 1, 3), (1, 1, 64, 64, 64)),
    Network("r3d-18 of 8 maps", packages.r3d_18, (1, 3, 16, 112, 112)),
    Network("MobileNetV2-3D", mobilenetv2_3d, (1, 3, 16, 112, 112)),
    Network("I3D", i3d, (1, 3, 16, 112, 112)),
    Network("MONAI UNETR", lambda: package_imports.monai("UNETR", 1, 3, 96), (1, 1, 96, 96, 96)),
]


# -- the tools: a model in eval mode and the shape of one sample -> multiply-adds


def by_ranp(model: nn.Module, shape: Shape) -> float:
    return ranp.profile(model, shape).to_dict()["before"]["macs"]


def by_torch(model: nn.Module, shape: Shape) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(shape))
    return counter.get_total_flops() / 2


def by_fvcore(model: nn.Module, shape: Shape) -> float:
    from fvcore.nn import FlopCountAnalysis

    return FlopCountAnalysis(model, torch.rand(shape)).total()


def by_thop(model: nn.Module, shape: Shape) -> float:
    from thop import profile

    return profile(model, (torch.rand(shape),), verbose=False)[0]


def by_ptflops(model: nn.Module, shape: Shape) -> float:
    from ptflops import get_model_complexity_info

    options = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    macs = get_model_complexity_info(model, shape[1:], **options)[0]
    if macs is None:  # what it returns, having printed the exception that it met
        raise RuntimeError("ptflops returned None")
    return macs


def by_torchinfo(model: nn.Module, shape: Shape) -> float:
    from torchinfo import summary

    return summary(model, input_data=torch.rand(shape), verbose=0).total_mult_adds


def by_calflops(model: nn.Module, shape: Shape) -> float:
    from calflops import calculate_flops

    return calculate_flops(model, input_shape=shape, print_results=False, output_as_string=False)[1]


Tool = Callable[[nn.Module, Shape], float]
OURS = "ranp"
TOOLS: dict[str, Tool] = {
    OURS: by_ranp, "torch": by_torch, "fvcore": by_fvcore, "thop": by_thop, "ptflops": by_ptflops,
    "torchinfo": by_torchinfo, "calflops": by_calflops,
}  # fmt: skip


# -- one cell


def count(tool: str, network: Network, threads: int, end: Any) -> None:
    """Sends {"macs", "seconds"}, or {"error"}: whatever a tool raises is its result."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    package_imports.declare_torchvision_ops()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            model = network.make().eval()
            TOOLS[tool](nn.Sequential(nn.Conv3d(1, 1, 1)).eval(), (1, 1, 2, 2, 2))
            start = time.perf_counter()
            macs = TOOLS[tool](model, network.shape)
            found = {"macs": int(macs), "seconds": round(time.perf_counter() - start, 2)}
        except ImportError as error:
            found = {"error": f"not installed: {error}"}
        except Exception as error:
            found = {"error": f"crash: {type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    end.send(found)


def cell(tool: str, network: Network, threads: int, limit: float) -> dict[str, Any]:
    """`count` in a process of its own, ended after `limit` seconds."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=count, args=(tool, network, threads, there))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else {"error": f"over {limit:.0f} s"}
    except EOFError:
        return {"error": "crash: the process died"}
    finally:
        process.kill()
        process.join()


def row(network: Network, threads: int, limit: float) -> dict[str, Any]:
    cells = {}
    for tool in TOOLS:
        cells[tool] = cell(tool, network, threads, limit)
        print(f"{network.name}: {tool}: {cells[tool]}", file=sys.stderr, flush=True)
    return {"network": network.title, "cells": cells}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [f"| network | {' | '.join(TOOLS)} |", f"|---|{'---:|' * len(TOOLS)}"]
    for r in rows:
        ours = r["cells"][OURS].get("macs")
        lines.append(f"| {r['network']} | {' | '.join(shown(found, ours) for found in r['cells'].values())} |")
    return "\n".join(lines)


def shown(found: dict[str, Any], ours: int | None) -> str:
    """`59.46, 0.3 s`; with the ratio to ours when it is more than CLOSE off; the word for what went wrong."""
    if "error" in found:
        return found["error"].partition(":")[0]
    text = f"{found['macs'] / 1e9:#.4g}"
    if ours and abs(found["macs"] / ours - 1) > CLOSE:
        text = f"**{text} ({found['macs'] / ours:.2f}x)**"
    return f"{text}, {found['seconds']:.1f} s"


# -- what each tool's number means, on layers that anyone can count

BY_HAND = [
    ("Conv3d(2, 4, 3, padding=1) on 4^3", lambda: nn.Conv3d(2, 4, 3, padding=1), (1, 2, 4, 4, 4), 4 * 64 * (2 * 27)),
    ("the same without bias", lambda: nn.Conv3d(2, 4, 3, padding=1, bias=False), (1, 2, 4, 4, 4), 4 * 64 * (2 * 27)),
    ("ConvTranspose3d(6, 4, 2, 2) on 4^3", lambda: nn.ConvTranspose3d(6, 4, 2, 2), (1, 6, 4, 4, 4), 6 * 64 * (4 * 8)),
    ("Linear(10, 7)", lambda: nn.Linear(10, 7), (1, 10), 7 * 10),
    ("BatchNorm3d(4) on 4^3", lambda: nn.BatchNorm3d(4), (1, 4, 4, 4, 4), 0),
]


def check(threads: int, limit: float) -> str:
    lines = [f"| layer | by hand | {' | '.join(TOOLS)} |", f"|---|---:|{'---:|' * len(TOOLS)}"]
    for name, make, shape, macs in BY_HAND:
        network = Network(name, lambda make=make: nn.Sequential(make()), shape)
        found = [cell(tool, network, threads, limit) for tool in TOOLS]
        cells = [str(f["macs"]) if "macs" in f else f["error"].partition(":")[0] for f in found]
        lines.append(f"| {name} | {macs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (
        "torch",
        "fvcore",
        "thop",
        "ptflops",
        "torchinfo",
        "calflops",
        "monai",
        "dynamic_network_architectures",
    ):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names; all by default")
    parser.add_argument("--check", action="store_true", help="count single layers instead, beside the numbers by hand")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a cell")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork: the children make their own
    known = {network.name: network for network in NETWORKS}
    if unknown := set(options.networks) - set(known):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.check:
        print(check(options.threads, options.limit))
        return
    rows = [row(known[name], options.threads, options.limit) for name in options.networks or known]
    if options.json:
        document = {"threads": options.threads, "versions": versions(), "rows": rows}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    if options.write:
        put(Path(options.write), markdown(rows), MARKS)
    print(markdown(rows))


if __name__ == "__main__":
    main()
