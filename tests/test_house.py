"""What a reader has to hold in mind stays small: no long function, no wide one, tables alone are laid out by hand."""

from __future__ import annotations

import ast

import pytest
from benchmarks.house import LONG, MARKS, PUBLIC, WIDE, functions, markdown, numbers, parameters
from benchmarks.page import RESULTS, put
from test_rooms import FILES, ROOT, tree_of


@pytest.fixture(scope="module")
def now():
    return numbers()


@pytest.mark.parametrize("what", [LONG, WIDE])
def test_functions_are_short_and_narrow(what, now):
    assert now[what] == []


def test_the_public_functions_that_may_be_wider_are_there_and_no_wider():
    api = {node.name: parameters(node) for path, node in functions() if path.parent == ROOT / "api"}
    assert {name: api[name] for name in PUBLIC} == PUBLIC


def test_parameters_are_counted():
    tree = ast.parse("def f(self, a, /, b, *args, c=1, **options): pass")
    assert parameters(tree.body[0]) == 3


def test_the_table_is_of_this_code(now, request):
    """`pytest -n0 tests/test_house.py --overwrite` writes it anew."""
    if request.config.getoption("--overwrite"):
        put(RESULTS, markdown(now), MARKS)
    assert markdown(now) in RESULTS.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_formatter_is_held_off_tables_alone(path):
    """A table: a value or an argument list written down as data (module level, a field of a class, a list of op names)."""
    lines = path.read_text().splitlines()
    skipped = {k for k, line in enumerate(lines, 1) if line.endswith("# fmt: skip")}
    tree = tree_of(path)
    tables = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            tables |= {each.end_lineno for each in node.body if isinstance(each, (ast.Assign, ast.AnnAssign))}
        if isinstance(node, ast.FunctionDef):
            tables |= {each.end_lineno for each in node.decorator_list}
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Dict, ast.List, ast.Set, ast.Tuple)):
            tables.add(node.end_lineno)
    assert skipped <= tables
