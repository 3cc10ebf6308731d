"""What the benchmarks share: results kept as JSON lines, from which a later run goes on, and tables put between marks of a page.

A table ends in a stamp: the script that made it, a digest of that script's code, and one of the table. A test compares them
with what is there, so that a script that was changed, or a table that was written by hand, shows. The digest is of the
script alone: what a changed package would measure, only a new run can say. `python -m tests.benchmarks.page` stamps the
tables anew without a run, for a change of a script that does not change its tables.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Lines:
    """Results in a file, one JSON object a line; a line that was cut off is dropped and its result computed again.

    Args:
        path: the file; its folder is made if need be.
        keys: the names that tell one result from another.
    """

    def __init__(self, path: Path, keys: Iterable[str]) -> None:
        self.path, self.keys = path, tuple(keys)
        self.held: dict[tuple[Any, ...], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        for line in whole.splitlines():
            self._hold(json.loads(line))

    def _hold(self, line: dict[str, Any]) -> None:
        self.held[tuple(line[key] for key in self.keys)] = line

    def get(self, compute: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """The result of this key: from the file, or computed and appended."""
        found = self.held.get(tuple(key[name] for name in self.keys))
        if found is not None:
            return found
        line = json.loads(json.dumps({**key, **compute()}))
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._hold(line)
        return line


# the name in the marks, and the script
SCRIPTS = {
    "paper rows": "paper_rows", "accuracy": "accuracy", "memory table": "memory", "memory in 16 bits": "memory",
    "memory on a GPU": "memory", "memory on a GPU in 16 bits": "memory",
    "budget": "budget", "speed": "speed", "runtimes": "runtimes", "runtimes on a GPU": "runtimes",
    "latency budgets": "latency_budgets",
    "latency accuracy": "latency_accuracy",
    "own time": "runtimes", "planning": "planning", "profilers": "profilers",
    "scoring": "scoring", "scoring on a GPU": "scoring", "growth": "scoring",
    "zoo table": "zoo_table", "model lists": "model_lists", "nnunet step": "nnunet_step",
    "oracle correlations": "oracle", "oracle pruning": "oracle", "rounds": "rounds",
    "house": "house",
    **{f"paper {name}": "paper_accuracy" for name in ("table-1", "table-4", "table-5", "figure-5", "appendix")},
}  # fmt: skip
RESULTS = Path(__file__).with_name("RESULTS.md")
SECTION = re.compile(
    r"<!-- (?P<name>[^>]*?) -->\n\n(?P<table>.*?)\n\n(?P<stamp><!-- made by [^>]* -->\n)?<!-- end of (?P=name) -->",
    re.S,
)


def code_digest(script: str) -> str:
    """Eight digits of a script's text. (Of its syntax tree they would differ from one Python to the next.)"""
    return hashlib.sha256((RESULTS.parent / f"{script}.py").read_bytes()).hexdigest()[:8]


def stamp(name: str, table: str) -> str:
    """The last line of a section."""
    script = SCRIPTS[name]
    return f"<!-- made by {script}.py {code_digest(script)}, table {hashlib.sha256(table.encode()).hexdigest()[:8]} -->"


def put(path: Path, table: str, marks: tuple[str, str]) -> None:
    """Replace what stands between the marks of a Markdown file, and stamp it where it is of a known script."""
    head, mark, rest = path.read_text().partition(marks[0])
    if not mark or marks[1] not in rest:
        raise SystemExit(f"{path} has no {marks[0]} ... {marks[1]}")
    name = marks[0].removeprefix("<!-- ").removesuffix(" -->")
    made = f"{stamp(name, table)}\n" if name in SCRIPTS else ""
    path.write_text(f"{head}{mark}\n\n{table}\n\n{made}{marks[1]}{rest.partition(marks[1])[2]}")


def section_of(text: str, marks: tuple[str, str]) -> str:
    """What stands between the marks of a page, without the stamp."""
    return re.sub(r"\n<!-- made by [^>]* -->\n$", "\n", text.partition(marks[0])[2].partition(marks[1])[0])


def stamped(text: str) -> str:
    """A page with every section stamped as it is."""
    return SECTION.sub(
        lambda m: (
            f"<!-- {m['name']} -->\n\n{m['table']}\n\n{stamp(m['name'], m['table'])}\n<!-- end of {m['name']} -->"
        ),
        text,
    )


if __name__ == "__main__":
    RESULTS.write_text(stamped(RESULTS.read_text()))
