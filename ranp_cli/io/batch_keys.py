"""What mini-batches that are dicts call their input and their target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import BadInput
from ..core.spelling import spelled

IMAGES = ("image", "img", "data", "volume", "scan")  # what other libraries call them: only to say what to type
LABELS = ("label", "labels", "seg", "segmentation", "mask", "class")


@dataclass(frozen=True)
class Keys:
    """What a mini-batch that is a dict calls its input and its target: the names that will do."""

    input: tuple[str, ...] = ("input", "x")
    target: tuple[str, ...] = ("target", "y")

    @classmethod
    def of(cls, given: str | Sequence[str] | None) -> Keys:
        """From `image,label`, or the two names."""
        if given is None:
            return cls()
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
        if len(names) != 2 or not all(isinstance(name, str) and name for name in names) or names[0] == names[1]:
            raise BadInput(
                f"{spelled('keys', given)}: wants two names, of the input and of the target, such as image,label"
            )
        return cls((names[0],), (names[1],))

    def found(self, raw: Mapping[str, Any]) -> tuple[Any, Any]:
        """Input and target, None for what is not there."""
        data, target = (next((raw[name] for name in names if name in raw), None) for names in (self.input, self.target))
        return data, target

    def are_in(self, raw: Mapping[str, Any]) -> bool:
        return not raw.keys().isdisjoint((*self.input, *self.target))

    @property
    def wanted(self) -> str:
        return f"{{'{self.input[0]}': ..., '{self.target[0]}': ...}}"

    def advice(self, raw: Mapping[str, Any]) -> str:
        """How to name the keys of a dict that has none of these."""
        names = [str(name) for name, value in raw.items() if hasattr(value, "shape")]
        sides = [next((name for name in names if name.lower() in known), "") for known in (IMAGES, LABELS)]
        if not all(sides):
            sides = names if len(names) == 2 else []
        if not sides:
            return f"or name two of its keys, as {spelled('keys', 'image,label')}"
        return f"or give {spelled('keys', ','.join(sides))}"
