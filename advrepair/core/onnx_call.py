"""One ONNX node as its reader sees it: attributes and inputs, asked for by what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import define

from advrepair.core.assembly import Assembly, Value
from advrepair.core.onnx_constants import Array


@define
class Call:
    """One node, about to be read.

    attributes: emptied as they are read; what is left over is refused by the importer.
    inputs: None where an optional input is absent.
    """

    to: Assembly
    attributes: dict[str, Any]
    inputs: list[Value | Array | None]
    fixed_batch: bool

    def take(self, name: str, default: Any) -> Any:
        """The value of an attribute, which then counts as read."""
        return self.attributes.pop(name, default)

    def ignore(self, *names: str) -> None:
        """Attributes without a meaning at inference."""
        for name in names:
            self.attributes.pop(name, None)

    def expect(self, name: str, *allowed: Any, default: Any) -> None:
        """Refuse an attribute that has none of the allowed values."""
        value = self.take(name, default)
        if value not in allowed:
            raise self.to.refusal(f"attribute {name} = {value} is not supported")

    def value(self) -> Value:
        """The first input, which must depend on the network's input."""
        value = self.inputs[0]
        if not isinstance(value, Value):
            raise self.to.refusal("its first input is a constant; fold constants when exporting")
        return value

    def optional(self, position: int) -> Array | None:
        """A constant input that may be absent."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, Value):
            raise self.to.refusal(f"its input {position + 1} is computed; only a constant can be")
        return value

    def constant(self, position: int) -> Array:
        """A constant input."""
        value = self.optional(position)
        if value is None:
            raise self.to.refusal(f"its input {position + 1} is missing")
        return value

    def integers(self, name: str, position: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Integers from an attribute or, in later opsets, from a constant input."""
        given = self.take(name, None)
        if given is None:
            given = self.optional(position)
        return default if given is None else tuple(int(n) for n in np.ravel(given))

    def operand(self, position: int) -> Any:
        """An input of either sort."""
        value = self.inputs[position]
        return value if isinstance(value, Value) else self.constant(position)
