"""What a framework's own file (nnU-Net's plans) puts in the place of options that were not given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.errors import BadInput
from ..core.spelling import Word, spelled
from ..integrations.common import Choice, Project, Step
from ..integrations.named import open_project
from .function_keywords import Chosen
from .options import GradientOptions, ModelOptions, StepOptions


def project_of(model: Any, options: ModelOptions) -> Project | None:
    """What a framework's file says, where MODEL is one. BadInput for options of a framework beside another MODEL."""
    choice = Choice(options.configuration, options.fold, options.trainer)
    return open_project(model, choice, options.model_args)


def complete(
    project: Project | None, batches: Any, scores: Any, chosen: Chosen, with_step: bool = True
) -> tuple[Any, Chosen]:
    """The mini-batches and the options, with those of the framework's file where none were given.

    Args:
        with_step: the function has options of a training step, which the file describes.
    """
    if project is None:
        if batches is None and scores is None:
            raise BadInput(f"give a calibration batch: {spelled('batches', Word('B'))}")
        return batches, chosen
    if with_step:
        chosen = chosen.replaced(StepOptions, **vars(step_of(project, chosen[StepOptions])))
    if scores is not None:
        return batches, chosen
    gradients, seed = chosen[GradientOptions], chosen[ModelOptions].seed or 0
    where = batches.partition("#")[2] if isinstance(batches, str) else ""
    if batches is None or where:
        batches = project.batches(gradients.batch_limit, seed, where)
        if batches is None:
            raise BadInput(f"model {project.spec} has no mini-batches of its own; give {spelled('batches', Word('B'))}")
        if gradients.keys is None:
            chosen = chosen.replaced(GradientOptions, keys=project.keys())
    if gradients.loss is None and (loss := project.loss()) is not None:
        refuse_loss_options(gradients)
        chosen = chosen.replaced(GradientOptions, loss=loss)
    return batches, chosen


def step_of(project: Project, step: StepOptions) -> StepOptions:
    """The training step, as far as it was not given that of the framework's file."""
    if step.optimizer is not None and step.batch_size is not None:
        return step
    known: Step = project.step()
    optimizer = step.optimizer or known.optimizer
    return replace(step, optimizer=optimizer, batch_size=step.batch_size or known.batch_size)


def refuse_loss_options(gradients: GradientOptions) -> None:
    for name in ("loss_args", "ignore_index"):
        if getattr(gradients, name) is not None:
            raise BadInput(
                f"{spelled(name)} belongs to {spelled('loss')}, and none is given: the loss is that of MODEL; leave it out"
            )
