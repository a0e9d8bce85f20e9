"""A computation as a list of standard operators, to be written to a file or run by torch.

The names and the meaning are those of ONNX, opset 17. Lists that ONNX takes as small constant
inputs (a shape, axes, a k) are attributes here: ``call("Reshape", x, shape=(-1, 4))``.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor


@frozen
class Step:
    """``output = operator(inputs)``; an input is the name of a value or of a constant."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


@define
class Steps:
    """Operators in order, and the constants they read; see :class:`OperatorList`."""

    steps: list[Step] = field(factory=list)
    constants: dict[str, Tensor] = field(factory=dict)
    prefix: str = ""

    def call(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add an operator; returns the name of its result, which is name if one is given."""
        output = f"{self.prefix}{name}" if name else self._fresh(operator)
        self.steps.append(Step(operator, inputs, output, attributes))
        return output

    def constant(self, value: Tensor, name: str = "") -> str:
        """Add a constant, in its own dtype; returns its name."""
        chosen = f"{self.prefix}{name}" if name else self._fresh("constant")
        self.constants[chosen] = value.detach().contiguous()
        return chosen

    def _fresh(self, kind: str) -> str:
        return f"{self.prefix}{kind}_{len(self.steps) + len(self.constants)}"


def every(to: Steps, holds: str) -> str:
    """Whether all of the last axis are true: bool, without that axis."""
    small = to.call("Cast", holds, to=torch.uint8)
    least = to.call("ReduceMin", small, axes=(-1,), keepdims=0)
    return to.call("Cast", least, to=torch.bool)


def first_of(to: Steps, marks: str) -> tuple[str, str]:
    """Index of the first mark of each row, int64 [N], and whether there is one, bool [N]."""
    numbers = to.call("Cast", marks, to=torch.int32)
    most = to.call("ReduceMax", numbers, axes=(1,), keepdims=0)
    return to.call("ArgMax", numbers, axis=1, keepdims=0), to.call("Cast", most, to=torch.bool)


def one_hot(to: Steps, index: str, size: int) -> str:
    """Where column and index agree: bool [N, size] of int64 [N]; no column for -1."""
    columns = to.constant(torch.arange(size)[None])
    return to.call("Equal", columns, to.call("Unsqueeze", index, axes=(1,)))


def choose(to: Steps, condition: str, yes: str, no: str) -> str:
    """``yes`` where the condition holds, else ``no``; all three are bool."""
    left = to.call("And", condition, yes)
    return to.call("Or", left, to.call("And", to.call("Not", condition), no))
