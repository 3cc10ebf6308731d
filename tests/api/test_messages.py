"""A message names an option as its caller writes it: a keyword in Python, a flag on the command line, a key of the config."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ranp_cli as ranp
from ranp_cli.api import keyword_types, options
from ranp_cli.cli import run
from ranp_cli.cli.commands import PROFILE_COMMAND, PRUNE_COMMAND, REFINE_COMMAND, SCORE_COMMAND
from ranp_cli.cli.compare_command import COMPARE_COMMAND
from ranp_cli.cli.flags import FlagSpelling
from ranp_cli.core.paths import PACKAGE
from ranp_cli.core.spelling import Word, python_spelling, spelled, spelling

COMMANDS = [SCORE_COMMAND, PRUNE_COMMAND, REFINE_COMMAND, COMPARE_COMMAND, PROFILE_COMMAND]
KEYWORDS = {p for name in keyword_types.FUNCTIONS for p in inspect.signature(getattr(ranp, name)).parameters}
GATES = {option.keyword for option in PROFILE_COMMAND.others if option.keyword.startswith("max_")}
FILES = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("cli", "models", "samples")]
# what has flags in its strings and is no message: the help of the options, what files of masks and of cells record, CSS
NOT_MESSAGES = {
    "api/options.py": r"--",
    "api/function_keywords.py": r"^--",
    "api/compare.py": r"^--[a-z-]+$",
    "api/comparison/cells.py": r"^--(batch)?$",
    "io/slim_loading.py": r"--model",  # a whole command, or a whole call, by the door
    "integrations/monai.py": r"--config_file",  # a command of MONAI's
    "graph/graph.py": r"^((kept by |not named by )?--(keep|only))$",
    "reporting/html.py": r"var\(--|^:root|--ink",
    "reporting/probe_text.py": r"var\(--",
}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string of a file that is no docstring; of an f-string its fixed parts."""
    tree = ast.parse(path.read_text())
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))]
    docs = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def test_no_message_has_a_flag_or_a_keyword_written_by_hand():
    """Outside of the command line: `--min-neurons` or `min_neurons=` in a text is right for one of its readers only."""
    by_hand = []
    for path in FILES:
        name = path.relative_to(PACKAGE).as_posix()
        for line, text in strings(path):
            if re.search(r"(?<![\w-])--[a-z]", text) and not re.search(NOT_MESSAGES.get(name, r"^\b$"), text):
                by_hand.append(f"{name}:{line}: {text}")
            if name == "io/slim_loading.py":
                continue
            text = text.replace("DataLoader(dataset, batch_size=2)", "")  # torch's own
            if re.search(rf"(?<![\w.<{{\"'-])({'|'.join(KEYWORDS - {'time'})})=", text):
                by_hand.append(f"{name}:{line}: {text}")
    assert by_hand == []


