"""A file imports only from the floors below it (DESIGN.md, part 6), and nothing heavy before it is needed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ranp_cli"
FLOORS = [
    {"errors", "labels", "shadow", "example", "counts", "schema", "flops", "trace"},
    {"rules"},
    {
        "costs",
        "autocast",
        "fingerprint",
        "units",
        "attention",
        "workspace",
        "meter",
        "memory",
        "modules",
        "budget",
        "latency",
        "criteria",
        "sums",
        "state",
        "gathers",
        "precision",
        "recompute",
        "checks",
        "zeros",
        "planning",
        "spread",
        "importance",
        "resources",
        "select",
        "floors",
        "bottleneck",
        "snip",
        "refining",
        "verify",
    },
    {
        "files",
        "source",
        "batches",
        "samples",
        "losses",
        "config",
        "mask",
        "checkpoint",
        "twin",
        "program",
        "export",
        "onnxfile",
        "onnxcount",
        "onnxshapes",
        "report",
        "page",
        "trainability_text",
        "speed",
        "tally",
        "probetext",
        "show",
        "tree",
        "plots",
        "plots_accuracy",
        "cells",
        "accuracy",
        "captions",
        "rows_table",
        "html",
    },
    {
        "steps",
        "probe",
        "trainability",
        "fitting",
        "results",
        "findings",
        "pipeline",
        "comparison",
        "comparison_tables",
        "entries",
        "cuts",
        "matching",
        "fits",
        "profiling",
    },
    {"__init__", "__main__", "process", "options", "arguments", "compare_command", "cli"},
]
FLOOR = {name: k for k, names in enumerate(FLOORS) for name in names}
FILES = sorted(p for p in ROOT.rglob("*.py") if "models" not in p.parts)


def imported(path: Path) -> set[str]:
    """The floors' names that a file imports, type-checking ones left out; a folder of files is one name."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(n)
        for b in ast.walk(tree)
        if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test)
        for n in ast.walk(b)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in typing_only:
            if node.level == 1 and path.parent != ROOT:
                found.add(path.parent.name)
            elif node.module:
                found.add(node.module.split(".")[0])
            else:
                found |= {alias.name for alias in node.names if alias.name in FLOOR}
    return found


def name_of(path: Path) -> str:
    return path.stem if path.parent == ROOT else path.parent.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_from_its_floor_and_below(path):
    name = name_of(path)
    assert name in FLOOR, f"{name} has no floor"
    for other in imported(path) - {name}:
        assert FLOOR[other] <= FLOOR[name], f"{name} (floor {FLOOR[name]}) imports {other} (floor {FLOOR[other]})"


def test_every_floor_names_a_file():
    assert set(FLOOR) == set(map(name_of, FILES))


def test_only_what_is_shown_knows_rich():
    users = {p.stem for p in FILES if "rich" in {n.split(".")[0] for n in _absolute(p)}}
    assert users == {"show", "page", "tree", "rows_table"}


def _absolute(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module)
    return found
