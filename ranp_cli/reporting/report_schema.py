"""The JSON Schema of a report, made from its types: `python -m ranp_cli.reporting.report_schema` writes it."""

from __future__ import annotations

import inspect
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from typing_extensions import NotRequired, get_type_hints, is_typeddict

from . import report_types

SCHEMA = Path(__file__).with_name("report.schema.json")
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema() -> dict[str, Any]:
    """The schema of a whole report; every object with keys of its own is closed."""
    parts: dict[str, Any] = {}
    root = _object(report_types.ReportDocument, parts)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ranp report",
        **root,
        "$defs": dict(sorted(parts.items())),
    }


def _object(kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    """A TypedDict as a schema; those that it refers to are added to `parts`."""
    hints = get_type_hints(kind, include_extras=True)
    extra = report_types.KEYS_OF_PYTHON.get(kind.__name__, {})
    properties = {key: _schema_of(_required(hint)[0], parts) for key, hint in {**hints, **extra}.items()}
    total = getattr(kind, "__total__", True)
    required = [key for key, hint in hints.items() if total and _required(hint)[1]]
    text = inspect.cleandoc(kind.__doc__ or "")
    said = {"description": text} if text and not text.startswith("dict(") else {}
    return {
        **said,
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _required(hint: Any) -> tuple[Any, bool]:
    """A field's type, and whether it must be there."""
    return (get_args(hint)[0], False) if get_origin(hint) is NotRequired else (hint, True)


def _schema_of(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if is_typeddict(hint):
        if hint.__name__ not in parts:
            parts[hint.__name__] = {}  # a type may hold itself
            parts[hint.__name__] = _object(hint, parts)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is list:
        return {"type": "array", "items": _schema_of(args[0], parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(args[1], parts)}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        plain = [PLAIN[arg] for arg in args if arg in PLAIN]
        return {"type": plain} if len(plain) == len(args) else {"anyOf": [_schema_of(arg, parts) for arg in args]}
    return {"type": PLAIN[hint]}


def as_text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(as_text())
