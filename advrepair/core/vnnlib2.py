"""VNN-LIB 2.0: one network, its first input and output as tensors of real numbers.

The optional package ``vnnlib`` parses; only its syntax tree is used.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from math import prod
from typing import Any

from attrs import frozen

from advrepair.core.errors import UsageError
from advrepair.core.formulas import Declared, Every, Formula, Linear, Place, Some, error_at, total
from advrepair.core.specification import Specification, safe_regions

INSTALL = 'pip install "advrepair[vnnlib]"'
_REAL = {"Unknown", "F16", "F32", "F64", "BF16"}  # the package calls Real unknown
_SIGNS = {  # whether left - right or right - left is unsafe up to 0, and strictly
    "LessEqual": ((1,), False),
    "LessThan": ((1,), True),
    "GreaterEqual": ((-1,), False),
    "GreaterThan": ((-1,), True),
    "Equal": ((1, -1), False),
}


def read_version_2(name: str, source: str, text: str) -> Specification:
    """What the unsafe set of a VNN-LIB 2.0 text demands.

    Raises UsageError if the package is missing, or for whatever cannot be read or repaired.
    """
    try:
        import vnnlib
    except ImportError:
        raise UsageError(f"{source}: VNN-LIB 2.0 needs another package; {INSTALL}") from None
    try:
        query: Any = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise _explained(source, str(error)) from None
    reader = _Reader.of(source, text, query)
    return safe_regions(name, reader.declared, [reader.formula(a.expr) for a in query.assertions])


@frozen(eq=False)
class _Reader:
    """Turns the package's syntax tree into formulas. shape: of the input and of the output."""

    declared: Declared

    @classmethod
    def of(cls, source: str, text: str, query: Any) -> _Reader:
        """Raises UsageError, by name, for declarations that are not read."""
        if len(query.networks) != 1:
            several = ", ".join(network.name for network in query.networks)
            raise UsageError(f"{source}: it has several networks ({several}); only one is read")
        (network,) = query.networks
        if network.hidden:
            raise _refused(source, text, network.hidden[0].name, "is hidden; leave it out")
        for kind in (network.inputs, network.outputs):
            if len(kind) > 1:
                what = "a second input" if kind is network.inputs else "a second output"
                raise _refused(source, text, kind[1].name, f"is {what}; only one is read")
            if kind[0].dtype.name not in _REAL:
                todo = f"has type {kind[0].dtype.name}; only real numbers are read"
                raise _refused(source, text, kind[0].name, todo)
        (x,), (y,) = network.inputs, network.outputs
        at, count = _place(text, x.name), prod(x.shape)
        each = [f"{x.name}[{_index(i, x.shape)}]" if x.shape else x.name for i in range(count)]
        return cls(Declared(source, tuple(each), (at,) * count, prod(y.shape)))

    def formula(self, node: Any) -> Formula:
        """A formula of a node."""
        kind = type(node).__name__
        if kind in ("And", "Or"):
            parts = tuple(self.formula(part) for part in node.args)
            return Every(parts) if kind == "And" else Some(parts)
        at = (_line(node), 0)
        if kind not in _SIGNS:
            raise self.declared.error(at, f"{str(node).strip()}: {kind} is not read; use <= or >=")
        signs, strict = _SIGNS[kind]
        left, right = self.linear(node.lhs), self.linear(node.rhs)
        found = tuple(
            self.declared.constraint(total([(sign, left), (-sign, right)]), strict, at)
            for sign in signs
        )
        return found[0] if len(found) == 1 else Every(found)

    def linear(self, node: Any) -> Linear:
        """A linear term of a node."""
        kind = type(node).__name__
        if kind == "Var":
            flat = 0
            for index, size in zip(node.indices, node.shape, strict=True):
                flat = flat * size + index
            letter = {"Input": "X", "Output": "Y"}[node.kind.name]
            return Linear({(letter, flat): Fraction(1)}, Fraction(0))
        if hasattr(node, "lexeme"):
            return Linear({}, Fraction(node.lexeme))
        if kind == "Negate":
            return self.linear(node.expr).times(Fraction(-1))
        if kind == "Plus":
            return total((1, self.linear(part)) for part in node.args)
        if kind == "Minus":
            rest = [(-1, self.linear(part)) for part in node.rest]
            return total([(1, self.linear(node.head)), *rest])
        if kind != "Multiply":
            raise self.declared.error((_line(node), 0), f"{kind} is no linear term; use +, -, *")
        found = Linear({}, Fraction(1))
        for part in map(self.linear, node.args):
            if part.terms and found.terms:
                what = "a product of variables is not linear; only linear terms are read"
                raise self.declared.error((_line(node), 0), what)
            number, found = (found, part) if part.terms else (part, found)
            found = found.times(number.constant)
        return found


def _index(flat: int, shape: list[int]) -> str:
    parts = []
    for size in reversed(shape):
        flat, last = divmod(flat, size)
        parts.append(str(last))
    return ",".join(reversed(parts))


def _line(node: Any) -> int:
    """The line of a node: that of the first word in it that has one."""
    if hasattr(node, "line"):
        return int(node.line)
    return next((line for part in node.children() if (line := _line(part))), 0)


def _place(text: str, name: str) -> Place:
    match = re.search(rf"\(\s*declare-(?:input|output|hidden)\s+{re.escape(name)}\b", text)
    start = match.start() if match else 0
    return text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)


def _refused(source: str, text: str, name: str, message: str) -> UsageError:
    return error_at(source, _place(text, name), f"{name} {message}")


def _explained(source: str, message: str) -> UsageError:
    """The package's message as one line."""
    match = re.search(r"line (\d+), column (\d+): '?(.*?)'?$", message)
    if match:
        at = (int(match[1]), int(match[2]))
        return error_at(source, at, f"syntax error before {match[3]!r}; correct the text")
    try:
        first = json.loads(message)["errors"][0]
        what = f"{first['message']}: {first['offendingSymbol']}; {first['hint']}"
        return error_at(source, (int(first["line"]), 0), what)
    except (ValueError, LookupError, TypeError):
        return UsageError(f"{source}: {' '.join(message.split())}")
