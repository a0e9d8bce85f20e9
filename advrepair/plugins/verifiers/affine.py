"""Affine operations, backwards: rows over a result become rows over its inputs.

Each rule takes rows ``A`` [B,M,*shape] over ``y = W x + b`` and returns ``A W``
[B,M,*input shape] and ``A b`` [B,M]. B may be 1: rows that are the same for all boxes.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from attrs import evolve
from torch import Tensor

from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import (
    INPUT,
    NON_AFFINE,
    STEPS,
    Network,
    Operation,
    PoolWindow,
    integers,
    size,
)

Tensors = Mapping[str, Tensor]
Pulled = tuple[Tensor, Tensor | None]
Rule = Callable[[Operation, Tensors, Tensor, Sequence[int]], Pulled]


def _pull_linear(op: Operation, t: Tensors, A: Tensor, shape: Sequence[int]) -> Pulled:
    return A @ t[op.tensors["weight"]], A @ t[op.tensors["bias"]] if "bias" in op.tensors else None


def _pull_conv2d(op: Operation, t: Tensors, A: Tensor, shape: Sequence[int]) -> Pulled:
    weight = t[op.tensors["weight"]]
    stride, padding, dilation = (integers(op, key) for key in ("stride", "padding", "dilation"))
    extra = [
        shape[axis + 1]
        - (A.shape[axis + 3] - 1) * stride[axis]
        + 2 * padding[axis]
        - dilation[axis] * (weight.shape[axis + 2] - 1)
        - 1
        for axis in (0, 1)
    ]
    rows = F.conv_transpose2d(
        A.flatten(0, 1),
        weight,
        stride=stride[:2],
        padding=padding[:2],
        output_padding=extra,
        groups=integers(op, "groups")[0],
        dilation=dilation,
    )
    bias = None
    if "bias" in op.tensors:
        bias = A.sum((3, 4)) @ t[op.tensors["bias"]]
    return rows.unflatten(0, A.shape[:2]), bias


def _pull_scale(op: Operation, t: Tensors, A: Tensor, shape: Sequence[int]) -> Pulled:
    rows = A * t[op.tensors["weight"]] if "weight" in op.tensors else A
    shift = (A * t[op.tensors["bias"]]).flatten(2).sum(2) if "bias" in op.tensors else None
    return rows, shift


def _pull_reshape(op: Operation, t: Tensors, A: Tensor, shape: Sequence[int]) -> Pulled:
    return A.reshape(*A.shape[:2], *shape), None


def _pull_permute(op: Operation, t: Tensors, A: Tensor, shape: Sequence[int]) -> Pulled:
    axes = integers(op, "axes")
    back = sorted(range(len(axes)), key=axes.__getitem__)
    return A.permute(0, 1, *(axis + 2 for axis in back)), None


def _pull_by_derivative(op: Operation, t: Tensors, A: Tensor, shape: Sequence[int]) -> Pulled:
    """Rows of any operation that is linear without a constant: its transposed derivative."""
    flat = A.flatten(0, 1)
    point = flat.new_zeros(flat.shape[0], *shape)
    _, transpose, *_ = torch.func.vjp(lambda x: STEPS[op.kind](op, t, [x]), point)
    (rows,) = transpose(flat)
    return rows.unflatten(0, A.shape[:2]), None


PULL: dict[str, Rule] = {
    "linear": _pull_linear,
    "conv2d": _pull_conv2d,
    "scale": _pull_scale,
    "reshape": _pull_reshape,
    "permute": _pull_permute,
    "pad": _pull_by_derivative,
    "avg_pool2d": _pull_by_derivative,
}

# Each result depends on one input: interval arithmetic through it loses nothing.
DIAGONAL = frozenset({"scale", "reshape", "permute", "pad"})


_OTHERS = frozenset({"add"}) | NON_AFFINE


def fan_in(op: Operation, tensors: Tensors) -> int:
    """Terms in the sum that gives one result; 0 where no rounding happens."""
    if op.kind in ("linear", "conv2d"):
        return size(tensors[op.tensors["weight"]].shape[-3 if op.kind == "conv2d" else -1 :]) + 1
    if op.kind == "avg_pool2d":
        kernel = op.settings["kernel_size"]
        return size(kernel) if isinstance(kernel, tuple) else int(kernel) ** 2
    return 2 if op.kind in ("scale", "add") else 0


def without_bias(op: Operation) -> Operation:
    """The linear part of an affine operation."""
    tensors = {role: name for role, name in op.tensors.items() if role != "bias"}
    return evolve(op, tensors=tensors)


def check_supported(network: Network, verifier: str) -> None:
    """Raises UnsupportedNetworkError unless every operation can be bounded."""
    shapes = {INPUT: network.input_shape} | {op.name: op.shape for op in network.operations}
    for op in network.operations:
        if op.kind not in PULL and op.kind not in _OTHERS:
            raise UnsupportedNetworkError(
                f"network: node {op.name!r} ({op.kind}) has no rule in verifier {verifier!r}; "
                "replace the node or choose another verifier"
            )
        if op.kind == "max_pool2d":
            try:
                PoolWindow.of(op)
            except UsageError as error:
                raise UnsupportedNetworkError(str(error)) from error
        if op.kind in ("scale", "add") and any(shapes[name] != op.shape for name in op.inputs):
            raise UnsupportedNetworkError(
                f"network: node {op.name!r} ({op.kind}) broadcasts its input "
                f"{shapes[op.inputs[0]]} to {op.shape}, which verifier {verifier!r} cannot bound"
            )
