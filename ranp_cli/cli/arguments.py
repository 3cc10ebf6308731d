"""The options of the commands, each named once; None is "not given", so that a config file can say it."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, or a TorchScript file")]
Strs = list[str] | None
ModelArg = Annotated[
    Strs, typer.Option("--model-arg", metavar="KEY=VALUE", help="argument of the factory, read as YAML (repeatable)")
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="FILE", help="state dict to load: .safetensors or .pt")
]
WeightsKey = Annotated[
    str | None, typer.Option("--weights-key", metavar="KEY", help="which nested state dict of --weights")
]
Batch = Annotated[
    str | None, typer.Option("--batch", metavar="B", help=".pt, .safetensors, .npz of (input, target), or file.py:Name")
]
BatchLimit = Annotated[int | None, typer.Option("--batches", metavar="N", help="use at most N mini-batches")]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss", metavar="NAME", help="cross_entropy, mse, l1, smooth_l1, bce, dice, dice_ce, or file.py:Name"
    ),
]
IgnoreIndex = Annotated[
    int | None,
    typer.Option(
        "--ignore-index", metavar="I", help="target value that does not count  [default: -100, and 255 where no class]"
    ),
]
CriterionOption = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        metavar="C",
        help="mpmg-sum|mean|max, mnmg-sum|mean|max, neuron, taylor, snip, l1, l2  [default: mpmg-sum, or the method's own]",
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="seed of weights and of --method random  [default: 0]")
]
Device = Annotated[str | None, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:i  [default: auto]")]
Config = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="YAML with the same keys; an option beats it")
]
Json = Annotated[str | None, typer.Option("--json", metavar="PATH|-", help="write the report as JSON; - for stdout")]
Quiet = Annotated[bool | None, typer.Option("--quiet", "-q", help="print nothing but errors")]
Init = Annotated[
    str | None,
    typer.Option(
        "--init", metavar="I", help="weights of the slim network: keep|factory|glorot|orthogonal  [default: keep]"
    ),
]
Output = Annotated[
    Strs, typer.Option("-o", "--output", metavar="FILE", help="where the slim network goes (repeatable)")
]
Input = Annotated[
    Strs, typer.Option("--input", metavar="SHAPE", help="shape of an input, as 1x4x128x128x128 (repeatable)")
]

ScoreInit = Annotated[
    str | None,
    typer.Option(
        "--score-init", metavar="I", help="weights that are scored: keep|factory|glorot|orthogonal  [default: keep]"
    ),
]
MinNeurons = Annotated[
    str | None,
    typer.Option(
        "--min-neurons", metavar="N|auto", help="each layer keeps its best N; 1: the paper's rule  [default: auto]"
    ),
]
Keep = Annotated[Strs, typer.Option("--keep", metavar="GLOB", help="layers never pruned (repeatable)")]
Only = Annotated[Strs, typer.Option("--only", metavar="GLOB", help="prune these layers only (repeatable)")]
Lambda = Annotated[float | None, typer.Option("--lambda", metavar="X", help="weight of the resource  [default: 11]")]

Plot = Annotated[
    Strs,
    typer.Option("--plot", metavar="FILE", help="a picture: .png, .svg or .pdf (needs the extra plot; repeatable)"),
]

Html = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="the report as one page: no scripts, nothing from elsewhere"),
]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", metavar="O", help="of the training step: sgd|sgd-momentum|adam|adamw  [default: sgd]"),
]
Amp = Annotated[
    bool | None,
    typer.Option(
        "--amp", help="memory in mixed precision: weights in 32 bits, what autocast casts on the device in 16"
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", help="samples of the training step, and of what is timed  [default: the input's]"
    ),
]
Time = Annotated[
    bool | None,
    typer.Option("--time", help="run the networks too, and say how fast they are: dense and slim turn by turn"),
]

Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="of the gradients: model, fp32, fp64, bf16, fp16, or auto: bf16 if the mask is that of fp32  [default: model]",
    ),
]
LowMemory = Annotated[
    bool | None, typer.Option("--low-memory", help="score with activations computed twice instead of kept")
]
Probe = Annotated[
    int | None,
    typer.Option(
        "--probe",
        metavar="N",
        help="train copies of both networks for N steps on the batch, with --optimizer or else adam, and say whether the slim one keeps up; 200 tells well",
    ),
]
ProbeLr = Annotated[
    float | None,
    typer.Option(
        "--probe-lr",
        metavar="X",
        help="learning rate of --probe  [default: adam, adamw 3e-3, sgd 0.05, sgd-momentum 0.01]",
    ),
]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", metavar="V", help="likewise, as little as keeps to it, as 6GiB")
]

WAY = {"precision": "model", "low_memory": False}  # in which gradients are computed
