"""What a reader has to hold in mind stays small: no long function, no wide one, tables alone are laid out by hand."""

from __future__ import annotations

import ast

import pytest
from benchmarks.house import MOST_LINES, MOST_PARAMETERS, numbers
from test_rooms import FILES, ROOT


@pytest.mark.parametrize("what", [f"functions over {MOST_LINES} lines", f"functions over {MOST_PARAMETERS} parameters"])
def test_functions_are_short_and_narrow(what):
    assert numbers()[what] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_formatter_is_held_off_tables_alone(path):
    """A table: a value or an argument list written down as data (module level, a field of a class, a list of op names)."""
    lines = path.read_text().splitlines()
    skipped = {k for k, line in enumerate(lines, 1) if line.endswith("# fmt: skip")}
    tree = ast.parse("\n".join(lines))
    tables = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            tables |= {each.end_lineno for each in node.body if isinstance(each, (ast.Assign, ast.AnnAssign))}
        if isinstance(node, ast.FunctionDef):
            tables |= {each.end_lineno for each in node.decorator_list}
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Dict, ast.List, ast.Set, ast.Tuple)):
            tables.add(node.end_lineno)
    assert skipped <= tables
