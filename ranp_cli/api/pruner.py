"""`Pruner`: remove the least important units of a network while it trains, in the user's own loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.contexts import labels_on_cpu, without_autocast
from ..core.copies import uncompiled
from ..core.errors import BadInput
from ..core.example import as_example
from ..core.spelling import spelled
from ..costs.budget import met
from ..pruning.mask import Mask
from ..reporting.report import Report
from ..scoring.criteria import criterion
from ..scoring.zero_scores import unranked
from ..training.optimizer_state import checked_optimizers
from ..training.step_scores import StepScores
from ..training.wrappers import rewrap, unwrapped
from .costing import Costing
from .goal import Goal
from .options import PRUNER, LayerOptions, MethodOptions, ModelOptions, StepOptions, WhileTrainingOptions
from .pruner_state import FORMAT, checked_state
from .ranking import while_training
from .results import BESIDE, Pruned
from .session import Session, check_choices
from .shrinking import PROOFS, Removal, Shrinking, removals_part

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keywords import PrunerKeywords


class Pruner:
    """Prunes a network in the middle of its training, and what belongs to it: gradients, optimiser state, averages.

    Scores come from the gradients (for `taylor`, `neuron` and `activation` also from the activations) of the training steps
    themselves: no pass is added. Every `every` updates the least important `units` go, in place: the parameters remain the
    same objects, with less in them, so that parameter groups, learning rate schedules and gradient scalers stay valid. Just
    after a removal the network computes what it would with those units at zero.

    Args:
        model: the network that trains; wrapped in DistributedDataParallel or by torch.compile it is found inside.
        optimizer: a torch.optim.Optimizer whose state is cut too, or several (scores are taken when the first one steps).
        example: an input of the network: a tensor, a shape, or a tuple or dict of them.
        method: `taylor`, `ranp`, `weighted`, `vanilla`, `activation`, `weight`, `magnitude` or `random`.
        criterion: another one than the method's own.
        min_neurons: the fewest neurons of each layer, or "auto" (see `prune`).
        also: copies of the network that are cut with it: an average of its weights (a module, also torch's AveragedModel), or
            a dict of tensors by parameter name.

    Raises: BadInput for what does not exist or cannot be followed.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> x, y = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> pruner = ranp.Pruner(net, optimizer, example=x, every=2, units=1, until=0.5)
        >>> for _ in range(12):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.cross_entropy(net(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     removal = pruner.step(loss)
        >>> net[0].out_channels
        3

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017.
    """

    @without_autocast
    @labels_on_cpu
    @PRUNER
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        example: Any,
        **options: Unpack[PrunerKeywords],
    ) -> None:
        chosen = PRUNER.read(options)
        when, method = chosen[WhileTrainingOptions], chosen[MethodOptions]
        check_choices(verify=(when.verify, PROOFS))
        is_sparsity = isinstance(when.until, float | int)
        self.goal = Goal.of(when.until if is_sparsity else None, () if is_sparsity else when.until, method.method)
        if self.goal.is_timed:
            raise BadInput(
                f"{spelled('until', when.until)}: a limit of time has no meaning while a network trains; "
                "give one that is counted, such as macs, params or train-mem"
            )
        self.every, self.units, self.scaler = when.every, when.units, when.scaler
        self.optimizers = checked_optimizers(optimizer)
        self.wrapped, inner = model, unwrapped(model)
        trained = {id(p) for each in self.optimizers for group in each.param_groups for p in group["params"]}
        if not any(id(p) in trained for p in inner.parameters()):
            raise BadInput(
                "the optimizer has none of the model's parameters; make it of `model.parameters()`, after the model"
            )
        self.is_compiled = uncompiled(model) is not model or inner._compiled_call_impl is not None
        ranking = while_training(method, chosen[LayerOptions], when.seed)
        if method.resource != ranking.resource:
            raise BadInput(
                f"{spelled('resource', method.resource)} has no effect with {spelled('method', method.method)}; give {spelled('resource_term', 'unit')} "
                f"too, or {spelled('method', 'ranp')}, or leave it out"
            )
        self.seen = StepScores(None if ranking.criterion is None else criterion(ranking.criterion))

        session = _session(inner, when.seed)
        also = [when.also] if isinstance(when.also, nn.Module | Mapping) else list(when.also)
        self.shrinking = Shrinking(session, as_example(example), ranking, self.optimizers, also, when.verify)
        self.limits_before = self._costs()
        self.updates = self.since = 0  # updates in all, and since the last removal
        self.removals: list[Removal] = []
        self.not_ranked: dict[str, str] = {}  # layer -> why it has no scores
        self.losses: list[Tensor | float] = []  # since the last removal
        self.spent = 0.0  # multiply-adds of a forward pass of one sample, over all updates
        self.finished = False
        self._watch()
        self.handle = self.optimizers[0].register_step_pre_hook(
            lambda optimizer, args, kwargs: self.seen.take(optimizer, self.scaler)
        )

    # -- the training loop

    def step(self, loss: Tensor | float | None = None) -> Removal | None:
        """Count an update; call it after `optimizer.step()`. What was removed, when units were, else None.

        Args:
            loss: of this update, for the record.
        """
        self.updates, self.since = self.updates + 1, self.since + 1
        self.spent += self.shrinking.costs["macs"]
        self.seen.forget()
        if loss is not None and not self.finished:
            self.losses.append(loss.detach() if isinstance(loss, Tensor) else float(loss))
        if self.finished or self.since < self.every or not self.seen.is_ready(self.wrapped):
            return None
        return self.remove()

    @without_autocast
    @labels_on_cpu
    def remove(self) -> Removal | None:
        """Remove units now, without waiting for the schedule; None when there is none left to remove.

        Raises: VerificationFailed when what would be left does not compute what it should; nothing has changed then.
        """
        if not self.seen.is_ready(self.wrapped):
            raise BadInput(
                "no training step was seen since the last removal: the scores come from them; train some more"
            )
        scores, graph, ranking = self.seen.values(self.wrapped), self.shrinking.graph, self.shrinking.ranking
        if self.seen.criterion is not None:
            reasons = unranked(graph, scores, self.seen.missing())
            graph.unranked = frozenset(reasons)
            units = dict(zip((layer.name for layer in graph.layers), graph.by_layer(graph.unit), strict=True))
            self.not_ranked = {name: why for name, why in reasons.items() if not graph.fixed_units[units[name]].all()}
        self.seen.unwatch()
        try:
            removal = self.shrinking.remove(lambda g: ranking.values(g, scores), *self._much(), self._goal())
        finally:
            self._watch()
        if removal is None:
            self._finish(self._why_stuck())
            return None
        removal.updates, removal.loss = self.updates, self._mean_loss()
        self.removals.append(removal)
        self.since = 0
        rewrap(self.wrapped)
        if self.is_compiled and len(self.removals) == 1:
            warnings.warn(
                "torch.compile compiles the network anew after every removal, and runs it uncompiled after "
                f"{torch._dynamo.config.recompile_limit} of them: remove more units at a time, or call torch.compiler.reset() after each",
                stacklevel=3,
            )
        if self._is_reached():
            self._finish()
        return removal

    @property
    def sparsity(self) -> float:
        """The share of the neurons that is gone."""
        return self.shrinking.sparsity

    @property
    def mask(self) -> Mask:
        """What is left, as a mask of the dense network."""
        return self.shrinking.mask(self.goal.sparsity, self._method())

    @property
    def report(self) -> Report:
        """The numbers so far: the dense network beside what is left of it, and each removal."""
        return self._pruned().report

    def save(self, path: Any, mask: Any = BESIDE) -> None:
        """Write the network as it now is, as `Pruned.save` does: `ranp.load(path, model)` takes it and the dense model."""
        self._pruned().save(path, mask)

    def close(self) -> None:
        """Look at the training no more, and remove nothing more. (Done when the goal is reached.)"""
        self.finished = True
        self.seen.unwatch()
        self.handle.remove()

    # -- to go on later

    def state_dict(self) -> dict[str, Any]:
        """All that a new Pruner of the dense network needs to go on from here: tensors, numbers and texts."""
        shrinking = self.shrinking
        return {
            "format": FORMAT,
            "version": 1,
            "fingerprint": shrinking.session.model_info["fingerprint"],
            "method": shrinking.ranking.recorded,
            "updates": self.updates,
            "since": self.since,
            "batches": self.seen.batches,
            "spent": self.spent,
            "finished": self.finished,
            "kept": {name: torch.from_numpy(kept.copy()) for name, kept in shrinking.kept.items()},
            "held": shrinking.held,
            "attributes": shrinking.attributes,
            "verified": shrinking.verified,
            "sums": self.seen.state(),
            "overwritten": {name: list(axes) for name, axes in self.seen.overwritten.items()},
            "losses": [float(loss) for loss in self.losses],
            "removals": removals_part(self.removals),
        }

    @without_autocast
    @labels_on_cpu
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the dense network to what `state_dict` has seen, and go on from there to the same bytes.

        Load it first, and then the states of the model and of its optimiser, which are of the network that is left.

        Raises: BadInput for what is no such state, or that of another network or method; nothing has changed then.
        """
        if self.updates or any(optimizer.state for optimizer in self.optimizers):
            raise BadInput(
                "load the Pruner's state into a new Pruner of the dense network, before those of model and optimiser"
            )
        shrinking = self.shrinking
        known = checked_state(state, shrinking.session.model_info["fingerprint"], shrinking.ranking.recorded)
        self.seen.unwatch()
        self.seen.overwritten = {name: list(axes) for name, axes in known["overwritten"].items()}
        try:
            shrinking.restore(known["kept"], known["attributes"], known["held"], "the Pruner's state")
        finally:
            self._watch()
        self.seen.restore(known["sums"], known["batches"])
        shrinking.verified = known["verified"]
        self.updates, self.since = known["updates"], known["since"]
        self.spent, self.losses = known["spent"], list(known["losses"])
        self.removals = [Removal(**row) for row in known["removals"]]
        rewrap(self.wrapped)
        if known["finished"]:
            self._finish()

    def _watch(self) -> None:
        self.seen.watch(self.shrinking.session.model, self.shrinking.graph)

    # -- how far

    def _goal(self) -> int:
        """How many neurons are to be left at the end; under a budget nobody knows, and it is as many as there are."""
        if self.goal.sparsity is None:
            return self.shrinking.neurons
        return self.shrinking.left_at(float(self.goal.sparsity))

    def _much(self) -> tuple[int, int, int | None]:
        """At most so many units and neurons go now; and where a share was asked for, about how many neurons that is."""
        left = self.shrinking.neurons
        most = left if self.goal.sparsity is None else left - self._goal()
        if self.units >= 1:
            return int(self.units), most, None
        return most, most, max(1, round(self.units * self.shrinking.dense.n))

    def _why_stuck(self) -> str:
        """Why no unit can go; nothing where the goal is as near as whole units come to it."""
        stuck, causes = self.shrinking.stuck, []
        if stuck is not None and stuck.held_by_floors:
            causes.append(
                f"the floors of their layers hold {stuck.held_by_floors} units; a lower min_neurons lets them go"
            )
        if self.not_ranked:
            name, why = next(iter(self.not_ranked.items()))
            more = f" and {len(self.not_ranked) - 1} more" if len(self.not_ranked) > 1 else ""
            causes.append(f"layers without scores stay whole: {name}{more} ({why})")
        if not causes and stuck is not None and stuck.too_large:
            return ""
        return "; ".join(causes) or "all that is left is fixed"

    def _costs(self) -> dict[str, float]:
        """What the network now costs of each kind that is limited."""
        costing = Costing.of(self.shrinking.session, None, StepOptions())
        costing.use(self.shrinking.graph)
        return costing.under(self.goal.limits, self.shrinking.session.model, None) if self.goal.limits else {}

    def _is_reached(self) -> bool:
        if self.goal.sparsity is not None:
            return self.shrinking.neurons <= self._goal()
        return met(self.goal.limits, self.limits_before, self._costs())

    def _finish(self, why: str = "") -> None:
        self.close()
        if why:
            text = f"pruning ended at a sparsity of {self.sparsity:.1%}: {why}"
            self.shrinking.session.note(text)
            warnings.warn(f"ranp: {text}", stacklevel=4)

    # -- what is said

    def _mean_loss(self) -> float | None:
        losses, self.losses = [float(loss) for loss in self.losses], []
        return sum(losses) / len(losses) if losses else None

    def _method(self) -> dict[str, Any]:
        return {**self.shrinking.ranking.recorded, "every": self.every, "units": self.units}

    def _pruned(self) -> Pruned:
        loop = {"updates": self.updates, "dense_updates": self.spent / self.shrinking.dense_costs["macs"]}
        rounds = removals_part(self.removals)
        return self.shrinking.pruned(self.goal.sparsity, self._method(), rounds=rounds, loop=loop)


Pruner.__doc__ = PRUNER.documented(cleandoc(Pruner.__doc__ or ""))


def _session(model: nn.Module, seed: int) -> Session:
    """The live network at work; BadInput where it could only be copied."""
    if uncompiled(model) is not model:
        raise BadInput(
            "a part of the model is compiled: give the Pruner a model that is not, or one that is compiled as a whole"
        )
    device = str(next((p.device for p in model.parameters()), "cpu"))
    session = Session.open(Report("prune"), model, ModelOptions(seed=seed, device=device))
    if session.model is not model:
        raise BadInput("the model was made in torch.inference_mode(), where nothing trains; make it outside")
    return session
