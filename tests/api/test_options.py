"""An option has one home: the Python keywords, the flags, the config file, the types and the docs are made from it."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.api import keyword_types, options
from ranp_cli.api.option import PANELS
from ranp_cli.cli.arguments import Command, name_of
from ranp_cli.cli.commands import PROFILE_COMMAND, PRUNE_COMMAND, REFINE_COMMAND, SCORE_COMMAND
from ranp_cli.cli.compare_command import COMPARE_COMMAND
from ranp_cli.core.paths import PACKAGE

FUNCTIONS = {name: getattr(ranp, name) for name in keyword_types.FUNCTIONS}
COMMANDS = {c.name: c for c in (SCORE_COMMAND, PRUNE_COMMAND, REFINE_COMMAND, COMPARE_COMMAND, PROFILE_COMMAND)}
NOT_ON_THE_COMMAND_LINE = {"progress", "distributed", "full", "cells", "kept_in", "trust"}
POSITIONAL = {"batches": "batch", "mask": "mask", "other": "model2", "network": "model"}


def net() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    layers = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 1))
    return layers, (torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_every_keyword(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert set(getattr(options, name.upper()).names) <= set(signature.parameters)
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for each in getattr(options, name.upper()).options:
        assert signature.parameters[each.keyword].default == each.default


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_documented(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    part = text[text.index("Args:") :].split("Returns:")[0]
    named = {word for line in re.findall(r"^\s{4}([\w, ]+):", part, re.M) for word in line.replace(" ", "").split(",")}
    named |= set(re.findall(r"`(\w+)`", part))
    missing = set(inspect.signature(function).parameters) - named - {"progress"}
    assert missing == set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_an_example_that_runs(name):
    found = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, globs={})
    assert sum(len(test.examples) for test in found) > 2
    for test in found:
        torch.manual_seed(0)
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_has_a_flag(name):
    command: Command = COMMANDS[name]
    known = {option.keyword for option in command.library} | {argument.name for argument in command.arguments}
    known |= {option.key for option in command.others}
    for parameter in inspect.signature(FUNCTIONS[name]).parameters:
        if parameter not in NOT_ON_THE_COMMAND_LINE:
            assert POSITIONAL.get(parameter, parameter) in known, parameter


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_stands_once_and_in_a_panel(name):
    names = [name_of(option) for option in COMMANDS[name].options]
    assert len(set(names)) == len(names)
    assert {option.panel for option in COMMANDS[name].options} <= set(PANELS)


def test_the_types_for_type_checkers_are_those_of_the_options():
    """`python -m ranp_cli.api.keyword_types` writes them; the formatter may break lines."""
    plain = re.sub(r"[\s,]", "", (PACKAGE / "api" / "keywords.py").read_text())
    assert plain == re.sub(r"[\s,]", "", keyword_types.keyword_types())


def test_an_unknown_keyword_names_the_nearest_one():
    model, batch = net()
    with pytest.raises(TypeError, match="unexpected keyword 'sparsty'; did you mean 'sparsity'"):
        ranp.prune(model, batch, sparsty=0.5)
    with pytest.raises(TypeError, match="unexpected keyword 'optimiser'; did you mean 'optimizer'"):
        ranp.profile(model, optimiser="adam")


def test_groups_are_checked_when_they_are_made():
    with pytest.raises(ranp.BadInput, match="batch_size=0: give 1"):
        options.StepOptions(batch_size=0)
    assert options.LayerOptions(keep="head*").keep == ("head*",)
