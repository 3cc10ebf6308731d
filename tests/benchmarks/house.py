"""The house in numbers: `python -m tests.benchmarks.house` prints what a reader has to hold in mind, before the redesign and now.

`--write tests/benchmarks/RESULTS.md` puts the table into the page; `tests/test_house.py` holds it to what is there.
Left out of the parameters are those of ATen rules and of FLOP formulas, which are the ones of the op's schema.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_rooms import FILES, LAW, MODULES, circles, imports, room_of, tree_of

from .page import put

MOST_LINES, MOST_PARAMETERS = 60, 8
SCHEMAS = ("flops.py", "flop_formulas.py")  # the parameters of their functions are those of ops
# Their keywords are options that users write, and stay; none has more than these.
PUBLIC = {"compare": 9, "probe": 9, "prune": 9}
LONG, WIDE = f"functions over {MOST_LINES} lines", f"functions over {MOST_PARAMETERS} parameters"
MARKS = ("<!-- house -->", "<!-- end of house -->")
# Commit 437dd1d, counted by the functions below. It had no rooms but rules: each of its files is one, and so is a circle of them a floor.
BEFORE: dict[str, float] = {
    "rooms": 63, "floors of rooms": 12, "imports between rooms": 270, "imports of other files, a file": 3.5, "files in a circle of imports": 3,
    "files": 86, "longest file, in lines": 399, LONG: 1, WIDE: 14, "`# fmt: skip`": 108,
}  # fmt: skip


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def body_lines(node: ast.FunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    first = node.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if has_docstring else 0)


def floors(arrows: dict[str, set[str]]) -> int:
    """How many rooms stand on one another."""
    height: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((of(other) for other in arrows[name]), default=0)
        return height[name]

    return max(map(of, arrows))


def parameters(node: ast.FunctionDef) -> int:
    """Of a call: without `self`, `*args` and `**options`."""
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + len(node.args.kwonlyargs)


def allowed(path: Path, node: ast.FunctionDef) -> float:
    """The most parameters that a function may have."""
    if path.parent.name == "rules" or path.name in SCHEMAS:
        return math.inf
    return PUBLIC.get(node.name, MOST_PARAMETERS) if path.parent.name == "api" else MOST_PARAMETERS


def numbers() -> dict[str, float | list[str]]:
    """Each line of the table; of what ought not to be there, the names."""
    inside = {name: set(imports(path)) - {"ranp_cli", name} for name, path in MODULES.items()}
    inside["ranp_cli.rules"] -= {name for name in MODULES if name.startswith("ranp_cli.rules.")}
    rooms = {room: set() for room in LAW if room not in ("", "models", "samples")}
    for name, others in inside.items():
        room = room_of(name)
        if room in rooms:
            rooms[room] |= {room_of(other) for other in others} & (rooms.keys() - {room})
    long = [f"{path.name}:{node.name}" for path, node in functions() if body_lines(node) > MOST_LINES]
    wide = [f"{path.name}:{node.name}" for path, node in functions() if parameters(node) > allowed(path, node)]
    lines = [len(path.read_text().splitlines()) for path in FILES]
    return {
        "rooms": len(rooms),
        "floors of rooms": floors(rooms),
        "imports between rooms": sum(map(len, rooms.values())),
        "imports of other files, a file": round(sum(map(len, inside.values())) / len(FILES), 1),
        "files in a circle of imports": len(circles(inside)),
        "files": len(FILES),
        "longest file, in lines": max(lines),
        LONG: long,
        WIDE: wide,
        "`# fmt: skip`": sum(len(re.findall("# fmt: skip", path.read_text())) for path in FILES),
    }


def markdown(now: dict[str, float | list[str]]) -> str:
    """The table; names of functions are counted."""
    counts = {name: value if isinstance(value, (int, float)) else len(value) for name, value in now.items()}
    rows = [f"| {name} | {BEFORE[name]:g} | {value:g} |" for name, value in counts.items()]
    return "\n".join(["| | before | now |", "|---|---:|---:|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="put the table between its marks in this file")
    write = parser.parse_args().write
    now = numbers()
    print(markdown(now))
    for name in (LONG, WIDE):
        for function in now[name]:
            print(f"{name}: {function}")
    if write:
        put(write, markdown(now), MARKS)


if __name__ == "__main__":
    main()
