"""A table of measured times: of the ops of layers at other widths than the network's own, kept from run to run.

How long an op takes is a function of its widths that has steps, and where these lie depends on the device and the runtime.
It is measured at few widths, and read between them by interpolation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.atomic import write_now
from ..core.contexts import each
from ..core.documents import check_form, parse_json
from ..core.errors import BadInput
from ..core.progress import silent
from ..core.reading import read_bytes
from ..core.spelling import spelled
from ..core.tensors import map_tensors
from .timing import Ground, LayerOp, time_ops

FORMAT, VERSION = "ranp-latencies", 1
FORM = {"format": frozenset({FORMAT}), "version": int, "ground": {str: (str, int)}, "seconds": {str: float}}
ADVICE = "give a file of ranp's cache folder, or leave it out"
ROUNDS = 2  # in which an op is timed; the best one counts
GROUPS = 8  # where aten.convolution has its number of groups

Sizes = tuple[int, ...]


def knots(width: int) -> list[int]:
    """The widths that are measured for a dense width, in ascending order: 2^k and 3 * 2^k below it, and itself."""
    powers = (2**k for k in range(width.bit_length()))
    return sorted({n for power in powers for n in (power, 3 * power) if n < width} | {width})


# -- the table


@dataclass
class LatencyTable:
    """Seconds of ops on a ground: those that are known, and what is measured when it is first asked for."""

    ground: Ground
    known: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)  # and not yet written
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)  # what the user should know of it
    fresh: set[str] = field(default_factory=set)  # measured in this run

    @classmethod
    def open(cls, ground: Ground, given: Mapping[str, Any] | None = None) -> LatencyTable:
        """The table of the cache folder, or the one that is `given`.

        Raises: BadInput for a given table of another runtime or number of threads.
        """
        about = described(ground)
        if given is None:
            known, notes = in_cache(about)
            return cls(ground, known, notes=notes)
        for key in ("runtime", "threads"):
            if given["ground"].get(key) != about[key]:
                raise BadInput(
                    f"{spelled('latencies')}: the table is of {key} {given['ground'].get(key)}, and this run has {about[key]}; "
                    f"give {spelled(key, given['ground'].get(key))}, or another table"
                )
        there, here = given["ground"].get("processor"), about["processor"]
        other = f"the table of latencies is of {there}, and whole networks are timed here, on {here}"
        return cls(ground, dict(given["seconds"]), notes=[other] * (there != here))

    def seconds(self, op: LayerOp) -> float:
        """Of one run of an op; measured where it is not known. BadInput when it does not run."""
        key = op.key
        self.used.add(key)
        if key not in self.known:
            self.fresh.add(key)
            self.known[key] = self.measured[key] = time_ops({key: op}, self.ground, silent, ROUNDS)[key]
        return self.known[key]

    def write(self) -> None:
        """Put what was measured into the table of the cache folder, with what is there. BadInput when it cannot be written."""
        if not self.measured:
            return
        about = described(self.ground)
        try:
            file = cache_file(about)
            file.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # a user without a home
            raise BadInput(f"the cache folder cannot be made ({error})") from None
        older, _ = in_cache(about)
        document = {"format": FORMAT, "version": VERSION, "ground": about, "seconds": older | self.measured}
        write_now(file, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
        self.measured = {}


def described(ground: Ground) -> dict[str, Any]:
    """What the times of a ground depend on, besides the op."""
    about = ground.about()
    return {
        "device": ground.device.type,
        "processor": processor(ground.device),
        "threads": about["threads"],
        "runtime": ground.runtime.name,
        "version": ground.runtime.version(),
    }


def processor(device: torch.device) -> str:
    """The name of the GPU, or of the CPU as Linux or the platform has it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def cache_folder() -> Path:
    """The user's cache folder of ranp: below XDG_CACHE_HOME, on Windows below LOCALAPPDATA."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "ranp"


def cache_file(about: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return cache_folder() / f"latencies-{about['runtime']}-{digest}.json"


def in_cache(about: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The seconds that the cache folder has, and a note where it has a file that is damaged: that is measured anew."""
    try:
        file = cache_file(about)
        return (read_table(file)["seconds"] if file.exists() else {}), []
    except (BadInput, OSError, RuntimeError) as error:
        return {}, [f"the table of latencies in the cache folder is not used: {error}"]


def read_table(path: str | Path, what: str = "") -> dict[str, Any]:
    """The document of a file that is a table, checked. BadInput for what is none."""
    what = what or str(path)
    document = parse_json(read_bytes(path, what), what, ADVICE)
    if not isinstance(document, dict):
        raise BadInput(f"{what}: is no table of latencies; {ADVICE}")
    return checked_table(document, what)