def test_the_check_of_strings_sees_what_it_is_for(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text('"""--doc"""\ndef f(n):\n    """--doc"""\n    raise ValueError(f"give --loss, not {n}")\n')
    assert [text for _, text in strings(file)] == ["give --loss, not "]


def test_every_option_that_a_message_names_exists():
    known = KEYWORDS | GATES
    named = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "spelled":
                named |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    assert named - known == set()
    assert len(named) > 30


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_is_spelled_with_its_own_flag_or_key(command):
    on_command_line = FlagSpelling(command.options)
    for option in command.options:
        said = on_command_line(option.keyword, 3)
        assert said == f"{option.flags[0]} 3"
        of_file = FlagSpelling(command.options, [option.key], "conf.yaml")(option.keyword, 3)
        assert of_file == f"{option.key.replace('_', '-')}: 3 (conf.yaml)"
        assert python_spelling(option.keyword, 3) == f"{option.keyword}=3"


@pytest.mark.parametrize(
    ("keyword", "value", "python", "flags"),
    [
        ("low_memory", True, "low_memory=True", "--low-memory"),
        ("loss", "dice", "loss='dice'", "--loss dice"),
        ("loss", nn.functional.mse_loss, "loss=mse_loss", "--loss mse_loss"),
        ("inputs", (1, 1, 8, 8), "inputs=(1, 1, 8, 8)", "--input 1x1x8x8"),
        ("keep", ["a", "b*"], "keep=['a', 'b*']", "--keep a --keep b*"),
        ("model_args", {"width": 4}, "model_args={'width': 4}", "--model-arg width=4"),
        ("sparsity", Word("X"), "sparsity=X", "--sparsity X"),
        ("weights", Path("w.pt"), "weights='w.pt'", "--weights w.pt"),
        ("lambda_", 0.5, "lambda_=0.5", "--lambda 0.5"),
        ("batches", torch.zeros(1), "batches=Tensor", "--batch Tensor"),
    ],
)
def test_values(keyword, value, python, flags):
    assert spelled(keyword, value) == python
    with spelling(FlagSpelling()):
        assert spelled(keyword, value) == flags
    assert spelled(keyword, value) == python


# -- the doors ---------------------------------------------------------------------------------------------------------

# option, a bad value of it, and what goes with it
BAD: list[tuple[str, Any, dict[str, Any]]] = [
    ("min_neurons", 0, {}),
    ("round_to", 0, {}),
    ("lambda_", -1.0, {}),
    ("seed", -1, {}),
    ("batch_limit", 0, {}),
    ("batch_size", 0, {}),
    ("memory_limit", "lots", {}),
    ("loss", "dise", {}),
    ("sparsity", 1.5, {}),
    ("sparsity", "max", {"method": "layerwise"}),
    ("budget", "macs=50X", {"sparsity": None}),
    ("probe", 0, {}),
    ("probe_lr", 0.1, {}),
    ("latencies", "mask.json", {}),
]
OTHERS = [option.keyword for option in PRUNE_COMMAND.options]


def as_option(keyword: str) -> options.Option:
    return next(option for option in PRUNE_COMMAND.options if option.keyword == keyword)


@pytest.fixture
def calib(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1))\n")  # fmt: skip
    batch = torch.randn(2, 1, 6, 6, 6), torch.randint(2, (2, 4, 4, 4))
    torch.save(batch, "calib.pt")
    return batch


@pytest.mark.parametrize(("keyword", "value", "more"), BAD, ids=[f"{k}={v}" for k, v, _ in BAD])
def test_an_error_speaks_the_language_of_its_door(keyword, value, more, calib, capsys):
    given = {key: v for key, v in {"sparsity": 0.5, **more, keyword: value}.items() if v is not None}
    with pytest.raises(ranp.BadInput) as error:
        ranp.prune("net.py:net", calib, **given)
    message, option = str(error.value), as_option(keyword)
    assert f"{keyword}={value!r}" in message or f"`{keyword}`" in message
    assert not re.search(r"(?<!\w)--[a-z]", message)

    words = [word for key, v in given.items() for word in (as_option(key).flag, str(v))]
    assert run(["prune", "net.py:net", "--batch", "calib.pt", *words]) == 2
    message = capsys.readouterr().err
    assert f"{option.flag} {value}" in message or f"{option.flag}" in message
    assert not re.search(rf"`({'|'.join(OTHERS)})`|\b({'|'.join(OTHERS)})=", message)

    keys = {as_option(key).key.replace("_", "-"): v for key, v in given.items()}
    Path("conf.yaml").write_text(yaml.safe_dump({"model": "net.py:net", "batch": "calib.pt", **keys}))
    assert run(["prune", "--config", "conf.yaml"]) == 2
    message = capsys.readouterr().err
    key = option.key.replace("_", "-")
    assert re.search(rf"(?<![\w-]){key}(: \S+)? \(conf.yaml\)", message)
    assert f"{option.flag} " not in message


def test_reasons_are_in_files_as_ever_and_in_errors_as_the_caller_spells_them(calib, capsys):
    with pytest.raises(ranp.Infeasible, match="kept by `keep`"):
        ranp.prune("net.py:net", calib, sparsity=0.5, keep="*")
    assert run("prune net.py:net --batch calib.pt --sparsity 0.5 --keep *".split()) == 3
    assert "kept by --keep" in capsys.readouterr().err
    mask = ranp.prune("net.py:net", calib, sparsity=0.5, keep="*", allow_less=True).mask
    assert "kept by --keep" in mask.to_dict()["fixed"].values()
