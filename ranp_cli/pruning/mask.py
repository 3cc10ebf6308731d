"""mask.json: which neurons of which layer are kept, by which method, of which model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.atomic import write_atomic
from ..core.documents import check_form, check_numbers, parse_json, shown
from ..core.errors import BadInput
from ..core.reading import read_bytes
from ..core.signature import check_signature
from ..graph.graph import Graph, worded

if TYPE_CHECKING:
    from torch import nn


FORMAT, VERSION = "ranp-mask", 1
WRITE = "give a mask.json written by ranp prune"
INITS = frozenset({"keep", "factory", "glorot", "orthogonal"})
REST = {  # of a mask, beside its layers: what is read of it, where it is there
    "model": {"spec?": (None, str), "args?": {str: object}, "fingerprint?": str},
    "method": {
        "name?": (None, str),
        "criterion?": (None, str),
        "resource?": (None, str),
        "resource_term?": (None, str),
        "lambda?": (None, float),
        "init?": INITS,
        "seed?": (None, int),
        "score_init?": INITS,
        "latency?": {"seconds?": {str: float}},
    },
    "sparsity": {"requested?": (None, float, str), "achieved?": float},
    "fixed": {str: str},
}
SCHEMA = Path(__file__).with_name("mask.schema.json")


@dataclass
class Mask:
    """Kept neurons by layer, in forward order. `to_dict` gives the document that `mask.json` holds."""

    layers: dict[str, dict[str, Any]]  # name -> {"neurons": int, "kept": sorted indices}
    model: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    requested: float | str | None = None
    floored: list[str] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)
    run: str | None = None  # the same in all that one run has written

    @property
    def total(self) -> int:
        return sum(layer["neurons"] for layer in self.layers.values())

    @property
    def kept(self) -> int:
        return sum(len(layer["kept"]) for layer in self.layers.values())

    @property
    def achieved(self) -> float:
        return 1 - self.kept / self.total

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "method": self.method,
            "sparsity": {"requested": self.requested, "achieved": round(self.achieved, 6)},
            "neurons": {"total": self.total, "kept": self.kept},
            "layers": self.layers,
            "floored": self.floored,
            "fixed": self.fixed,
            **({"run": self.run} if self.run else {}),
        }

    def name_run(self, slim: nn.Module) -> None:
        """Name the run that made this mask and this slim network, by what they hold: the same input has the same name."""
        digest = hashlib.sha256(json.dumps({**self.to_dict(), "run": None}).encode())
        for name, t in slim.state_dict().items():
            digest.update(name.encode())
            if hasattr(t, "numel") and t.numel():
                digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.run = digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write mask.json; an existing file is replaced by a whole one. One line a layer, the same bytes each time."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return to_json(self.to_dict()).encode()

    @classmethod
    def of(cls, mask: Mask | dict[str, Any] | str | Path) -> Mask:
        """A Mask from a Mask, from its dict, or from a path. Raises BadInput for anything else."""
        if isinstance(mask, Mask):
            return mask
        if isinstance(mask, (str, Path)):
            return cls.of(_read(Path(mask)))
        if not isinstance(mask, dict) or mask.get("format") != FORMAT:
            raise BadInput(
                f"a mask must be a document of format '{FORMAT}', not {_shown(mask)}; write one with ranp prune"
            )
        if mask.get("version") != VERSION:
            raise BadInput(
                f"mask version {shown(mask.get('version'))} is not {VERSION}; write it anew with this version of ranp"
            )
        layers = mask.get("layers")
        if not isinstance(layers, dict) or not layers:
            raise BadInput("the mask names no layers; write one with ranp prune")
        for name, layer in layers.items():
            _check_layer(name, layer)
        for key, kind in (("model", dict), ("method", dict), ("sparsity", dict), ("fixed", dict), ("floored", list)):
            if not isinstance(mask.get(key) or kind(), kind):
                raise BadInput(
                    f"'{key}' of the mask must be {'an object' if kind is dict else 'a list'}, not {shown(mask[key])}"
                )
        check_form({key: mask.get(key) or {} for key in REST}, REST, "the mask", WRITE)
        check_numbers({key: mask.get(key) for key in (*REST, "floored")}, "the mask", WRITE)
        check_form(mask.get("floored") or [], [str], "the mask", WRITE, "floored")
        given = (mask.get("model") or {}).get("input")
        if given is not None:
            check_signature(given, "the mask", "leave it out, or write it anew with ranp prune")
        sparsity = mask.get("sparsity") or {}
        return cls(
            layers,
            mask.get("model") or {},
            mask.get("method") or {},
            sparsity.get("requested"),
            list(mask.get("floored") or []),
            dict(mask.get("fixed") or {}),
            mask["run"] if isinstance(mask.get("run"), str) else None,
        )

    @classmethod
    def from_units(cls, graph: Graph, keep: np.ndarray, **about: Any) -> Mask:
        """The mask of a selection: one flag per unit."""
        layers, fixed = {}, {}
        pieces = zip(graph.layers, graph.by_layer(keep[graph.unit]), graph.by_layer(graph.unit), strict=True)
        for layer, kept, units in pieces:
            layers[layer.name] = {"neurons": len(kept), "kept": np.flatnonzero(kept).tolist()}
            reasons = [graph.reasons[u] for u in units]
            if all(reasons):
                fixed[layer.name] = "; ".join(dict.fromkeys(str(r) for r in reasons))
        return cls(layers, fixed=fixed, **about)

    def difference(self, model: nn.Module) -> str:
        """What sets a model of another fingerprint apart, in a few words."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, layer in self.layers.items():
            weight = next((parameters[k] for k in (f"{name}.weight", name) if k in parameters), None)
            if weight is None and not any(k.startswith(f"{name}.") for k in parameters):
                return f"the model lacks layer {name}"
            if weight is not None and layer["neurons"] not in weight.shape[:2]:
                return f"layer {name} has {weight.shape[0]} neurons, {layer['neurons']} in the mask"
        return "the layers of the mask are there, but other parameters differ in name or shape"

    def units(self, graph: Graph) -> np.ndarray:
        """One flag per unit of `graph`. Raises BadInput where the mask is of another network or splits tied neurons."""
        names = [layer.name for layer in graph.layers]
        missing = [name for name in names if name not in self.layers]
        unknown = [name for name in self.layers if name not in names]
        if missing or unknown:
            parts = [
                f"{what} {', '.join(some[:3])}{', ...' * (len(some) > 3)}"
                for what, some in (("the mask lacks", missing), ("the model lacks", unknown))
                if some
            ]
            raise BadInput(
                f"the mask is of another network: {'; '.join(parts)}; give the mask that was made for this model"
            )
        flags = []
        for layer in graph.layers:
            given = self.layers[layer.name]
            if given["neurons"] != len(layer.neurons):
                raise BadInput(
                    f"the mask is of another network: layer {layer.name} has {len(layer.neurons)} neurons, "
                    f"{given['neurons']} in the mask; give the mask that was made for this model"
                )
            kept = np.zeros(len(layer.neurons), dtype=bool)
            kept[given["kept"]] = True
            flags.append(kept)
        flat = np.concatenate(flags)
        split = split_units(graph, flat)
        if split.size and graph.take_apart(split):  # as they were when the mask was made
            split = split_units(graph, flat)
        if split.size:
            tied = layers_of(graph, split[0])
            raise BadInput(
                f"the mask keeps only some of the neurons that are tied in {', '.join(tied[:4])}; keep all of a unit or none"
            )
        keep = np.zeros(len(graph.unit_roots), dtype=bool)
        keep[graph.unit[flat]] = True
        for part in (part for part in graph.parts if not keep[part].any()):
            at = layers_of(graph, part[0])[0]
            raise BadInput(
                f"the mask removes all neurons of {at} that some op reads, as behind a slice; keep one of them"
            )
        lost = np.flatnonzero(graph.fixed_units & ~keep)
        if lost.size:
            at = layers_of(graph, lost[0])[0]
            raise BadInput(
                f"the mask removes neurons of {at} that may not go ({worded(graph.reasons[lost[0]])}); keep them"
            )
        return keep

    def transfer(self, graph: Graph) -> tuple[np.ndarray, dict[str, Any]]:
        """One flag per unit of another network of the same architecture, and what was matched and what was left.

        Layers of the same name and size take their neurons over. What is left must be free of choice: layers that may
        not be pruned anyway, such as an output of other classes. Raises BadInput otherwise.
        """
        kept, known = np.zeros(graph.n, dtype=bool), np.zeros(graph.n, dtype=bool)
        for layer, flags, is_known in zip(graph.layers, graph.by_layer(kept), graph.by_layer(known), strict=True):
            given = self.layers.get(layer.name)
            if given is not None and given["neurons"] == len(layer.neurons):
                flags[given["kept"]], is_known[:] = True, True
        graph.take_apart(split_units(graph, kept, known))  # as they were when the mask was made
        keep = graph.fixed_units.copy()
        pieces = list(zip(graph.layers, graph.by_layer(graph.unit), strict=True))
        decided, matched = graph.fixed_units.copy(), []
        left = dict.fromkeys(self.layers.keys() - {layer.name for layer in graph.layers}, "not in the model")
        for layer, units in pieces:
            given = self.layers.get(layer.name)
            if given is None or given["neurons"] != len(units):
                left[layer.name] = (
                    "not in the mask" if given is None else f"{len(units)} neurons, {given['neurons']} in the mask"
                )
                continue
            matched.append(layer.name)
            keep[units[given["kept"]]] = True
            decided[units] = True
        for layer, units in pieces:
            if not decided[units].all():
                raise BadInput(
                    f"the mask cannot be transferred: layer {layer.name} has {left[layer.name]}, and it may be pruned; "
                    "give a model that differs in its input's channels and its output's classes alone"
                )
        if not matched:
            raise BadInput(
                "the mask cannot be transferred: no layer of the model has the name and size of one of the mask"
            )
        return keep, {"matched": matched, "left": [{"layer": name, "reason": why} for name, why in left.items()]}


