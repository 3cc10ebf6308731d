"""Score with many processes (torch.distributed): each takes its share of the mini-batches, all get the same sums."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import BadInput, PeerGone
from ..core.job import job
from ..core.spelling import spelled
from .compensated_sum import CompensatedSum
from .criteria import Criterion
from .weight_gradients import GradientCollector, add_up

T = TypeVar("T")
Sums = dict[str, list["CompensatedSum | None"]]  # by criterion and layer
TIMEOUT = 600.0  # seconds that the others wait for a process
STOP, SAVE, ENDED = 1, 2, 4  # what a process says of itself after each of its mini-batches


@dataclass
class Meeting:
    """How the processes of a job wait for each other, and how one is told that does not come."""

    store: dist.Store | None = None  # shared by all: how often each has come to a meeting
    group: Any = None  # of gloo, as flags are on the CPU
    timeout: float = TIMEOUT
    turn: int = 0
    broken: bool = False

    def come(self, rank: int) -> None:
        self.turn += 1
        if self.store is not None:
            self.store.set(f"turn/{rank}", str(self.turn))

    def missing(self, size: int) -> list[int]:
        """The processes that have come less often than this one."""
        if self.store is None:
            return []
        turns = [int(self.store.get(f"turn/{r}")) if self.store.check([f"turn/{r}"]) else 0 for r in range(size)]
        return [rank for rank, turn in enumerate(turns) if turn < self.turn]


@dataclass(frozen=True)
class WorkerGroup:
    """This process among `size`: it takes the mini-batches rank, rank + size, ..."""

    rank: int = 0
    size: int = 1
    device: str | torch.device = "cpu"
    came: list[int] = field(default_factory=lambda: [0])  # how many items `mine` has seen, those of others too
    meeting: Meeting = field(default_factory=Meeting)

    def mine(self, items: Iterable[T], start: int = 0) -> Iterator[tuple[int, T]]:
        """This process' share of what comes from number `start` on, each with its number."""
        for index, item in enumerate(items):
            self.came[0] = index + 1
            if index >= start and (index - start) % self.size == self.rank:
                yield index, item

    def say(self, flags: int) -> list[int]:
        """What each process says of itself, once all have said it: each has then done as many mini-batches, or all of its own."""
        if self.size == 1:
            return [flags]
        with self._awaiting():
            found = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(found, torch.tensor([flags]), group=self.meeting.group)
            return [int(each) for each in found]

    def share(self, total: int) -> int:
        """How many of so many items this process takes."""
        return max(0, -(-(total - self.rank) // self.size))

    def add_up(self, collectors: Sequence[GradientCollector], count: int) -> tuple[Sums, int]:
        """The sums of all processes, in order of rank, and the number of mini-batches of all; their own stay as they are."""
        if self.size == 1:
            return {name: sums for collector in collectors for name, sums in collector.sums.items()}, count
        with self._awaiting():
            total = sum(int(n) for n in self._all(torch.tensor([count])))
            return {c.name: self._merged(each, c) for each in collectors for c in each.criteria}, total

    def agree(self, length: int | None) -> None:
        """Raise BadInput, in every process, when they are not all given as many mini-batches; None: nobody knows."""
        if self.size == 1:
            return
        with self._awaiting():
            lengths = [int(n) for n in self._all(torch.tensor([-1 if length is None else length]))]
        other = next((rank for rank, n in enumerate(lengths) if n != lengths[0]), None)
        if other is not None and min(lengths) >= 0:
            raise BadInput(
                f"process 0 is given {lengths[0]} mini-batches and process {other} is given {lengths[other]}; every process "
                "must see the same ones (no DistributedSampler): ranp shares them out itself"
            )

    @contextmanager
    def _awaiting(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            self.meeting.come(self.rank)
            yield
        except RuntimeError as error:  # what gloo and NCCL raise when a peer is gone, or late
            self.meeting.broken = True
            if time.monotonic() - started >= 0.9 * self.meeting.timeout:
                raise self.late() from error
            raise PeerGone(
                f"process {self.rank} of {self.size}: another process of this job ended before its share was done; nothing "
                "more was written; what it said itself, or torchrun of it, says why: mend that and start again"
            ) from error

    def late(self) -> BadInput:
        """The error that names the processes which hang."""
        try:
            missing = self.meeting.missing(self.size)
        except RuntimeError:  # the store was in the process that is gone
            missing = []
        who = f"process {', '.join(map(str, missing))} of {self.size}" if missing else "a process"
        return BadInput(
            f"{who} hangs: the others have waited {self.meeting.timeout:g} s for it ({spelled('timeout')}); look at what it "
            f"does there, and go on with {spelled('resume')}"
        )

    def _merged(self, collector: GradientCollector, criterion: Criterion) -> list[CompensatedSum | None]:
        sums = list(collector.sums[criterion.name])
        has = self._all(torch.tensor([s is not None for s in sums], dtype=torch.uint8))
        for k, mine in enumerate(sums):
            if not any(flags[k] for flags in has):
                continue
            mine = mine or CompensatedSum.of(collector.nothing(criterion, k))
            whole: list[CompensatedSum | None] = [None]
            for flags, other in zip(has, self._all(torch.stack([mine.high, mine.low])), strict=True):
                if flags[k]:
                    add_up(whole, [CompensatedSum(other[0], other[1])])
            sums[k] = whole[0]
        return sums

    def _all(self, t: Tensor) -> list[Tensor]:
        """That tensor of every process, in order of rank."""
        t = t.to(self.device).contiguous()
        found = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(found, t)
        return found


@contextmanager
def join_process_group(wanted: bool, device: torch.device, timeout: float = TIMEOUT) -> Iterator[WorkerGroup]:
    """The job that this process is part of, if it is `wanted` and there is one; it alone otherwise."""
    own = not dist.is_initialized()
    if not wanted or (own and job().size < 2):
        yield WorkerGroup()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    meeting = Meeting(_meet(timeout, backend) if own else None, timeout=timeout, turn=1)
    if not own or backend != "gloo":
        meeting.group = dist.new_group(backend="gloo", timeout=patience)
    if not own:
        meeting.store = dist.PrefixStore("ranp", dist.distributed_c10d._get_default_store())
    try:
        yield WorkerGroup(dist.get_rank(), dist.get_world_size(), device, meeting=meeting)
    finally:
        if own and not meeting.broken:
            dist.destroy_process_group()


def _meet(timeout: float, backend: str) -> dist.Store:
    """Initialise torch.distributed once all processes are there; the store that they share."""
    here, patience = job(), timedelta(seconds=timeout)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then torchrun itself keeps the store
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(
            address,
            port,
            here.size,
            is_master=not agent and here.rank == 0,
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=not agent,
        )
        shared = dist.PrefixStore("ranp", store)
        meeting = Meeting(shared, timeout=timeout)
        meeting.come(here.rank)
        try:
            shared.wait([f"turn/{rank}" for rank in range(here.size)], patience)
        except RuntimeError as error:
            raise WorkerGroup(here.rank, here.size, meeting=meeting).late() from error
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=here.rank, world_size=here.size, timeout=patience
        )
    except BadInput:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        why = f"{error} is not set" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise BadInput(
            f"WORLD_SIZE is {here.size}, but the processes do not meet ({why}); start them with torchrun, or unset "
            "WORLD_SIZE"
        ) from error
    return shared


def place_in_job(wanted: bool) -> WorkerGroup:
    """This process' place among those of torchrun, if it is `wanted`; it alone otherwise. No process is waited for."""
    if not wanted:
        return WorkerGroup()
    if dist.is_initialized():
        return WorkerGroup(dist.get_rank(), dist.get_world_size())
    here = job()
    return WorkerGroup(here.rank, here.size)
