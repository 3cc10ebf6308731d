"""Score with many processes (torch.distributed): each takes its share of the mini-batches, all get the same sums."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import BadInput, PeerGone
from .compensated_sum import CompensatedSum
from .criteria import Criterion
from .weight_gradients import GradientCollector, add_up

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # shares are uneven; a process that is gone is noticed at once, by its closed socket


@dataclass(frozen=True)
class WorkerGroup:
    """This process among `size`: it takes the mini-batches rank, rank + size, ..."""

    rank: int = 0
    size: int = 1
    device: str | torch.device = "cpu"
    came: list[int] = field(default_factory=lambda: [0])  # how many items `mine` has seen, those of others too

    def mine(self, items: Iterable[T], start: int = 0) -> Iterator[tuple[int, T]]:
        """This process' share of what comes from number `start` on, each with its number."""
        for index, item in enumerate(items):
            self.came[0] = index + 1
            if index >= start and (index - start) % self.size == self.rank:
                yield index, item

    def share(self, total: int) -> int:
        """How many of so many items this process takes."""
        return max(0, -(-(total - self.rank) // self.size))

    def add_up(self, collectors: Sequence[GradientCollector], count: int) -> int:
        """Make the sums of all processes those of every one, in order of rank; the number of mini-batches of all."""
        if self.size == 1:
            return count
        self.agree(self.came[0])
        with self._awaiting():
            total = sum(int(n) for n in self._all(torch.tensor([count])))
            for collector in collectors:
                for criterion in collector.criteria:
                    self._merge(collector, criterion)
        return total

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
        try:
            yield
        except RuntimeError as error:  # what gloo and NCCL raise when a peer is gone
            raise PeerGone(
                f"process {self.rank} of {self.size}: another process of this job ended before its share was done; nothing "
                "was written; what it said itself, or torchrun of it, says why: mend that and start again"
            ) from error

    def _merge(self, collector: GradientCollector, criterion: Criterion) -> None:
        sums = collector.sums[criterion.name]
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

    def _all(self, t: Tensor) -> list[Tensor]:
        """That tensor of every process, in order of rank."""
        t = t.to(self.device).contiguous()
        found = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(found, t)
        return found


@contextmanager
def join_process_group(wanted: bool, device: torch.device) -> Iterator[WorkerGroup]:
    """The job that this process is part of, if it is `wanted` and there is one; it alone otherwise."""
    own = not dist.is_initialized()
    if not wanted or (own and int(os.environ.get("WORLD_SIZE", "1")) < 2):
        yield WorkerGroup()
        return
    if own:
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes do not meet ({str(error).splitlines()[0]}); "
                "start them with torchrun, or unset WORLD_SIZE"
            ) from error
    try:
        yield WorkerGroup(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if own:
            dist.destroy_process_group()


def place_in_job(wanted: bool) -> WorkerGroup:
    """This process' place among those of torchrun, if it is `wanted`; it alone otherwise. No process is waited for."""
    if not wanted:
        return WorkerGroup()
    if dist.is_initialized():
        return WorkerGroup(dist.get_rank(), dist.get_world_size())
    return WorkerGroup(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