def layers_of(graph: Graph, unit: int) -> list[str]:
    """The layers that have a neuron of this unit."""
    return [layer.name for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True) if unit in units]


def split_units(graph: Graph, kept: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """The units of which some neurons stay and others do not, from one flag a neuron; `known` flags those that are looked at."""
    counts = [
        np.bincount(graph.unit, weights=each if known is None else each & known, minlength=len(graph.unit_roots))
        for each in (kept, ~kept)
    ]
    return np.flatnonzero(np.minimum(*counts) > 0)


def to_json(document: dict[str, Any]) -> str:
    """JSON with one line a layer: readable, and friendly to diff."""
    lines = []
    for key, value in document.items():
        if key == "layers":
            rows = [f"    {json.dumps(name)}: {json.dumps(layer)}" for name, layer in value.items()]
            text = "{\n" + ",\n".join(rows) + "\n  }"
        else:
            text = json.dumps(value)
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _read(path: Path) -> Any:
    what = f"mask {path}"
    return parse_json(read_bytes(path, what, wanted=WRITE), what, WRITE)


def _check_layer(name: str, layer: Any) -> None:
    neurons = layer.get("neurons") if isinstance(layer, dict) else None
    kept = layer.get("kept") if isinstance(layer, dict) else None
    sound = type(neurons) is int and isinstance(kept, list) and all(type(i) is int and 0 <= i < neurons for i in kept)
    if not sound or not kept or len(set(kept)) != len(kept):
        raise BadInput(
            f"layer {str(name)[-80:]} of the mask must be {{'neurons': N, 'kept': [one or more different indices below N]}}"
        )


def _shown(value: Any) -> str:
    return f"one of format {shown(value.get('format'))}" if isinstance(value, dict) else f"a {type(value).__name__}"
