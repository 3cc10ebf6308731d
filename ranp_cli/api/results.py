"""What comes out of `score` and `prune`: the scores, the slim network, and how both are kept in files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.atomic import together, write_atomic, write_now
from ..core.contexts import ignoring
from ..core.documents import shown
from ..core.errors import BadInput, nearest
from ..core.example import Example
from ..core.paths import mask_beside
from ..core.spelling import spelled
from ..graph.graph import Graph
from ..integrations.common import Project, Slim
from ..io.header import header_of
from ..io.inputs import refuse_inputs
from ..io.slim_file import SCORES, SLIM, VERSION, read_document, read_tensors, slim_tensors, to_bytes
from ..pruning.mask import Mask
from ..pruning.methods import METHODS, weigh
from ..reporting.report import Report
from ..scoring.compensated_sum import CompensatedSum
from ..scoring.criteria import CRITERIA
from ..scoring.setup import Importance
from ..scoring.zero_scores import SAID, find_zeros, unranked
from .session import Session

SUM, REST = "ranp:sum:", "ranp:rest:"  # in a file of scores, before a layer's name
BEGUN = "ranp:begun"  # in a file of scores by the oracle: what it has of the next mini-batch
BESIDE = "beside"  # where a mask goes that nobody gave a place
UNSAID = "default"  # recorded when the option was not given


@dataclass
class Scores:
    """Importance of every neuron: `layers` maps a layer's name to its N_l scores, as the criterion gives them."""

    layers: dict[str, np.ndarray]
    about: dict[str, Any]  # criterion, score_init, seed, precision, loss, ignore_index, batches, model
    report: Report = field(default_factory=lambda: Report("score"))
    sums: dict[str, CompensatedSum] = field(
        default_factory=dict
    )  # by layer: what the scores are the mean of, to go on from
    begun: np.ndarray = field(
        default_factory=lambda: np.empty(0)
    )  # the oracle's changes of the loss, of the next mini-batch

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `prune(scores=path)` takes; no new gradients are needed then."""
        _write(path, self._bytes(self.about), self.report)

    def keep(self, path: str | Path) -> None:
        """Write at once what an unfinished scoring goes on from; the file says that it is unfinished."""
        write_now(path, self._bytes({**self.about, "unfinished": True}))

    def _bytes(self, about: dict[str, Any]) -> bytes:
        tensors = {name: torch.from_numpy(values) for name, values in self.layers.items()}
        for name, total in self.sums.items():
            tensors |= {f"{SUM}{name}": total.high, f"{REST}{name}": total.low}
        if len(self.begun):
            tensors[BEGUN] = torch.from_numpy(self.begun)
        return to_bytes(tensors, {"format": SCORES, "version": VERSION, **about})

    def plot(self, path: str | Path) -> None:
        """Fig. 3 of the paper: these scores, and with layers of equal mean (extra `plot`)."""
        from ..reporting.plots import importance

        if self.about["criterion"] == "snip":
            raise BadInput(f"criterion 'snip' scores weights, not neurons; take another {spelled('criterion')}")
        values, rows = list(self.layers.values()), self.report.parts["layers"]
        rankings = {"vanilla": values, "weighted": weigh(values, "weighted", None, 0.0, 0)}
        kept = [row["kept"] for row in rows] if "kept" in rows[0] else None
        stay = {"vanilla": sum(kept)} if kept else {}
        importance(path, list(self.layers), rankings, kept, self.about["model"]["spec"] or "", stay)

    @classmethod
    def of(cls, scores: Scores | str | Path) -> Scores:
        """Scores from Scores or from a file; BadInput when it is no such file."""
        if isinstance(scores, Scores):
            return scores
        about = read_document(scores, SCORES)
        tensors = read_tensors(scores)
        _check_scores(scores, tensors, about)
        sums = {
            name.removeprefix(SUM): CompensatedSum(t, tensors[REST + name.removeprefix(SUM)])
            for name, t in tensors.items()
            if name.startswith(SUM)
        }
        _check_said(scores, about)
        begun = tensors[BEGUN].double().reshape(-1).numpy() if BEGUN in tensors else np.empty(0)
        layers = {name: t.double().numpy() for name, t in tensors.items() if not name.startswith((SUM, REST, BEGUN))}
        return cls(layers, about, sums=sums, begun=begun)

    @property
    def criterion(self) -> str:
        return str(self.about["criterion"])

    def check_network(self, session: Session, criterion: str | None) -> Scores:
        """These scores; BadInput when they are of another network, or of another criterion than is asked for."""
        if self.about["model"]["fingerprint"] != session.model_info["fingerprint"]:
            raise BadInput("the scores are of another network: its parameters differ; score this model first")
        if criterion not in (None, self.about["criterion"]):
            raise BadInput(
                f"criterion '{criterion}' was asked, the scores are of '{self.about['criterion']}'; leave it out or score anew"
            )
        return self

    def resumed(self, session: Session, graph: Graph, how: dict[str, Any], most: int | None) -> Importance:
        """What `score` goes on from; BadInput when these scores were taken of something else.

        Args:
            how: the options that they must have been taken with.
            most: how many mini-batches there are, those of these scores among them; None when nobody knows.
        """
        self.check_network(session, how["criterion"])
        taken = {"precision": "model", **self.about}  # which was not written down, once
        if taken["precision"] == "auto":
            raise BadInput(
                f"{spelled('resume')}: these scores were taken with {spelled('precision', 'auto')}, which decides once, on the first "
                "mini-batch; score anew with bf16 or fp32 to go on from that"
            )
        for key, value in how.items():
            if taken.get(key) not in (None, value):  # None: not written down by the ranp that wrote the file
                then, now = (_given(key, each) for each in (taken[key], value))
                raise BadInput(
                    f"{spelled('resume')}: these scores were taken {then}, not {now}; go on {then}, or score anew"
                )
        if most is not None and most < taken["batches"]:
            raise BadInput(
                f"{spelled('resume')}: these are the scores of {taken['batches']} mini-batches, and {spelled('batches')} gives {most}; "
                f"give the same {spelled('batches')}, and {spelled('batch_limit')} of more than there are, or none"
            )
        values = self.in_order(graph, session)
        zeros = find_zeros(session.model, graph).facts(graph)
        if differing := [names[0] for key, names in zeros.items() if self.about.get(key) != names]:
            raise BadInput(
                f"{spelled('resume')}: these scores were taken with the zeros of {differing[0]}, by an older ranp, which "
                "no gradient passes; score anew"
            )
        if not self.sums and not len(self.begun):
            raise BadInput(f"{spelled('resume')}: this file holds scores, but not their sums; score anew")
        sums = [self.sums.get(layer.name) for layer in graph.layers]
        return Importance(values, self.about["batches"], sums, begun=self.begun.tolist())

    def in_order(self, graph: Graph, session: Session) -> list[np.ndarray]:
        """Scores by layer of `graph`; BadInput when they are of other weights or another network."""
        if self.about["model"].get("weights") not in (None, session.weights_digest()):
            raise BadInput(
                f"the scores are of other weights than the model now has; give the same {spelled('seed')} and {spelled('weights')} as to ranp score"
            )
        for layer in graph.layers:
            values = self.layers.get(layer.name)
            shape = graph.slots[layer.slot].shape if self.about["criterion"] == "snip" else (len(layer.neurons),)
            if values is None or values.shape != shape:
                have = "no such layer" if values is None else f"{len(values)} neurons"
                raise BadInput(
                    f"the scores are of another network: layer {layer.name} has {len(layer.neurons)} neurons, the scores have "
                    f"{have}; score this model first"
                )
        return [self.layers[layer.name] for layer in graph.layers]

    def not_ranked(self, graph: Graph) -> dict[str, str]:
        """Layer -> why its scores say nothing: as the file has it, and each whose scores are all zero."""
        reasons: dict[str, str] = self.about.get("not_ranked") or {}
        return unranked(graph, [self.layers[layer.name] for layer in graph.layers], reasons)


@dataclass
class Pruned:
    """`model`: the slim `nn.Module`; `mask`: what was kept; `report`: the numbers."""

    model: nn.Module
    mask: Mask
    report: Report
    about: dict[str, Any]
    rankings: dict[str, list[np.ndarray]] = field(default_factory=dict)  # what was ranked by, step by step
    project: Project | None = None  # a framework's file that the model came from

    @property
    def header(self) -> dict[str, Any]:
        """The slim network without its weights, for `ranp_cli.build`: shapes, attributes, digests; JSON can hold it."""
        return header_of(self.model, self.about, self.mask)

    def plot(self, path: str | Path) -> None:
        """Fig. 3 of the paper: the importance of every neuron by layer, and the share that stays (extra `plot`).

        After pruning in rounds: the metric, or the loss, of each round against its multiply-adds.
        """
        from ..reporting.plots import importance

        if "rounds" in self.report.parts:
            from ..reporting.rounds_table import rounds_plot

            return rounds_plot(path, self.report.parts, self.about["model"]["spec"] or "")
        if not self.rankings:
            raise BadInput(f"this method ranks no neurons by importance; take another {spelled('method')}")
        kept = [len(layer["kept"]) for layer in self.mask.layers.values()]
        neurons = sum(layer["neurons"] for layer in self.mask.layers.values())
        asked = self.mask.requested
        stay = int(neurons * (1 - asked)) if isinstance(asked, float) else sum(kept)
        by_layer = METHODS[self.mask.method["name"]].by_layer  # each layer then has a threshold of its own
        best = {} if by_layer else {list(self.rankings)[-1]: stay}
        return importance(path, list(self.mask.layers), self.rankings, kept, self.about["model"]["spec"] or "", best)

    def _save_script(self, path: str | Path) -> None:
        if not isinstance(self.model, torch.jit.ScriptModule):
            raise BadInput(f"{path}: a .pt file is written for a TorchScript model only; give a .safetensors name")
        with ignoring((DeprecationWarning, "")):
            _write(path, self.model.save_to_buffer(), self.report)

    def save(self, path: str | Path, mask: str | Path | None = BESIDE) -> None:
        """Write slim.safetensors: tensors, and in its metadata all that `load` and `profile` need; and its mask.

        A path that ends in `.onnx` takes a checked ONNX file, one in `.pt2` torch.export's program, likewise checked, one in
        `.pt` the slim TorchScript, when the model was one. Of nnU-Net's plans `.json` are slim plans, and `.pth` the weights
        for its `-pretrained_weights`.

        Args:
            mask: where the mask goes; by default beside it, as `slim.mask.json`. None: nowhere.
        """
        with together():  # the pair comes to its places at once
            self._save_slim(path)
            if mask is not None:
                self.save_mask(mask_beside(path) if mask == BESIDE else mask)

    def _save_for(self, project: Project, path: str) -> None:
        """Write a file that a framework reads, and note what its user must know."""
        output = project.output(
            Slim(self.model, self.mask, self.header, tuple(self.report.parts.get("outputs", {}))), path
        )
        _write(path, output.data, self.report)
        if output.holds is not None:
            self.report.parts["outputs"][path]["next"] = output.holds
        if output.notes:
            self.report.parts.setdefault("notes", []).extend(output.notes)

    def save_mask(self, path: str | Path) -> None:
        """Write mask.json."""
        refuse_inputs([os.fspath(path)], self.report.inputs.items())
        self.mask.save(path)
        _record(path, self.mask.to_bytes(), self.report)

    def _save_slim(self, path: str | Path) -> None:
        suffix = Path(path).suffix
        if self.project is not None and suffix in self.project.suffixes:
            self._save_for(self.project, str(path))
            return
        if suffix == ".pt":
            self._save_script(path)
            return
        if suffix in (".onnx", ".pt2"):
            from ..io.exchange.onnx_export import to_onnx
            from ..io.exchange.pt2_export import to_pt2

            refuse_inputs([os.fspath(path)], self.report.inputs.items())
            example = Example.from_signature(self.about["model"]["input"])
            written = (to_onnx if suffix == ".onnx" else to_pt2)(self.model, example, path)
            self.report.parts.setdefault("outputs", {})[str(path)] = written
            return
        tensors, aliases, unsaved = slim_tensors(self.model)
        report = self.report.to_dict()
        kept = {
            k: report[k]
            for k in ("before", "after", "reduction", "memory", "layers", "verified", "uncounted_ops", "not_pruned")
            if k in report
        }
        document = {"format": SLIM, "version": VERSION, **self.about, "mask": self.mask.to_dict()}
        document |= {"aliases": aliases, "buffers_outside_state": unsaved, "profile": kept}
        _write(path, to_bytes(tensors, document), self.report)


def _check_scores(path: Any, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """BadInput where scores are not finite real numbers, or the sums that they come from are not there in pairs."""
    for name, t in tensors.items():
        if not t.is_floating_point() or not bool(torch.isfinite(t).all()):
            kind = f"{t.dtype}" if not t.is_floating_point() else "NaN or infinite"
            raise BadInput(f"the scores of {name[-80:]} in {path} are {kind}; score the model anew")
        pair = name.replace(SUM, REST, 1) if name.startswith(SUM) else name.replace(REST, SUM, 1)
        if pair != name and (pair not in tensors or tensors[pair].shape != t.shape):
            raise BadInput(f"{path} holds {name[-80:]} without {pair[-80:]}; copy it again, or score the model anew")
    if about["criterion"] not in CRITERIA:
        raise BadInput(
            f"{path}: unknown criterion {shown(about['criterion'])}{nearest(about['criterion'], CRITERIA)}; score anew"
        )


def _check_said(path: Any, about: dict[str, Any]) -> None:
    """BadInput where a file of scores does not say as ranp does what was scored at one, drawn, or not ranked."""
    for key in SAID:
        given, wanted = about.get(key, []), "names and reasons" if key == "not_ranked" else "a list of names"
        texts = given.values() if isinstance(given, dict) else given
        sound = isinstance(given, dict if key == "not_ranked" and given else list)
        if not (sound and all(isinstance(text, str) for text in texts)):
            raise BadInput(f"'{key}' of {path} must be {wanted}, not {shown(given)}; write it anew with ranp score")


def _given(key: str, value: Any) -> str:
    """An option as it was given: `with --precision bf16`."""
    return f"without {spelled(key)}" if value == UNSAID else f"with {spelled(key, value)}"


def _write(path: str | Path, data: bytes, report: Report) -> None:
    refuse_inputs([os.fspath(path)], report.inputs.items())
    write_atomic(path, data)
    _record(path, data, report)


def _record(path: str | Path, data: bytes, report: Report) -> None:
    """Add a file that was written to the report."""
    outputs = report.parts.setdefault("outputs", {})
    outputs[str(path)] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
