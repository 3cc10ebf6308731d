"""The law of imports (ranp_cli/README.md): a room imports only from the rooms below it, and no files import in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent / "ranp_cli"
MOST_LINES = 400
BELOW_API = "core rules graph costs scoring pruning training io reporting"
LAW = {
    "core": "",
    "rules": "core",
    "graph": "core rules",
    "costs": "core graph",
    "pruning": "core rules graph",
    "reporting": "core graph",
    "scoring": "core rules graph costs",
    "training": "core graph scoring",
    "io": "core graph pruning",
    "integrations": "core io pruning",
    "api": f"{BELOW_API} integrations",
    "cli": "api core io reporting costs integrations",
    "models": "",
    "samples": "",
    "": f"{BELOW_API} integrations api cli",  # ranp_cli/__init__.py and __main__.py
}
# whole rooms that one file of another may use
COSTS_FOR_CLI = {"ranp_cli.costs.budget"}
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """`ranp_cli.core.errors`; a package is named by its folder."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAW else ""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, typing: bool = True, local: bool = True) -> Iterator[str]:
    """The modules of ours that a file imports; `typing` and `local`: also for type checkers, also in functions."""
    tree = tree_of(path)
    left_out = set()
    for node in ast.walk(tree):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if (for_types and not typing) or (isinstance(node, ast.FunctionDef) and not local):
            left_out |= {id(inner) for inner in ast.walk(node)}
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in left_out:
            continue
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
        if not base.startswith("ranp_cli"):
            continue
        inner = {f"{base}.{alias.name}" for alias in node.names} & set(MODULES)
        yield from inner
        if len(inner) < len(node.names):
            yield base


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Names that reach themselves."""
    found = []
    for start in arrows:
        seen: set[str] = set()
        queue = [*arrows[start]]
        while queue:
            name = queue.pop()
            if name not in seen:
                seen.add(name)
                queue += arrows.get(name, ())
        if start in seen:
            found.append(start)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_the_rooms_that_the_law_names(path):
    room = room_of(name_of(path))
    for other in imports(path):
        if other == "ranp_cli" or room_of(other) == room:
            continue  # the version, or a file of the same room
        assert room_of(other) in LAW[room].split(), f"{name_of(path)} imports {other}"
        if room == "cli" and room_of(other) == "costs":
            assert other in COSTS_FOR_CLI, f"{name_of(path)} imports {other}"


@pytest.mark.parametrize("local", [False, True], ids=["at import", "in functions too"])
def test_no_files_import_in_a_circle(local):
    inside = {
        name: set(imports(path, typing=local, local=local)) - {"ranp_cli", name} for name, path in MODULES.items()
    }
    # a rule registers itself when its family is loaded by the package
    inside["ranp_cli.rules"] -= {name for name in MODULES if name.startswith("ranp_cli.rules.")}
    assert circles(inside) == []


def test_every_package_is_a_room():
    assert {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()} == set(LAW) - {""}


def test_the_law_itself_has_no_circle():
    assert circles({room: set(below.split()) for room, below in LAW.items()}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_no_file_of_the_tests_is_longer_either():
    lines = {str(path.relative_to(TESTS)): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert len(lines) > 100
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def test_only_what_is_shown_knows_rich():
    users = {path.stem for path in FILES if "rich" in {name.split(".")[0] for name in _absolute(path)}}
    assert users == {"show", "progress_bar", "terminal", "tree", "compare_table", "oracle_table", "rounds_table"}


def test_the_page_lists_every_file(request):
    """`pytest --overwrite tests/test_rooms.py` writes it anew, from the first line of each file."""
    page, (start, end) = ROOT / "README.md", ("<!-- files -->\n", "<!-- end of files -->")
    head, rest = page.read_text().split(start)
    listed, tail = rest.split(end)
    if request.config.getoption("--overwrite"):
        page.write_text(f"{head}{start}{list_of_files()}{end}{tail}")
    else:
        assert listed == list_of_files()


def list_of_files() -> str:
    """A heading for each room, with what it is for, and a row for each of its files."""
    rows = []
    for path in FILES:
        first = (ast.get_docstring(tree_of(path)) or "").partition("\n")[0]
        name = path.relative_to(ROOT)
        if path.name == "__init__.py" and path.parent != ROOT:
            rows.append(f"\n### {name.parent}\n\n{first}\n\n| file | |\n|---|---|\n")
        elif path.parent != ROOT:
            rows.append(f"| {path.name} | {first} |\n")
    return "".join(rows) + "\n"


def test_a_circle_is_found():
    """Negative control."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def _absolute(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module)
    return found