def checked_table(document: dict[str, Any], what: str) -> dict[str, Any]:
    """The document itself; BadInput when it is no table."""
    check_form(document, FORM, what, ADVICE)
    if document["version"] != VERSION:
        raise BadInput(f"{what}: version {document['version']} of the format is not {VERSION}; {ADVICE}")
    if any(not value > 0 for value in document["seconds"].values()):
        raise BadInput(f"{what}: holds a time that is not above 0; {ADVICE}")
    return document


# -- the time of one op as a function of its widths


@dataclass
class OpTime:
    """Seconds of an op of a layer as a function of the sizes of its tensors: call it with one number an axis.

    Args:
        name: of the layer.
        call: (func, args, kwargs), with tensors on meta.
        sizes: of its inputs and outputs, an axis after the other.
        groups: axes that shrink together, by their places among the sizes; those in none keep their size.
        share: how much of the op counts.
        macs: multiply-adds at other sizes, by which an op that cannot be run at them is estimated.
    """

    table: LatencyTable
    name: str
    call: Any
    sizes: Sizes
    groups: Sequence[Sequence[int]]
    share: float
    macs: Callable[[Sizes], float]
    by_macs: bool = field(init=False)  # it is estimated so

    def __post_init__(self) -> None:
        self.dense = tuple(self.sizes[group[0]] for group in self.groups)
        self.by_macs = not self.can_shrink()

    def __call__(self, sizes: Sizes) -> float:
        widths = tuple(sizes[group[0]] for group in self.groups)
        if self.by_macs:
            return self.share * self.at(self.dense) * self.macs(sizes) / (self.macs(self.sizes) or 1.0)
        corners = [_around(width, dense) for width, dense in zip(widths, self.dense, strict=True)]
        return self.share * sum(
            math.prod(weight for _, weight in corner) * self.at(tuple(knot for knot, _ in corner))
            for corner in itertools.product(*corners)
        )

    def at(self, widths: Sizes) -> float:
        """Seconds at widths that are measured."""
        return self.table.seconds(LayerOp(self.name, self.resized(widths)))

    def resized(self, widths: Sizes) -> Any:
        """The call at other widths."""
        func, args, kwargs = self.call
        at = iter(with_widths(self.sizes, self.groups, widths))
        args, kwargs = map_tensors((tuple(args), dict(kwargs)), lambda t: _like(t, [next(at) for _ in range(t.ndim)]))
        if self.depthwise:
            args = (*args[:GROUPS], args[0].shape[1])
        return func, args, kwargs

    @property
    def depthwise(self) -> bool:
        """Is it a convolution of each channel by itself?"""
        _, args, _ = self.call
        return self.convolves_groups and args[GROUPS] == args[0].shape[1] == args[1].shape[0] and args[1].shape[1] == 1

    @property
    def convolves_groups(self) -> bool:
        func, args, _ = self.call
        return func.overloadpacket is torch.ops.aten.convolution and args[GROUPS] > 1

    def can_shrink(self) -> bool:
        """Whether the op runs where only the widths of its groups are other ones: tried on meta tensors."""
        if self.convolves_groups and not self.depthwise:
            return False
        halves = tuple((width + 1) // 2 for width in self.dense)
        func, args, kwargs = self.resized(halves)
        try:
            found = func(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError):  # shapes that do not fit
            return False
        wanted = with_widths(self.sizes, self.groups, halves)
        outs = list(each(Tensor, found))
        ends = sum(t.ndim for t in outs)
        return [n for t in outs for n in t.shape] == list(wanted[len(wanted) - ends :])


def with_widths(sizes: Sizes, groups: Sequence[Sequence[int]], widths: Sizes) -> Sizes:
    found = list(sizes)
    for group, width in zip(groups, widths, strict=True):
        for place in group:
            found[place] = width
    return tuple(found)


def _around(width: int, dense: int) -> list[tuple[int, float]]:
    """The knots next to a width, with their weights in an interpolation."""
    known = knots(dense)
    if width in known:
        return [(width, 1.0)]
    above = next(k for k in known if k > width)
    below = known[known.index(above) - 1]
    share = (width - below) / (above - below)
    return [(below, 1 - share), (above, share)]


def _like(t: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor on meta of another shape, its axes in the order in memory that those of `t` have."""
    order = sorted(range(t.ndim), key=lambda axis: t.stride(axis), reverse=True)
    made = torch.empty([shape[axis] for axis in order], dtype=t.dtype, device="meta")
    return made.permute([order.index(axis) for axis in range(t.ndim)])
