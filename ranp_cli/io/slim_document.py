"""What the document in a slim file or a file of scores must look like, and its numbers held against the file's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..core.documents import check_form
from ..core.errors import BadInput
from ..core.signature import check_signature

REWRITE = "copy it again, or write it anew with ranp"
RECORDED = (
    "before",
    "after",
    "reduction",
    "memory",
    "layers",
    "verified",
    "uncounted_ops",
    "not_pruned",
)  # of a profile

_PLAIN = (None, bool, float, str)
_COSTS = {
    "params": int,
    "params_bytes": int,
    "macs": int,
    "flops": int,
    "activation_bytes": int,
    "peak_forward_bytes": int,
    "paper?": {"param_mb?": float, "gflops?": float, "memory_mb?": float},
    "train_macs?": int,
    "train_flops?": int,
}
_MEMORY = {
    "samples": int,
    "optimizer": str,
    "device?": str,
    "forward_peak_bytes?": int,
    "forward_peak_at?": str,
    "train_peak_bytes?": int,
    "train_peak_at?": str,
    "error?": str,
    "train_error?": str,
    "amp?": {"device": str},
    "unprunable_bytes?": int,
    "train_parts?": dict.fromkeys(("parameters", "gradients", "optimizer", "saved"), int),
    "by_module?": [{"module": str, "bytes": int}],
}
_LAYER = {
    "name": str,
    "op": str,
    "kernel": [int],
    "neurons": int,
    "params": int,
    "macs": int,
    "output_elements": int,
    "output_bytes": int,
    "kept": int,
    "params_after": int,
    "macs_after": int,
    "output_elements_after": int,
    "output_bytes_after": int,
    "latency_ms?": float,
    "importance_mean?": float,
    "tau?": float,
    "reweighting?": float,
    "floored?": bool,
    "fixed?": str,
}
_VERIFIED = {
    "against?": str,
    "input?": str,
    "max_rel_error_fp64?": (None, float),
    "max_rel_error_fp32?": (None, float),
    "max_abs_error?": (None, float),
    "not_comparable?": [str],
}
_MODEL = {"spec": (None, str), "args?": {str: object}, "fingerprint": str, "input?": dict, "profiled_input?": dict}
SLIM_FORM = {
    "model": {**_MODEL, "parameters": {str: [int]}},
    "attributes": {str: {str: (int, [int])}},
    "mask": {
        "method": dict,
        "sparsity": dict,
        "neurons": {"total": int, "kept": int},
        "layers": {str: {"neurons": int, "kept": [int]}},
        "run?": (None, str),
        "floored": [str],
        "fixed": {str: str},
    },
    "aliases": {str: str},
    "buffers_outside_state?": [str],
    "profile": {
        "before": _COSTS,
        "after": _COSTS,
        "layers": [_LAYER],
        "reduction?": dict,
        "verified?": _VERIFIED,
        "memory?": {"before?": _MEMORY, "after?": _MEMORY},
        "uncounted_ops?": [{"op": str, "module": str, "count": int}],
        "not_pruned?": [{"layer": str, "reason": str}],
    },
    "digest?": str,
}
SCORES_FORM = {
    "criterion": str,
    "batches": int,
    "seed?": int,
    "score_init?": frozenset({"keep", "factory", "glorot", "orthogonal"}),
    "precision?": str,
    "loss?": str,
    "ignore_index?": (int, float, str),
    "digest?": str,
    "model": {**_MODEL, "input": dict, "weights?": str},
}
METHOD_FORM = {
    "name?": str,
    "criterion?": (None, str),
    "resource?": str,
    "lambda?": (None, float),
    "seed?": (None, int),
}


def check_slim(document: dict[str, Any], what: str) -> None:
    """BadInput unless the document has the form that `load` and `profile` read."""
    check_form(document, SLIM_FORM, what, REWRITE)
    check_form(document["mask"]["method"], METHOD_FORM, what, REWRITE, "mask.method")
    check_form(
        document["mask"]["sparsity"],
        {"achieved": float, "requested?": (None, float, str)},
        what,
        REWRITE,
        "mask.sparsity",
    )
    for side in document["profile"].get("memory", {}).values():
        if "train_parts" in side:
            check_form(side, {"train_peak_at": str, "train_peak_bytes": int}, what, REWRITE, "profile.memory")
    for key in ("input", "profiled_input"):
        if key in document["model"]:
            check_signature(document["model"][key], what, REWRITE)


def check_scores(document: dict[str, Any], what: str) -> None:
    check_form(document, SCORES_FORM, what, REWRITE)
    check_signature(document["model"]["input"], what, REWRITE)


def check_counts(document: dict[str, Any], tensors: Mapping[str, Mapping[str, Any]], what: str) -> None:
    """BadInput where the recorded numbers are not those of the tensors in the file.

    Parameters and bytes are counted from the tensors' shapes. Multiply-adds are the weights of a layer times the positions
    of its output, and of these only the positions are taken from the record. Memory is at least that of the parameters.

    Args:
        tensors: name -> {dtype, shape, data_offsets}, the header of the file.
    """
    aliases, profile = document["aliases"], document["profile"]
    before, after = profile["before"], profile["after"]

    def differs(which: str, recorded: int, counted: int) -> BadInput:
        return BadInput(f"{what}: records {recorded:,} {which}, its tensors have {counted:,}; {REWRITE}")

    def tensor(name: str) -> Mapping[str, Any]:
        found = tensors.get(aliases.get(name, name))
        if found is None:
            raise BadInput(f"{what}: lacks the tensor {name[-80:]}; {REWRITE}")
        return found

    parameters = {name: tensor(name) for name in document["model"]["parameters"]}
    params = sum(math.prod(each["shape"]) for each in parameters.values())
    held = sum(each["data_offsets"][1] - each["data_offsets"][0] for each in parameters.values())
    if after["params"] != params:
        raise differs("parameters", after["params"], params)
    if after["params_bytes"] != held:
        raise differs("bytes of parameters", after["params_bytes"], held)

    layers = document["mask"]["layers"]
    for row in profile["layers"]:
        name, weight = row["name"], parameters.get(f"{row['name']}.weight")
        if name in layers and row["kept"] != len(layers[name]["kept"]):
            raise BadInput(
                f"{what}: layer {name[-80:]} keeps {len(layers[name]['kept'])} neurons by its mask, {row['kept']} by its profile; {REWRITE}"
            )
        if weight is None or not row["op"].startswith(("conv", "linear")) or not row["macs_after"]:
            continue
        if row["kept"] not in weight["shape"][:2] and not row["op"].startswith("conv_transpose"):
            raise differs(f"neurons of layer {name[-80:]}", row["kept"], weight["shape"][0])
        if row["op"].startswith("conv_transpose"):
            continue  # its multiply-adds are per position of the input, which the record does not hold
        counted = row["output_elements_after"] * math.prod(weight["shape"])
        if row["macs_after"] * row["kept"] != counted:
            raise differs(f"multiply-adds of layer {name[-80:]}", row["macs_after"], counted // max(1, row["kept"]))
    later, others = (
        sum(row["macs_after"] for row in profile["layers"]),
        before["macs"] - sum(row["macs"] for row in profile["layers"]),
    )
    if not later <= after["macs"] <= later + max(0, others) or after["flops"] != 2 * after["macs"]:
        raise BadInput(f"{what}: records {after['macs']:,} multiply-adds, and its layers have {later:,}; {REWRITE}")
    training = profile.get("memory", {}).get("after", {}).get("train_peak_bytes", held)
    if min(after["peak_forward_bytes"], training) < held:
        raise BadInput(f"{what}: records a peak of memory below the {held:,} bytes of its parameters; {REWRITE}")
