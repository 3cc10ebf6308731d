"""Whole model lists through `ranp prune` at 0.5: `python -m tests.benchmarks.model_lists --rows FILE [--write tests/benchmarks/RESULTS.md] [LIST ...]`.

The lists are the packages' own: every network of MONAI, nnU-Net's (dynamic-network-architectures), one network of each module
of timm (a small one, by its name), torchvision's video networks, pytorchvideo's hub. Small inputs, a loss that takes any output,
a process of its own for each network, ended after `--limit` seconds. `--rows` keeps what is done, and a later run goes on.

A network is `pruned` (at least 45 % of the neurons gone, or all but those for which the report gives a cause), `refused` with a
line of ours, `not built` (the package asks for what is not here), or a `defect`: another exception, a failed proof, or less than
asked without a cause. pytorchvideo and torchvision are optional: without them their lists are empty.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import zoo
from package_imports import declare_torchvision_ops
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.tensors import tensors_in

from .page import Lines, put

MARKS = "<!-- model lists -->", "<!-- end of model lists -->"
ENOUGH = 0.45
Shape = Any  # one shape, or a tuple of shapes
Build = Callable[[], tuple[nn.Module, list[Shape]]]  # a network, and the inputs that are tried, the smallest first

VOLUME, LARGE, PHOTO = (2, 1, 32, 32, 32), (2, 1, 64, 64, 64), (2, 3, 64, 64)
# by the name of an argument that has no default
ARGUMENTS: dict[str, Any] = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "num_classes": 2, "n_classes": 2, "classes": 2, "channels": (8, 16, 32),
    "strides": (2, 2, 2), "kernel_size": 3, "img_size": (32, 32, 32), "image_size": (32, 32, 32), "patch_size": (16, 16, 16),
    "in_shape": (1, 32, 32, 32), "out_shape": (2,), "latent_shape": (8,), "start_shape": (8, 8, 8, 8), "latent_size": 8,
    "input_image_size": (32, 32, 32), "num_channel_initial": 8, "depth": 2, "extract_levels": (0, 1), "hidden_channels": (32, 16),
    "encode_channels": (32, 16), "decode_channels": (16, 32), "unet_out_channels": 8, "final_conv_channels": (8, 8), "label_nc": 2,
    "num_layers_d": 2, "num_d": 2, "model_name": "efficientnet-b0", "backbone": "efficientnet-b0", "hidden_size": 48, "dim": 8,
}  # fmt: skip
# where a name means something else: MONAI's class -> (further arguments, inputs)
MONAI: dict[str, tuple[dict[str, Any], list[Shape]]] = {
    "AHnet": ({"spatial_dims": 3, "upsample_mode": "trilinear"}, [LARGE, (2, 1, 128, 128, 32)]),
    "AutoencoderKL": ({"channels": (16, 16), "attention_levels": (False, False), "num_res_blocks": 1, "norm_num_groups": 8}, [VOLUME]),
    "ControlNet": ({"channels": (16, 32), "attention_levels": (False, False), "num_res_blocks": 1, "norm_num_groups": 8,
                    "conditioning_embedding_in_channels": 1, "conditioning_embedding_num_channels": (8,)},
                   [((2, 1, 16, 16, 16), (2,), (2, 1, 16, 16, 16))]),
    "DiffusionModelUNet": ({"channels": (16, 32), "attention_levels": (False, False), "num_res_blocks": 1, "norm_num_groups": 8},
                           [((2, 1, 16, 16, 16), (2,))]),
    "SPADEDiffusionModelUNet": ({"channels": (16, 32), "attention_levels": (False, False), "num_res_blocks": 1, "norm_num_groups": 8},
                                [((2, 1, 16, 16, 16), (2,), (2, 2, 16, 16, 16))]),
    "SPADEAutoencoderKL": ({"channels": (16, 16), "attention_levels": (False, False), "num_res_blocks": (1, 1), "norm_num_groups": 8},
                           [((2, 1, 16, 16, 16), (2, 2, 16, 16, 16))]),
    "SPADENet": ({"input_shape": [32, 32, 32], "is_vae": False, "z_dim": 8}, [((2, 2, 32, 32, 32),)]),
    "DynUNet": ({"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}, [VOLUME]),
    "EfficientNetBN": ({"spatial_dims": 3, "pretrained": False, "in_channels": 1}, [VOLUME]),
    "EfficientNetBNFeatures": ({"spatial_dims": 3, "pretrained": False, "in_channels": 1}, [VOLUME]),
    "FlexibleUNet": ({"spatial_dims": 2, "in_channels": 3}, [PHOTO]),
    "FullyConnectedNet": ({"in_channels": 16}, [(4, 16)]),
    "VarFullyConnectedNet": ({"in_channels": 16}, [(4, 16)]),
    "Generator": ({}, [(2, 8)]),
    "Hovernet": ({}, [(1, 3, 256, 256)]),
    "HighResBlock": ({}, [VOLUME]),
    "MedNeXt": ({"init_filters": 8}, [LARGE]),
    "MILModel": ({"pretrained": False}, [(2, 2, 3, 64, 64)]),
    "GlobalNet": ({}, [VOLUME]),
    "LocalNet": ({}, [VOLUME]),
    "Quicknat": ({}, [PHOTO]),
    "ResNet": ({"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 16, 32, 64], "n_input_channels": 1}, [VOLUME]),
    "ResNetBlock": ({"in_planes": 8, "planes": 8}, [(2, 8, 16, 16, 16)]),
    "ResNetFeatures": ({"model_name": "resnet18", "spatial_dims": 3, "in_channels": 1, "pretrained": False}, [VOLUME]),
    "SENet": ({"block": "se_bottleneck", "layers": [1, 1, 1, 1], "groups": 1, "reduction": 16}, [VOLUME]),
    "SwinUNETR": ({"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 3}, [LARGE]),
    "ViT": ({"hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 4, "classification": True}, [VOLUME]),
    "ViTAutoEnc": ({"hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 4}, [VOLUME]),
    "MaskedAutoEncoderViT": ({"hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 4, "decoder_num_layers": 1}, [VOLUME]),
    "UNETR": ({"feature_size": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4}, [VOLUME]),
    "VNet": ({}, [VOLUME]), "VarAutoEncoder": ({}, [VOLUME]),
    "VoxelMorph": ({}, [((2, 1, 32, 32, 32), (2, 1, 32, 32, 32))]),
    "VQVAE": ({"channels": (16, 16), "num_res_channels": (16, 16), "num_res_layers": 1, "downsample_parameters": ((2, 4, 1, 1),) * 2,
               "upsample_parameters": ((2, 4, 1, 1, 0),) * 2, "num_embeddings": 16, "embedding_dim": 8}, [VOLUME]),
    "TorchVisionFCModel": ({"model_name": "resnet18", "num_classes": 2, "pretrained": False}, [PHOTO]),
    "MultiScalePatchDiscriminator": ({"channels": 8, "minimum_size_im": 32}, [LARGE]), "PatchDiscriminator": ({"channels": 8}, [VOLUME]),
    "ResNetBottleneck": ({"in_planes": 16, "planes": 4}, [(2, 16, 16, 16, 16)]), "ResNetEncoder": ({"model_name": "resnet18", "pretrained": False}, [VOLUME]),
    "EfficientNetEncoder": ({"pretrained": False, "spatial_dims": 3, "in_channels": 1}, [VOLUME]), "VoxelMorphUNet": ({"in_channels": 2, "channels": (8, 8, 8, 8)}, [(2, 2, 32, 32, 32)]),
    "PatchMerging": ({}, [(2, 8, 8, 8, 8)]), "PatchMergingV2": ({}, [(2, 8, 8, 8, 8)]),
    "DAF3D": ({}, [(2, 1, 64, 64, 64)]),
    "DecoderOnlyTransformer": ({"num_tokens": 16, "max_seq_len": 8, "attn_layers_dim": 16, "attn_layers_depth": 1, "attn_layers_heads": 2}, []),
}  # fmt: skip
SMALL = "atto femto pico nano zepto tiny micro small xxs xs lite mini 18 tiny_ s0 s_ 050 035 14 26 x_4 m0 b0 a0 l0 0".split()


def from_monai() -> Iterator[tuple[str, Build]]:
    import monai.networks.nets as nets

    seen: set[type] = set()
    for _, kind in sorted(vars(nets).items(), key=lambda item: (item[0].islower(), item[0])):
        if not (
            inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__.startswith("monai.networks.nets")
        ):
            continue
        if kind not in seen:
            seen.add(kind)
            yield kind.__name__, partial(build_monai, kind)


def build_monai(kind: Any) -> tuple[nn.Module, list[Shape]]:
    extra, shapes = MONAI.get(kind.__name__, ({}, [VOLUME, LARGE, PHOTO]))
    parameters = inspect.signature(kind.__init__).parameters.values()
    needed = {p.name: ARGUMENTS[p.name] for p in parameters if p.default is p.empty and p.name in ARGUMENTS}
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and "spatial_dims" not in needed:
        needed |= {"spatial_dims": 3, "in_channels": 1}
    return kind(**{**needed, **extra}), shapes


def from_nnunet() -> Iterator[tuple[str, Build]]:
    from dynamic_network_architectures.architectures import unet

    for name, kind in vars(unet).items():
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == unet.__name__:
            for supervised in (False, True):
                yield f"{name}{', deep supervision' * supervised}", partial(build_nnunet, kind, supervised)


def build_nnunet(kind: Any, supervised: bool) -> tuple[nn.Module, list[Shape]]:
    known = {"input_channels": 1, "n_stages": 3, "features_per_stage": (8, 16, 32), "conv_op": nn.Conv3d, "kernel_sizes": 3,
             "strides": (1, 2, 2), "num_classes": 3, "conv_bias": True, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True},
             "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": supervised,
             "n_conv_per_stage": 2, "n_blocks_per_stage": 2, "n_conv_per_stage_decoder": 2}  # fmt: skip
    takes = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in known.items() if name in takes}), [VOLUME]


def from_timm() -> Iterator[tuple[str, Build]]:
    import timm
    from timm.models import _registry

    modules: dict[str, list[str]] = {}
    for name in timm.list_models():
        modules.setdefault(_registry._model_to_module[name], []).append(name)
    for _, names in sorted(modules.items()):
        rank = {name: next((k for k, word in enumerate(SMALL) if word in name), len(SMALL)) for name in names}
        name = min(names, key=lambda name: (rank[name], len(name)))
        yield name, partial(build_timm, name)


def build_timm(name: str) -> tuple[nn.Module, list[Shape]]:
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=10)
    size = model.default_cfg.get("input_size", (3, 224, 224))
    return model, [(2, size[0], 64, 64), (2, size[0], 128, 128), (2, *size)]


def from_torchvision() -> Iterator[tuple[str, Build]]:
    from torchvision import models

    for name in models.list_models(module=models.video):
        yield name, partial(build_torchvision, name)


def build_torchvision(name: str) -> tuple[nn.Module, list[Shape]]:
    from torchvision import models

    return models.get_model(name, num_classes=10), [(2, 3, 8, 64, 64), (2, 3, 16, 64, 64), (1, 3, 16, 224, 224)]


def from_pytorchvideo() -> Iterator[tuple[str, Build]]:
    import pytorchvideo.models.hub as hub

    for name, make in sorted(vars(hub).items()):
        if inspect.isfunction(make) and "detection" not in name and "efficient" not in name:
            yield name, partial(build_pytorchvideo, make)


def build_pytorchvideo(make: Any) -> tuple[nn.Module, list[Shape]]:
    clips: list[Shape] = [
        (2, 3, 8, 64, 64),
        (1, 3, 8, 160, 160),
        (1, 3, 8, 224, 224),
        (1, 3, 16, 224, 224),
        (1, 3, 32, 224, 224),
    ]
    return make(pretrained=False), [*clips, [(1, 3, 8, 224, 224), (1, 3, 32, 224, 224)]]


LISTS: dict[str, tuple[str, Callable[[], Iterator[tuple[str, Build]]]]] = {
    "MONAI": ("monai", from_monai), "nnU-Net": ("dynamic_network_architectures", from_nnunet), "timm": ("timm", from_timm),
    "torchvision, video": ("torchvision", from_torchvision), "pytorchvideo": ("pytorchvideo", from_pytorchvideo),
}  # fmt: skip


def inputs(shape: Shape, seed: int) -> Any:
    """Noise; a list of shapes is one argument that is a list; whole numbers where there is one axis."""
    g = torch.Generator().manual_seed(seed)
    if isinstance(shape, list):
        return ([inputs(each, seed) for each in shape],)
    if isinstance(shape[0], tuple):
        return tuple(inputs(each, seed) for each in shape)
    return torch.randint(10, shape, generator=g) if len(shape) == 1 else torch.randn(shape, generator=g)


def first_that_runs(model: nn.Module, shapes: list[Shape]) -> Shape | None:
    for shape in shapes:
        x = inputs(shape, 0)
        try:
            with torch.no_grad():
                model.eval()(*x) if isinstance(x, tuple) else model.eval()(x)
            return shape
        except Exception:  # whatever it is: the next size
            continue
    return None


def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    """Of all that is real in the output: some give counts or indices beside it."""
    return zoo.loss([t for t in tensors_in(output) if t.is_floating_point()], target)


def row(build: Build) -> dict[str, Any]:
    """What came of one network."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        model, shapes = build()
        shape = first_that_runs(model, shapes)
    except Exception as error:
        return {"outcome": "not built", "says": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    if shape is None:
        return {"outcome": "not built", "says": "takes none of the inputs that are tried"}
    start = time.perf_counter()
    batches = [(x := inputs(shape, seed), torch.zeros(tensors_in(x)[0].shape[0])) for seed in range(2)]
    try:
        pruned = ranp.prune(model, batches, loss=loss, sparsity=0.5, device="cpu", allow_less=True)
    except ranp.BadInput as error:
        return {"outcome": "refused", "says": str(error)[:300]}
    except Exception as error:
        return {"outcome": "defect", "says": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    report = pruned.report.to_dict()
    removed, causes = report["sparsity"]["achieved"], report.get("held_back", [])
    silent = removed < ENOUGH and not causes
    return {
        "outcome": "defect" if silent else "pruned",
        "says": "less than asked, and no cause"
        if silent
        else "; ".join(sorted({c["reason"].partition(" at ")[0] for c in causes}))[:200],
        "neurons": report["neurons"]["total"],
        "removed": removed,
        "error_fp64": report["verified"].get("max_rel_error_fp64"),
        "seconds": round(time.perf_counter() - start, 1),
    }


def alone(build: Build, limit: float) -> dict[str, Any]:
    """`row` in a process of its own."""
    here, there = multiprocessing.Pipe()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        there.send(row(build))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    there.close()
    try:
        return dict(here.recv()) if here.poll(limit) else {"outcome": "too long", "says": f"over {limit:.0f} s"}
    except EOFError:
        return {"outcome": "defect", "says": "the process died"}
    finally:
        process.kill()
        process.join()


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| list | networks | pruned | median removed at 0.5 | least | largest error, fp64 | refused | not built or too long | defects |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in LISTS:
        mine = [r for r in rows if r["list"] == name]
        done = [r for r in mine if r["outcome"] == "pruned"]
        if not mine:
            continue
        count = {
            kind: sum(r["outcome"] == kind for r in mine) for kind in ("refused", "not built", "too long", "defect")
        }
        removed = [r["removed"] for r in done] or [0.0]
        errors = [r["error_fp64"] for r in done if r["error_fp64"] is not None] or [0.0]
        cells = [name, len(mine), len(done), f"{statistics.median(removed):.1%}", f"{min(removed):.1%}", f"{max(errors):.0e}",
                 count["refused"], count["not built"] + count["too long"], count["defect"]]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| network | removed | why not 45 %, or what it says |", "|---|---:|---|"]
    for r in rows:
        if r["outcome"] != "pruned" or r["removed"] < ENOUGH:
            removed = f"{r['removed']:.1%}" if "removed" in r else r["outcome"]
            lines.append(f"| {r['list']}: {r['network']} | {removed} | {r['says'].replace('|', '/')} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lists", nargs="*", help=f"of {', '.join(LISTS)}; all by default")
    parser.add_argument("--rows", metavar="FILE", required=True, help="JSON lines, from which a later run goes on")
    parser.add_argument("--limit", type=float, default=240, help="seconds for one network")
    parser.add_argument("--only", metavar="NAME", help="one network, in this process")
    parser.add_argument("--write", metavar="PAGE", help="put the table between the marks of this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # forked processes cannot share a pool of threads
    declare_torchvision_ops()
    rows, kept = [], Lines(Path(options.rows), ("list", "network"))
    for name in options.lists or LISTS:
        package, networks = LISTS[name]
        if find_spec(package) is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(package)
            for network, build in networks():
                if options.only is None:
                    rows.append(kept.get(partial(alone, build, options.limit), list=name, network=network))
                    print(*rows[-1].values(), flush=True)
                elif options.only == network:
                    print(row(build))
    if options.only is None:
        if options.write:
            put(Path(options.write), markdown(rows), MARKS)
        print(markdown(rows))


if __name__ == "__main__":
    main()
