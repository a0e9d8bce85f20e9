"""A network as a list of operations: what is read, bounded, run, stored and checked.

Every input format becomes this one form, so verifiers, the run folder and the checker meet
a closed set of operations and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from attrs import asdict, evolve, field, frozen
from torch import Tensor

from advrepair.core.devices import Placed
from advrepair.core.errors import UsageError

Setting = int | float | bool | tuple[int, ...]
INPUT = "input"
_BYTES = 2**28  # of the values of inputs that run together


def _strings(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _sizes(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value)


def _mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


@frozen
class Operation:
    """One step: ``name = kind(inputs)``.

    name: as the user's file calls the node. inputs: names of earlier operations, or
    ``input``. tensors: role to tensor name. shape: of the result, without the batch.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = field(converter=_strings)
    shape: tuple[int, ...] = field(converter=_sizes)
    tensors: dict[str, str] = field(factory=dict, converter=_mapping)
    settings: dict[str, Setting] = field(factory=dict, converter=_mapping)


Step = Callable[[Operation, Mapping[str, Tensor], Sequence[Tensor]], Tensor]


def _linear(op: Operation, t: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    return F.linear(x[0], t[op.tensors["weight"]], _optional(op, t, "bias"))


def _conv2d(op: Operation, t: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    bias = _optional(op, t, "bias")
    return F.conv2d(x[0], t[op.tensors["weight"]], bias, **op.settings)  # type: ignore[arg-type]


def _scale(op: Operation, t: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    factor, shift = _optional(op, t, "weight"), _optional(op, t, "bias")
    y = x[0] if factor is None else x[0] * factor
    return y if shift is None else y + shift


def _avg_pool2d(op: Operation, t: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    return F.avg_pool2d(x[0], **op.settings)  # type: ignore[arg-type]


def _max_pool2d(op: Operation, t: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    pooled: Tensor = F.max_pool2d(x[0], **op.settings)  # type: ignore[call-overload]
    return pooled


def _pad(op: Operation, t: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    return F.pad(x[0], list(integers(op, "pad")))


def _permute(op: Operation, t: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    return x[0].permute(0, *(axis + 1 for axis in integers(op, "axes")))


def _optional(op: Operation, tensors: Mapping[str, Tensor], role: str) -> Tensor | None:
    return tensors[op.tensors[role]] if role in op.tensors else None


def integers(op: Operation, key: str) -> tuple[int, ...]:
    """A setting that is a list of integers; a single one counts for both axes of an image.

    Raises UsageError for anything else.
    """
    value = op.settings[key]
    if isinstance(value, int):
        return (value, value)
    if not isinstance(value, tuple):
        raise UsageError(f"network: node {op.name!r}: setting {key} must be a list of integers")
    return value


@frozen
class PoolWindow:
    """Height and width of a pool's windows, of the steps between them, of the padding."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @classmethod
    def of(cls, op: Operation) -> PoolWindow:
        """Raises UsageError, naming the node, for another setting, or without a kernel."""
        known = {"stride": op.settings.get("kernel_size", 0), "padding": 0, **op.settings}
        if wrong := known.keys() ^ {"kernel_size", "stride", "padding"}:
            raise UsageError(
                f"network: node {op.name!r} ({op.kind}): {min(wrong)} is missing or not supported"
            )
        whole = evolve(op, settings=known)
        return cls(*(integers(whole, key)[:2] for key in ("kernel_size", "stride", "padding")))  # type: ignore[arg-type]


STEPS: dict[str, Step] = {
    "linear": _linear,  # weight [out,in], bias [out]
    "conv2d": _conv2d,
    "scale": _scale,  # x * weight + bias, broadcast: normalisation, batch norm, constants
    "relu": lambda op, t, x: F.relu(x[0]),
    "sigmoid": lambda op, t, x: torch.sigmoid(x[0]),
    "tanh": lambda op, t, x: torch.tanh(x[0]),
    "erf": lambda op, t, x: torch.erf(x[0]),
    "gelu": lambda op, t, x: F.gelu(x[0]),  # x (1 + erf(x / sqrt 2)) / 2
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "pad": _pad,  # zeros
    "reshape": lambda op, t, x: x[0].reshape(len(x[0]), *op.shape),
    "permute": _permute,
    "add": lambda op, t, x: x[0] + x[1],
}


# What is not affine: a verifier puts lines around it, from bounds of what it is given.
NON_AFFINE = frozenset({"relu", "max_pool2d", "sigmoid", "tanh", "erf", "gelu"})


class Network(Placed):
    """A frozen network: operations in order, the last one gives the K outputs.

    operations: in an order in which every input is computed before its use.
    tensors: the weights, by name. input_shape: *S, without the batch.
    Raises UsageError if the list does not fit together.
    """

    def __init__(
        self,
        operations: Iterable[Operation],
        tensors: Mapping[str, Tensor],
        input_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.operations = tuple(operations)
        self.input_shape = tuple(int(size) for size in input_shape)
        self._names = {name: f"tensor_{i}" for i, name in enumerate(sorted(tensors))}
        for name, attribute in self._names.items():
            self.register_buffer(attribute, tensors[name].detach().clone().contiguous())
        self._check()
        width = self.dtype.itemsize
        self._bytes = width * sum(size(op.shape) for op in self.operations)
        last = {name: i for i, op in enumerate(self.operations) for name in op.inputs}
        names = range(len(self.operations))
        self._done = tuple(tuple(name for name in last if last[name] == i) for i in names)

    def _check(self) -> None:
        known = {INPUT}
        for op in self.operations:
            if op.kind not in STEPS:
                raise UsageError(f"network: node {op.name!r}: unknown operation {op.kind!r}")
            if missing := [name for name in op.inputs if name not in known]:
                raise UsageError(f"network: node {op.name!r} reads {missing[0]!r} before it exists")
            if lost := [name for name in op.tensors.values() if name not in self._names]:
                raise UsageError(f"network: node {op.name!r}: no tensor {lost[0]!r}")
            if op.name in known:
                raise UsageError(f"network: two nodes are called {op.name!r}")
            known.add(op.name)
        if not self.operations:
            raise UsageError("network: it has no operations")
        if len(self.operations[-1].shape) != 1:
            shape = self.operations[-1].shape
            raise UsageError(f"network: its output has shape {shape}, not one row of scores")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name."""
        return {name: self.get_buffer(attribute) for name, attribute in self._names.items()}

    @property
    def outputs(self) -> int:
        """K."""
        return self.operations[-1].shape[0]

    @property
    def units(self) -> int:
        """U, ReLUs: those of every operation in order, each flattened."""
        return sum(size(op.shape) for op in self.operations if op.kind == "relu")

    def bounded(self) -> dict[str, int]:
        """Of how many numbers each operation that is not affine needs both ends, by its name.

        None where it reads from another one, whose lines say what comes out.
        """
        made = {op.name: op for op in self.operations}
        found = {}
        for op in self.operations:
            if op.kind in NON_AFFINE:
                source = made.get(op.inputs[0])
                known = source is not None and source.kind in NON_AFFINE and op.kind != "relu"
                shape = self.input_shape if source is None else source.shape
                found[op.name] = 0 if known else size(shape)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; float32 unless the file says float64."""
        return next((t.dtype for t in self.tensors.values()), torch.float32)

    @property
    def parameters_count(self) -> int:
        """Number of stored numbers."""
        return sum(t.numel() for t in self.tensors.values())

    def compute(self, x: Tensor) -> Tensor:
        """Outputs [N,K] of inputs [N,*S]; in parts, where their values would take much memory."""
        if torch.is_grad_enabled() or len(x) <= (most := self.at_once(len(x))):
            return self.apply_tensors(self.tensors, x)
        return torch.cat([self.apply_tensors(self.tensors, part) for part in x.split(most)])

    def at_once(self, most: int, held: int = 1) -> int:
        """Inputs that run together, up to most. held: numbers kept of each value."""
        return max(1, min(most, _BYTES // (held * self._bytes)))

    def apply_tensors(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The same function with other weights: pure, so it can be mapped over patches."""
        values = {INPUT: x}
        for op, done in zip(self.operations, self._done, strict=True):
            values[op.name] = STEPS[op.kind](op, tensors, [values[name] for name in op.inputs])
            for name in done:
                del values[name]
        return values[self.operations[-1].name]

    def values(self, tensors: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """What every operation gives, by its name, [N,*shape] each; as pure as the function."""
        values = {INPUT: x}
        for op in self.operations:
            values[op.name] = STEPS[op.kind](op, tensors, [values[name] for name in op.inputs])
        return values

    def structure(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values; see :meth:`rebuild`."""
        return {
            "input_shape": list(self.input_shape),
            "operations": [asdict(op) for op in self.operations],
        }

    @classmethod
    def rebuild(cls, structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Network:
        """Inverse of :meth:`structure`."""
        operations = [Operation(**op) for op in structure["operations"]]
        return cls(operations, tensors, structure["input_shape"])

    def digest(self) -> str:
        """SHA-256 of structure and weights."""
        digest = hashlib.sha256(json.dumps(self.structure(), sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


def size(shape: Sequence[int]) -> int:
    """Number of values of a shape."""
    return math.prod(shape)
