"""GELU written out: products of a value and of an error function of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from attrs import frozen

from advrepair.core.assembly import Assembly, Value

_UNITS = 4  # by which 1 / sqrt(2) may be off in the file: it is rounded there


@frozen
class _Line:
    """``factor * value + shift``, with two numbers."""

    value: Value
    factor: float
    shift: float


def gelu_of(to: Assembly, plain: Value, other: Value) -> tuple[Value, float] | None:
    """The x and the c for which ``plain * other`` is c times the GELU of x; None if it is not.

    That is where other = b (1 + erf(x / sqrt(2))) and plain = a x, for any numbers a and b: the
    product is 2 a b GELU(x). 1 / sqrt(2) counts as itself if it is so up to its last bits.
    """
    erf = next((line for line in _lines(to, other) if _kind(to, line.value) == "erf"), None)
    if erf is None or erf.shift != erf.factor:
        return None
    operation = to.producer(erf.value)
    inside = to.value(operation.inputs[0]) if operation else erf.value
    room = _UNITS * torch.finfo(to.dtype).eps
    for given in _lines(to, inside):
        if given.shift == 0 and abs(given.factor * math.sqrt(2) - 1) <= room:
            for line in _lines(to, plain):
                if line.value == given.value and line.shift == 0:
                    return given.value, 2 * line.factor * erf.factor
    return None


def _kind(to: Assembly, value: Value) -> str:
    operation = to.producer(value)
    return "" if operation is None else operation.kind


def _lines(to: Assembly, value: Value) -> Iterator[_Line]:
    """A value as multiples of itself and of what it was scaled from, by one number each time."""
    line = _Line(value, 1.0, 0.0)
    yield line
    while (operation := to.producer(line.value)) is not None and operation.kind == "scale":
        numbers = []
        for role, neutral in (("weight", 1.0), ("bias", 0.0)):
            if role not in operation.tensors:
                numbers.append(neutral)
                continue
            stored = to.weights[operation.tensors[role]].double().flatten()
            if bool((stored != stored[0]).any()):
                return
            numbers.append(float(stored[0]))
        factor, shift = numbers
        line = _Line(
            to.value(operation.inputs[0]), line.factor * factor, line.factor * shift + line.shift
        )
        yield line
