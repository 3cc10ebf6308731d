"""Importance of neurons from the gradients of a calibration batch (RANP, eq. 4-8)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contexts import NoDropout, in_checkpoints, seeded
from ..core.copies import copy_on
from ..core.errors import BadInput
from ..core.example import Example
from ..core.numbers import shown
from ..core.spelling import spelled
from ..core.tensors import channels_last
from ..graph.analyse import named_tensors
from ..graph.graph import Graph
from .activation_gradients import ActivationGradientCollector
from .checks import check_finite, run_backward, run_model
from .compensated_sum import CompensatedSum
from .criteria import Criterion
from .memory_format import ConvolutionOverrides
from .module_state import ModuleSnapshot
from .oracle import OracleCollector, consumers, resume
from .precision import AGREE, HALF, SCALE, autocast, cast, has_fast_bf16, to_float32
from .prepared_batch import PreparedBatch
from .recompute import Recompute
from .recompute_plan import RecomputePlan, ScoringSetup, plan
from .setup import GradientSetup, Importance, check_setup, score_shapes
from .weight_gradients import GradientCollector, WeightGradientCollector, add_up, mean_of
from .zero_scores import check_reached, find_zeros, unranked


class Scorer:
    """A twin of the model at work, and what is gathered from each of its passes."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        loss: Callable[[Any, Any], Tensor],
        criteria: Sequence[Criterion],
        device: torch.device,
        seed: int,
        way: GradientSetup,
    ) -> None:
        self.model, self.graph, self.loss, self.device, self.seed, self.way = model, graph, loss, device, seed, way
        self.by_pass = any(not c.of_units for c in criteria)
        self.by_backward = any(c.needs_gradients and c.reduce != "curvature" for c in criteria)
        self.needs_loss = any(c.needs_gradients for c in criteria)
        self.twice = next((c.name for c in criteria if c.reduce == "curvature"), None)
        check_setup(model, device, way, criteria)
        self.zeros = find_zeros(model, graph)
        self.unproved = bool(self.zeros.last)  # whether a gradient gets past the last layers
        way.facts.update(self.zeros.facts(graph))
        own = consumers(graph) if any(c.of_units for c in criteria) else frozenset()
        twin = training_twin(model, device, graph.written | self.zeros.names | own)
        self.zeros.replace_in(twin, seed)
        self.twin = cast(twin, way.precision)
        self.state = ModuleSnapshot(self.twin, model, graph.written)
        self.weights = dict(named_tensors(self.twin))
        self.precision = "model" if way.precision == "auto" else way.precision
        self.doubt: PreparedBatch | None = None  # the mini-batch on which `auto` is to compare bf16 with fp32
        self.undecided = way.precision == "auto"
        if self.undecided and (others := {p.dtype for p in self.twin.parameters()} - {torch.float32}):
            self.undecided = False
            way.note(f"{spelled('precision', 'auto')}: the model has weights in {others.pop()}, which stay as they are")
        # convolutions are then the faster for it; instance norms give everything back in the order of its axes
        instance_norms = any(isinstance(m, nn.modules.instancenorm._InstanceNorm) for m in self.twin.modules())
        self.layout = not instance_norms and (device.type == "cpu" or self.precision in HALF)
        self.plan: RecomputePlan | None = None
        self.planned = 0  # elements of the largest mini-batch that the plan is for
        of_weights = [c for c in criteria if c.of_weights]
        of_activations = sorted((c for c in criteria if c.of_activations), key=lambda c: not c.of_masks)
        self.collectors: list[GradientCollector] = []
        if of_weights:
            self.collectors.append(WeightGradientCollector(graph.layers, self.weights, of_weights))
        if of_activations:
            self.collectors.append(ActivationGradientCollector(model, graph, of_activations))
        self.oracle: OracleCollector | None = None
        for c in criteria:
            if c.of_units:
                self.oracle = OracleCollector(graph, self.weights, c)
                self.collectors.append(self.oracle)
        if way.resumed and way.spread.rank == 0:
            resume(self.collectors, way.resumed.begun)
            sums = [
                s and CompensatedSum(s.high.to(device, copy=True), s.low.to(device, copy=True))
                for s in way.resumed.sums
            ]
            add_up(self.collectors[0].sums[criteria[0].name], sums)
        for collector in self.collectors:
            collector.scale = SCALE if self.precision == "fp16" else 1.0

    def run(self, index: int, batch: Any) -> None:
        """Add the gradients of one mini-batch."""
        if self.undecided and self.doubt is not None:
            self._decide()
        try:
            prepared = PreparedBatch.of(index, batch, self.twin, self.device, self.precision)
        except torch.OutOfMemoryError as error:
            raise too_little_memory(error) from error
        self._add(prepared)

    def _add(self, batch: PreparedBatch) -> None:
        if self.way.low_memory and self.needs_loss and batch.elements > self.planned:
            self._plan(batch)
        full: torch.OutOfMemoryError | None = None
        try:
            if self.unproved:
                self._prove(batch)
            if self.by_pass:
                self._pass(batch)
        except torch.OutOfMemoryError as error:
            full = error.with_traceback(None)  # its frames hold what the pass has allocated
            full.__context__ = None
        if full is None:
            self._take(batch)
            if self.oracle is not None:
                self.oracle.measure(partial(self._loss_without, batch), batch.index)
        else:
            self._make_room(batch, full)
            self._add(batch)

    def _prove(self, batch: PreparedBatch) -> None:
        """BadInput when no gradient gets past the zeros of the last layers; else their weights are drawn too."""
        if self.by_pass:
            self._pass(batch)
            collector = self.collectors[0]
            check_reached(collector.parts[collector.criteria[0].name], self.graph, self.zeros)
        for each in self.collectors:
            each.drop_batch()
        self.zeros.replace_in(self.twin, self.seed, last=True)
        self.unproved = False

    def _take(self, batch: PreparedBatch) -> None:
        """Add what a pass has given to the sums."""
        while (
            self.precision == "fp16"
            and not all(g.is_finite() for g in self.collectors)
            and self.collectors[0].scale > 1 / SCALE
        ):
            for collector in self.collectors:  # the gradients of the scaled loss were too large
                collector.drop_batch()
                collector.scale /= 16
            self._pass(batch)
        if self.undecided and self.doubt is None:
            self.doubt = batch

    def end_of_batch(self) -> None:
        for collector in self.collectors:
            collector.end_of_batch()

    def finish(self) -> None:
        """What is to be said when the mini-batches have ended."""
        for collector in self.collectors:
            collector.drop_batch()
        if self.undecided and self.doubt is not None:
            self.way.facts["precision"] = "fp32"
            self.way.note(
                f"{spelled('precision', 'auto')}: there was one mini-batch, and the check needs its fp32 gradients: fp32"
            )

    def importances(self, count: int) -> dict[str, Importance]:
        """The scores by each criterion over the mini-batches so far: `count` in this process, and those of the others."""
        sums, count = self.way.spread.add_up(self.collectors, count)
        begun = () if self.oracle is None else tuple(self.oracle.done)
        if not count and not begun:
            raise BadInput("the batch source is empty: no mini-batch came; give at least one (input, target)")
        found = {}
        for collector in self.collectors:
            for c in collector.criteria:
                scores = mean_of(c, sums[c.name], score_shapes(self.graph, c), count or 1)
                layers = enumerate(self.graph.layers)
                missing = {layer.name: collector.why_none(k) for k, layer in layers if sums[c.name][k] is None}
                ranked = unranked(self.graph, scores, missing)
                found[c.name] = Importance(scores, count, sums[c.name], ranked, begun if c.of_units else ())
        return found

    def _pass(self, batch: PreparedBatch) -> None:
        plan = self.plan
        again = (
            None
            if plan is None or plan.max_macs_per_element is None
            else Recompute(plan.max_macs_per_element, self.twin.buffers(), plan.max_costly_ops)
        )
        with again or nullcontext():
            value = self._value(batch, self.collectors, again)
            if self.needs_loss:
                self._derive(value, batch.index)
            del value
        for collector in self.collectors:
            collector.take()

    def _value(
        self,
        batch: PreparedBatch,
        collectors: Sequence[GradientCollector],
        again: Recompute | None = None,
        unit: int | None = None,
    ) -> Tensor:
        """The loss of a mini-batch, without a unit where one is given; `collectors` see the pass."""
        batch = batch.unwritten(self.twin, self.device, self.precision)
        if self.layout:
            try:
                return self._forward(batch, channels_last((batch.args, batch.kwargs)), collectors, again, unit)
            except BadInput:  # code that wants its tensors in the order of their axes, as `view` does
                self.layout = False
        return self._forward(batch, (batch.args, batch.kwargs), collectors, again, unit)

    def _loss_without(self, batch: PreparedBatch, unit: int | None) -> float:
        try:
            return float(self._value(batch, (), unit=unit).detach().real.double())
        except torch.OutOfMemoryError as error:
            raise too_little_memory(error) from error

    def _derive(self, value: Tensor, index: int) -> None:
        """The derivatives of the loss that the criteria go by."""
        check_finite(value, index, self.graph.layers, self.weights)
        scale = self.collectors[0].scale
        value = value if scale == 1 else value * scale
        for collector in self.collectors:
            collector.before_backward(value, index, self.seed)
        if self.by_backward:
            run_backward(value, index)

    def _forward(
        self,
        batch: PreparedBatch,
        given: tuple[Any, Any],
        collectors: Sequence[GradientCollector],
        again: Recompute | None,
        unit: int | None,
    ) -> Tensor:
        """The loss; zero where no criterion needs it."""
        self.state.restore()
        with ExitStack() as during:
            if self.oracle is not None:
                during.enter_context(self.oracle.without(unit))
            during.enter_context(seeded((self.seed + batch.index) % 2**63))
            during.enter_context(torch.enable_grad())
            if again:
                during.enter_context(again.packing())
            during.enter_context(self._as_it_runs())
            during.enter_context(in_checkpoints(self._as_it_runs))
            for collector in collectors:
                during.enter_context(collector.forward())
            with autocast(self.precision, self.device):
                output = run_model(self.twin, *given, batch.index)
            wanted = self.needs_loss or not collectors
            return self.loss(to_float32(output), batch.target) if wanted else torch.zeros(())

    @contextmanager
    def _as_it_runs(self) -> Iterator[None]:
        with ConvolutionOverrides(self.layout, self.precision in HALF and self.device.type == "cpu"), NoDropout():
            yield

    def _plan(self, batch: PreparedBatch) -> None:
        before, self.planned = self.plan, batch.elements
        self.plan = self._plan_for(batch, self.way.memory_limit)
        if before is None or self.plan.peak > before.peak:
            self._say()

    def _plan_for(self, batch: PreparedBatch, limit: int | None, least: bool = False) -> RecomputePlan:
        setting = ScoringSetup(self.layout, self.precision, self.device.type)
        return plan(self.model, self.graph, Example(batch.args, batch.kwargs), limit, setting, least)

    def _say(self) -> None:
        assert self.plan is not None
        if self.plan.unknown:
            self.way.note(f"what multiplies nothing is computed twice; {self.plan.unknown}")
            return
        self.way.facts.update(foretold_peak_bytes=self.plan.peak, plain_peak_bytes=self.plan.plain)
        if self.plan.max_macs_per_element is not None:
            self.way.facts["computed_twice"] = {
                "macs_per_element": self.plan.max_macs_per_element,
                "share_of_forward": round(self.plan.again, 4),
            }
        what = "nothing is computed twice"
        if self.plan.max_macs_per_element is not None:
            what = f"what takes up to {self.plan.max_macs_per_element:.0f} multiply-adds an element is computed twice ({self.plan.again:.0%} of a forward pass)"
        self.way.note(
            f"{what}; scoring then has its peak at {shown('train-mem', self.plan.peak)}, "
            f"{self.plan.peak / self.plan.plain:.0%} of a plain pass', as estimated"
        )

    def _make_room(self, batch: PreparedBatch, error: torch.OutOfMemoryError) -> None:
        """The device is full: go on as with `low_memory`, and where that was not enough, with the plan of the lowest peak."""
        if self.twice or not self.needs_loss:  # nothing can be computed twice, or nothing is kept
            raise too_little_memory(error) from error
        for collector in self.collectors:
            collector.drop_batch()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        before = self.plan
        self.plan = self._plan_for(batch, None, least=before is not None)
        if before is not None and self.plan.peak >= before.peak:
            raise too_little_memory(error) from error
        how = f"as with {spelled('low_memory', True)}" if before is None else "computing more of it twice"
        self.way.note(f"the device ran out of memory: scoring goes on {how}")
        self._say()

    def _decide(self) -> None:
        """`auto`: bf16 from the second mini-batch on, if it gives the mask of fp32 on the first."""
        assert self.doubt is not None
        self.undecided = False
        batch, self.doubt = self.doubt, None
        if not has_fast_bf16(self.device):
            self.way.note(f"{spelled('precision', 'auto')}: this {self.device.type} has no bf16 units: fp32")
        else:
            collector = self.collectors[0]
            c = collector.criteria[0]
            places = score_shapes(self.graph, c)
            fp32, layout = mean_of(c, collector.sums[c.name], places, 1), self.layout
            self.precision = "bf16"
            try:
                self._pass(batch)
            except BadInput:  # it ran in fp32
                self.precision, self.layout = "model", layout
                self.way.note(f"{spelled('precision', 'auto')}: the model does not run in bf16: fp32")
            else:
                bf16 = mean_of(
                    c, [None if t is None else CompensatedSum.of(t) for t in collector.parts[c.name]], places, 1
                )
                agreed = self.way.agreement(fp32, bf16) if self.way.agreement else 0.0
                self.precision = "bf16" if agreed >= AGREE else "model"
                self.way.facts["agreement"] = agreed
                self.way.note(
                    f"{spelled('precision', 'auto')}: on the first mini-batch bf16 keeps {agreed:.1%} of the neurons that fp32 keeps: "
                    f"{'bf16 from the second on' if agreed >= AGREE else 'fp32'}"
                )
            for each in self.collectors:
                each.drop_batch()
        self.way.facts["precision"] = "bf16" if self.precision == "bf16" else "fp32"


def too_little_memory(error: torch.OutOfMemoryError) -> BadInput:
    return BadInput(
        f"the device has too little memory for a mini-batch ({str(error).splitlines()[0]}); "
        "give smaller mini-batches or smaller inputs"
    )


def training_twin(model: nn.Module, device: torch.device, own: Container[str] = ()) -> nn.Module:
    """The model in training mode on `device`: its weights are shared where they are there, its buffers and `own` copied."""
    twin = copy_on(model, device, own)
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    for p in twin.parameters():
        p.grad = None
        p.requires_grad_(False)
    return twin
