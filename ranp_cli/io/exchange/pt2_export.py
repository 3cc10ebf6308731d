"""torch.export's program out: a slim network as a .pt2 file that was read back and compared with the module first."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.atomic import check_output, write_atomic
from ...core.errors import BadInput, VerificationFailed
from .export_check import (
    ExportCandidate,
    ExportForm,
    Refused,
    axis_names,
    compared,
    dynamic_of,
    dynamic_shapes,
    first_words,
    most_dynamic,
    outputs_of,
    trials,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from ...core.example import Example


Axes = dict[str, list[int | str]]  # name -> its sizes, those of dynamic axes as words


def to_pt2(model: nn.Module, example: Example, path: str | Path) -> dict[str, Any]:
    """Write `model`, in eval mode and on the CPU, as a file that `torch.export.load` reads, and that was so compared.

    The batch and spatial axes are dynamic where the network allows and the comparison at another size agrees.
    `model` is not changed. The same network gives the same bytes under the same torch.

    Args:
        example: what the model is called with; noise of its shapes is used, its integer tensors as they are.

    Returns: `bytes` and `sha256` of the file, `exporter`, `dynamic` ("batch+spatial", "batch", "spatial" or "none"),
        `inputs` and `outputs` with their axes, and `verified` (errors of what was read back).

    Raises: BadInput when torch.export refuses the network; VerificationFailed when the file computes something else.

    Example:
        to_pt2(slim, Example((torch.empty(1, 1, 64, 64, 64),)), "slim.pt2")
    """
    import torch

    check_output(path)
    if isinstance(model, torch.jit.ScriptModule):
        raise BadInput(f"{path}: torch.export takes no TorchScript model, so no .pt2 is made of it; give a .pt name")
    twin = ExportCandidate(model, example)
    try:
        made, exporter, verified = most_dynamic(
            twin, [ExportForm("torch.export", _exported, twin.levels)], lambda made: _verify(made, twin)
        )
    except Refused as refused:
        raise BadInput(
            f"torch.export refuses this model ({refused.reasons[-1]}); write a .safetensors instead"
        ) from refused
    write_atomic(path, made.data)
    about = {"exporter": exporter, "dynamic": dynamic_of(made.inputs), "inputs": made.inputs, "outputs": made.outputs}
    return {**about, "verified": verified, "bytes": len(made.data), "sha256": hashlib.sha256(made.data).hexdigest()}


@dataclass(frozen=True)
class _File:
    """The bytes of a .pt2 file, and the axes of what goes in and comes out."""

    data: bytes
    inputs: Axes
    outputs: Axes


def _exported(twin: ExportCandidate, sample: Example, level: str) -> _File:
    import torch

    from ...core.random_state import globally_seeded

    with globally_seeded(), torch.no_grad():
        program = torch.export.export(
            twin.model, sample.args, sample.kwargs, strict=False, dynamic_shapes=dynamic_shapes(twin, sample, level)
        )
        _tidy(program)
        data = io.BytesIO()
        torch.export.save(program, data)
    inputs = dict(_axes(program, program.graph_signature.user_inputs))
    words = axis_names(inputs)

    def readable(dims: Sequence[int | str]) -> list[int | str]:
        return [re.sub(r"\w+", lambda m: words.get(m[0], m[0]), dim) if isinstance(dim, str) else dim for dim in dims]

    outputs = [readable(dims) for _, dims in _axes(program, program.graph_signature.user_outputs)]
    return _File(
        data.getvalue(),
        {name: readable(dims) for name, dims in inputs.items()},
        {"output" if k == 0 else f"output_{k}": dims for k, dims in enumerate(outputs)},
    )


def _tidy(program: ExportedProgram) -> None:
    """Nothing of the machine that it was made on, and no noise: source paths, ranp's name of the user's file, the sample."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
            stack = node.meta.get("nn_module_stack", {})
            for key, (where, kind) in stack.items():
                stack[key] = where, re.sub(r"^_ranp_.+?_[0-9a-f]{8}\.", "", str(kind))


def _axes(program: ExportedProgram, names: Sequence[Any]) -> list[tuple[str, list[int | str]]]:
    """The names and axes of those of the named values that are tensors."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    shapes = [(name, getattr(values.get(name), "shape", None)) for name in names]
    return [(n, [d if isinstance(d, int) else str(d) for d in shape]) for n, shape in shapes if shape is not None]


def _verify(made: _File, twin: ExportCandidate) -> dict[str, Any]:
    """Read the bytes back, run what they hold, and compare."""
    import torch

    from ...core.silence import silence

    tried = trials(twin, list(made.inputs.values()))
    with silence():
        try:
            module = torch.export.load(io.BytesIO(made.data)).module()
        except Exception as error:
            raise VerificationFailed(
                f"torch.export.load does not read the file: {first_words(error)}; nothing was written"
            ) from error
        found = compared(tried, lambda sample: outputs_of(module, sample), "the .pt2 file")
    return {"against": f"torch.export.load, torch {torch.__version__.partition('+')[0]}", **found}
