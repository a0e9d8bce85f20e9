"""Networks as operators of an ONNX file, also such whose ReLUs are masks that others computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from advrepair import Network, Operation, UnsupportedNetworkError
from advrepair_baselines.cutting import INPUT
from advrepair_baselines.linearised import shut


@frozen
class Writer:
    """Writes operations to a list of operators. shape: of the input, without the batch."""

    to: Any
    shape: tuple[int, ...]

    def network(
        self, network: Network, x: str, prefix: str, masks: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Names of what the operations give, by their names. masks: stand for ReLUs, by name."""
        names, shapes = {INPUT: x}, {INPUT: self.shape}
        constants = {n: self.to.constant(t, f"{prefix}/{n}") for n, t in network.tensors.items()}
        for op in network.operations:
            inputs = [names[name] for name in op.inputs]
            if masks and op.name in masks:
                names[op.name] = self.to.call("Mul", *inputs, masks[op.name])
            else:
                names[op.name] = self._operation(op, inputs, constants, shapes[op.inputs[0]])
            shapes[op.name] = op.shape
        return names

    def mask(self, op: Operation, z: str, dtype: torch.dtype) -> str:
        """1 where the input of a ReLU is > 0, else its slope there."""
        zero, one = (self.to.constant(torch.tensor(v, dtype=dtype)) for v in (0.0, 1.0))
        slope = self.to.constant(torch.tensor(shut(op), dtype=dtype))
        return str(self.to.call("Where", self.to.call("Greater", z, zero), one, slope))

    def _operation(
        self, op: Operation, x: list[str], constants: Mapping[str, str], shape: Sequence[int]
    ) -> str:
        """One operation, of inputs the first of which has a shape."""
        call, roles = self.to.call, {role: constants[n] for role, n in op.tensors.items()}
        weights = [roles[role] for role in ("weight", "bias") if role in roles]
        if op.kind == "linear" and len(shape) == 1:
            return str(call("Gemm", *x, *weights, transB=1))
        if op.kind in ("relu", "add"):
            return str(call(op.kind.capitalize(), *x))
        if op.kind == "leaky_relu":
            return str(call("LeakyRelu", *x, alpha=shut(op)))
        if op.kind == "reshape":
            return str(call("Reshape", *x, shape=(-1, *op.shape)))
        if op.kind == "scale":
            value = x[0]
            for role, kind in (("weight", "Mul"), ("bias", "Add")):
                value = call(kind, value, roles[role]) if role in roles else value
            return str(value)
        if op.kind == "conv2d":
            return str(call("Conv", *x, *weights, **_convolution(op)))
        if op.kind == "permute":
            return str(call("Transpose", *x, perm=(0, *(axis + 1 for axis in _both(op, "axes")))))
        raise UnsupportedNetworkError(f"network: node {op.name!r} ({op.kind}) cannot be exported")


def _convolution(op: Operation) -> dict[str, Any]:
    edge = _both(op, "padding")
    return {
        "strides": _both(op, "stride"),
        "pads": (*edge, *edge),
        "dilations": _both(op, "dilation"),
        "group": op.settings["groups"],
    }


def _both(op: Operation, key: str) -> tuple[int, ...]:
    """A setting of all axes; a single number counts for both axes of an image."""
    value = op.settings[key]
    return value if isinstance(value, tuple) else (int(value), int(value))
