"""The house in numbers: `python -m tests.benchmarks.house` counts rooms, imports, circles, long functions and parameters.

The table of the redesign, before and after: what a reader has to hold in mind. ATen rules are left out of the parameters,
since theirs are those of the op's schema, and so are those of FLOP formulas.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_rooms import FILES, LAW, MODULES, circles, imports, room_of

MOST_LINES, MOST_PARAMETERS = 60, 8
SCHEMAS = ("flops.py", "flop_formulas.py")  # the parameters of their functions are those of ops


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
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


def numbers() -> dict[str, int | list[str]]:
    inside = {name: set(imports(path)) - {"ranp_cli", name} for name, path in MODULES.items()}
    inside["ranp_cli.rules"] -= {name for name in MODULES if name.startswith("ranp_cli.rules.")}
    rooms = {room: set() for room in LAW if room not in ("", "models", "samples")}
    for name, others in inside.items():
        room = room_of(name)
        if room in rooms:
            rooms[room] |= {room_of(other) for other in others} & (rooms.keys() - {room})
    long = [f"{path.name}:{node.name}" for path, node in functions() if body_lines(node) > MOST_LINES]
    wide = [
        f"{path.name}:{node.name}" for path, node in functions()
        if path.parent.name != "rules" and path.name not in SCHEMAS and len([*node.args.args, *node.args.kwonlyargs]) > MOST_PARAMETERS + 1
    ]  # fmt: skip
    return {
        "rooms": len(rooms),
        "floors of rooms": floors(rooms),
        "imports between rooms": sum(map(len, rooms.values())),
        "imports between files": sum(map(len, inside.values())),
        "circles of files": len(circles(inside)),
        "files": len(FILES),
        "lines": sum(len(path.read_text().splitlines()) for path in FILES),
        "longest file": max(len(path.read_text().splitlines()) for path in FILES),
        f"functions over {MOST_LINES} lines": long,
        f"functions over {MOST_PARAMETERS} parameters": wide,
        "fmt: skip": sum(len(re.findall("# fmt: skip", path.read_text())) for path in FILES),
    }


if __name__ == "__main__":
    for name, value in numbers().items():
        print(f"{name:32} {value if isinstance(value, int) else f'{len(value)}  ' + ', '.join(value)}")
