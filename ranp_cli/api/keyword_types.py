"""Write `keywords.py`, the types of the options for type checkers: `python -m ranp_cli.api.keyword_types`.

The options have their one home in `options.py`; this makes the TypedDicts that `**options: Unpack[...]` needs from it.
"""

from __future__ import annotations

import dataclasses

from ..core.paths import PACKAGE
from . import options

FUNCTIONS = ("score", "prune", "refine", "compare", "profile", "Pruner")
HEAD = '''"""The keywords of the public functions, for type checkers. Written by `python -m ranp_cli.api.keyword_types`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict
'''


def keyword_types() -> str:
    """The text of keywords.py: a TypedDict for each group, and one for each function that inherits from its groups'."""
    groups: dict[str, type] = {}
    functions = []
    for name in FUNCTIONS:
        keywords = getattr(options, name.upper())
        groups |= {group.__name__.replace("Options", "Keywords"): group for group in keywords.groups}
        bases = ", ".join(group.__name__.replace("Options", "Keywords") for group in keywords.groups)
        functions.append(f"class {name.capitalize()}Keywords({bases}, total=False):\n    pass\n")
    texts = [HEAD]
    for name, group in groups.items():
        lines = [f"    {field.name}: {field.type}" for field in dataclasses.fields(group)]
        texts.append(f"class {name}(TypedDict, total=False):\n" + "\n".join(lines) + "\n")
    return "\n\n".join([*texts, *functions])


if __name__ == "__main__":
    (PACKAGE / "api" / "keywords.py").write_text(keyword_types())
