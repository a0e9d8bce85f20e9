"""Put a Network together, one operation at a time: what every importer writes to.

An importer announces a node with :meth:`Assembly.enter` and says what it does; shapes are
found by running the operation itself on a batch of two zeros, so they cannot disagree with
it. Anything that is not a function of each input alone is refused, by the node's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import INPUT, STEPS, Network, Operation, Setting, size

BATCH = -(2**62)  # stands for the batch in a list of sizes; no real size is negative
_DTYPES = (torch.float32, torch.float64)


@frozen
class Value:
    """A result of the network. name: of its operation. shape: without the batch."""

    name: str
    shape: tuple[int, ...]


class Assembly:
    """A network under construction.

    input_shape: *S. source: the file or module, for messages. Every method that adds an
    operation returns its result and raises UnsupportedNetworkError, naming the node, for
    what the list of operations cannot say.
    """

    def __init__(self, input_shape: Sequence[int], dtype: torch.dtype, source: str) -> None:
        self.source = source
        if dtype not in _DTYPES:
            raise UnsupportedNetworkError(
                f"{source}: its numbers are {_short(dtype)}; convert it to float32 or float64"
            )
        self.dtype = dtype
        self.input = Value(INPUT, tuple(input_shape))
        self._node, self._operator = INPUT, INPUT
        self._operations: dict[str, Operation] = {}
        self._tensors: dict[str, Tensor] = {}

    def enter(self, node: str, operator: str) -> None:
        """Announce the node that the next operations come from."""
        self._node, self._operator = node, operator

    def refusal(self, why: str) -> UnsupportedNetworkError:
        """The error to raise: why is what is wrong and what to do."""
        where = f"node {self._node!r} ({self._operator})"
        return UnsupportedNetworkError(f"{self.source}: {where}: {one_line(why)}")

    def tensor(self, constant: Any) -> Tensor:
        """A constant of the network in its dtype; refuses NaN and other precisions."""
        if isinstance(constant, Tensor):
            value = constant.detach()
        elif isinstance(constant, (bool, int, float)):
            value = torch.tensor(constant, dtype=torch.float64)
        else:
            try:
                value = torch.from_numpy(np.array(constant))
            except TypeError as error:
                raise self.refusal(f"its constant cannot be read: {error}") from error
        if value.is_complex() or (
            value.dim() > 0 and value.is_floating_point() and value.dtype != self.dtype
        ):
            kinds = f"{_short(value.dtype)}, the network {_short(self.dtype)}"
            raise self.refusal(f"its constant is {kinds}; convert the network to one of them")
        value = value.to(self.dtype)
        if not bool(value.isfinite().all()):
            raise self.refusal("its weights hold NaN or infinity; train or export it again")
        return value

    def emit(
        self,
        kind: str,
        inputs: Sequence[Value],
        tensors: Mapping[str, Tensor] | None = None,
        settings: Mapping[str, Setting] | None = None,
        shape: tuple[int, ...] = (),
    ) -> Value:
        """Add an operation. shape: of the result, where the operation does not say it."""
        name = self._fresh_name()
        weights = {f"{name}.{role}": value for role, value in (tensors or {}).items()}
        content: dict[str, Any] = {
            "name": name,
            "kind": kind,
            "inputs": [value.name for value in inputs],
            "shape": shape,
            "tensors": {role: f"{name}.{role}" for role in tensors or {}},
            "settings": settings or {},
        }
        op = Operation(**content)
        blank = [torch.zeros(2, *value.shape, dtype=self.dtype) for value in inputs]
        try:
            result = STEPS[kind](op, weights, blank)
        except (RuntimeError, TypeError, ValueError) as error:
            raise self.refusal(f"it does not fit its input: {one_line(error)}") from error
        if len(result) != 2 or 0 in result.shape:
            raise self.refusal(f"it gives an empty result {tuple(result.shape)}")
        value = Value(name, _shape(result))
        self._operations[name] = Operation(**{**content, "shape": value.shape})
        self._tensors.update(weights)
        return value

    def finish(self, output: Value) -> Network:
        """The network that ends in output, without the operations it does not need."""
        self.enter(output.name, "output")
        if output.name not in self._operations:
            raise self.refusal("the network returns its input unchanged: there is nothing to do")
        if len(output.shape) != 1:
            raise self.refusal(f"the output is [batch,{_list(output.shape)}], not [batch,K]")
        needed = {output.name}
        for op in reversed(self._operations.values()):
            if op.name in needed:
                needed.update(op.inputs)
        kept = [op for op in self._operations.values() if op.name in needed]
        tensors = {name: self._tensors[name] for op in kept for name in op.tensors.values()}
        try:
            return Network(kept, tensors, self.input.shape)
        except UsageError as error:
            raise UsageError(f"{self.source}: {error}") from error

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Every tensor so far, by name."""
        return self._tensors

    def producer(self, value: Value) -> Operation | None:
        """The operation that computes value; None for the input."""
        return self._operations.get(value.name)

    def axis(self, value: Value, axis: int, extra: int = 0) -> int:
        """Position in value.shape of an axis counted with the batch; refuses the batch.

        extra: axes that are about to be added.
        """
        rank = len(value.shape) + 1 + extra
        position = axis + rank if axis < 0 else axis
        if not 1 <= position < rank:
            raise self.refusal(f"axis {axis} of {rank} is the batch or none; use another axis")
        return position - 1

    def reshape_to(self, value: Value, shape: Sequence[int]) -> Value:
        """Reshape to sizes without the batch."""
        target = tuple(int(n) for n in shape)
        if size(target) != size(value.shape):
            raise self.refusal(f"cannot reshape {_list(value.shape)} to {_list(target)}")
        if target == value.shape:
            return value
        op = self.producer(value)
        if op is not None and op.kind == "reshape":
            # Two reshapes are one; the first is dropped unless something else reads it.
            return self.reshape_to(self.value(op.inputs[0]), target)
        return self.emit("reshape", [value], shape=target)

    def reshape(self, value: Value, target: Sequence[int]) -> Value:
        """Reshape to sizes with the batch first: BATCH or -1, and at most one -1 in all."""
        sizes = [int(n) for n in target]
        first, rest = (sizes[0], sizes[1:]) if sizes else (0, [])
        if first not in (BATCH, -1) or any(n < -1 for n in rest) or sizes.count(-1) > 1:
            shown = ", ".join("batch" if n == BATCH else str(n) for n in sizes)
            raise self.refusal(f"reshape to ({shown}) moves the batch axis; keep it first")
        if -1 in rest:
            known = math.prod(n for n in rest if n != -1)
            rest[rest.index(-1)] = size(value.shape) // known if known else 0
        return self.reshape_to(value, rest)

    def flatten(self, value: Value, start: int = 1, end: int = -1) -> Value:
        """Join axes start to end, both counted with the batch."""
        first, last = self.axis(value, start), self.axis(value, end)
        shape = value.shape
        joined = (size(shape[first : last + 1]),)
        return self.reshape_to(value, shape[:first] + joined + shape[last + 1 :])

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        """Reorder axes; order counts the batch, which stays first."""
        rank = len(value.shape) + 1
        full = [axis + rank if axis < 0 else axis for axis in order]
        if sorted(full) != list(range(rank)) or full[0] != 0:
            raise self.refusal(f"axes in order {tuple(order)} move the batch; keep it first")
        axes = tuple(axis - 1 for axis in full[1:])
        if axes == tuple(range(len(axes))):
            return value
        return self.emit("permute", [value], settings={"axes": axes})

    def value(self, name: str) -> Value:
        """A result by the name of its operation."""
        return self.input if name == INPUT else Value(name, self._operations[name].shape)

    def _fresh_name(self) -> str:
        name, count = self._node, 0
        while name in self._operations or name == INPUT:
            count += 1
            name = f"{self._node}_{count}"
        return name


def one_line(text: object) -> str:
    """The first line of a message from elsewhere."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(text).__name__


def _shape(result: Tensor) -> tuple[int, ...]:
    return tuple(result.shape[axis] for axis in range(1, result.dim()))


def _list(shape: Sequence[int]) -> str:
    return ",".join(str(n) for n in shape)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
