"""What the benchmarks share: results kept as JSON lines, from which a later run goes on, and tables put between marks of a page."""

from __future__ import annotations

import json
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


def put(path: Path, table: str, marks: tuple[str, str]) -> None:
    """Replace what stands between the marks of a Markdown file."""
    head, mark, rest = path.read_text().partition(marks[0])
    if not mark or marks[1] not in rest:
        raise SystemExit(f"{path} has no {marks[0]} ... {marks[1]}")
    path.write_text(f"{head}{mark}\n\n{table}\n\n{marks[1]}{rest.partition(marks[1])[2]}")
