"""Networks and lists of operators as ONNX files.

Every operation of a network becomes the ONNX operator that is defined as the same sum of
products of the same stored weights: ``scale`` stays a product and a sum. Whoever rewrites the
file first, for example by folding a factor into the weights before it, runs another function;
docs/soundness.md excludes that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import INPUT, Network, Operation, integers
from advrepair.core.operators import Step, Steps

OPSET, _IR = 17, 8
OUTPUT = "output"  # of every exported file; its input is called as in a Network
_MOST = 2**31 - 2**20  # bytes that protobuf reads, less room for the nodes
_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}
# Attributes here that are constant inputs there.
_AS_INPUT = {"Reshape": "shape", "Unsqueeze": "axes", "ReduceSum": "axes", "TopK": "k"}
Shapes = Mapping[str, Sequence[int]]


def write_model(
    steps: Steps,
    inputs: Shapes,
    outputs: Shapes,
    dtype: torch.dtype,
    about: Mapping[str, str] | None = None,
) -> bytes:
    """The ONNX file of a list of operators.

    inputs, outputs: name to shape without the batch, which is open; numbers of dtype.
    about: goes into metadata_props. Raises UsageError if the file would be too large.
    """
    read = {name for step in steps.steps for name in step.inputs}
    constants = {name: t for name, t in steps.constants.items() if name in read}
    size = sum(t.numel() * t.element_size() for t in constants.values())
    if size > _MOST:
        raise UsageError(
            f"the ONNX file would have {size / 2**30:.1f} GiB of weights, and 2 is the most it "
            "can have: repair with fewer or smaller patches"
        )
    stored = [numpy_helper.from_array(t.cpu().numpy(), n) for n, t in constants.items()]
    nodes = []
    for step in steps.steps:
        node, extra = _node(step)
        nodes.append(node)
        stored.extend(extra)
    known, results = (
        [
            helper.make_tensor_value_info(n, _TYPES[dtype], ["N", *shape])
            for n, shape in each.items()
        ]
        for each in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "network", known, results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR)
    model.producer_name = "advrepair"
    helper.set_model_props(model, dict(about or {}))
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


def _node(step: Step) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """One operator, and the constants it needs beside those of the list."""
    attributes, inputs, extra = dict(step.attributes), list(step.inputs), []
    outputs = [step.output]
    moved = _AS_INPUT.get(step.operator)
    if moved:
        value = attributes.pop(moved)
        numbers = [value] if isinstance(value, int) else list(value)
        inputs.append(f"{step.output}.{moved}")
        extra.append(numpy_helper.from_array(np.array(numbers, np.int64), inputs[-1]))
    if step.operator == "TopK":  # its second output, the indices, is the one that is meant
        outputs.insert(0, f"{step.output}.values")
    if step.operator == "Cast":
        attributes["to"] = _TYPES[attributes["to"]]
    node = helper.make_node(step.operator, inputs, outputs, name=step.output, **attributes)
    return node, extra


def network_model(network: Network) -> bytes:
    """A network alone; its input is called ``input``."""
    steps = Steps()
    last = write_network(steps, network)
    result = {last: [network.outputs]}
    return write_model(steps, {INPUT: network.input_shape}, result, network.dtype)


def write_network(to: Steps, network: Network, source: str = INPUT) -> str:
    """All operations of a network; returns its output, [N,K]."""
    weights = {name: to.constant(t, f"weights/{name}") for name, t in network.tensors.items()}
    names, shapes = {INPUT: source}, {INPUT: network.input_shape}
    for op in network.operations:
        inputs = [names[name] for name in op.inputs]
        roles = {role: weights[name] for role, name in op.tensors.items()}
        shape = shapes[op.inputs[0]]
        names[op.name] = _operation(to, op, inputs, roles, shape, network.dtype)
        shapes[op.name] = op.shape
    return names[network.operations[-1].name]


def _operation(
    to: Steps,
    op: Operation,
    x: list[str],
    roles: dict[str, str],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> str:
    """One operation. roles: its weights. shape: of its first input."""
    name = f"base/{op.name}"
    weights = [roles[role] for role in ("weight", "bias") if role in roles]
    if op.kind in _SIMPLE:
        return to.call(_SIMPLE[op.kind], *x, name=name)
    if op.kind == "linear":
        return _linear(to, op, x[0], weights, shape)
    if op.kind == "scale":
        value = x[0]
        for role, kind in (("weight", "Mul"), ("bias", "Add")):
            if role in roles:
                value = to.call(kind, value, roles[role], name=f"{name}/{role}")
        return value
    if op.kind == "gelu":
        return _gelu(to, name, x[0], dtype)
    if op.kind == "conv2d":
        return to.call("Conv", *x, *weights, name=name, **_convolution(op))
    if op.kind in ("max_pool2d", "avg_pool2d"):
        kind = "MaxPool" if op.kind == "max_pool2d" else "AveragePool"
        return to.call(kind, *x, name=name, **_window(op))
    if op.kind == "pad":
        ends = to.constant(torch.tensor(_pads(op, len(shape))), f"{name}/pads")
        return to.call("Pad", *x, ends, name=name)
    if op.kind == "permute":
        perm = (0, *(axis + 1 for axis in integers(op, "axes")))
        return to.call("Transpose", *x, name=name, perm=perm)
    if op.kind == "reshape":
        return to.call("Reshape", *x, name=name, shape=(-1, *op.shape))
    raise UnsupportedNetworkError(f"network: node {op.name!r} ({op.kind}) cannot be exported")


_SIMPLE = {"relu": "Relu", "add": "Add", "sigmoid": "Sigmoid", "tanh": "Tanh", "erf": "Erf"}


def _linear(to: Steps, op: Operation, x: str, weights: list[str], shape: tuple[int, ...]) -> str:
    """A matrix on the last axis: Gemm knows two axes only, so the others join the batch."""
    name = f"base/{op.name}"
    if len(shape) == 1:
        return to.call("Gemm", x, *weights, name=name, transB=1)
    flat = to.call("Reshape", x, name=f"{name}/flat", shape=(-1, shape[-1]))
    product = to.call("Gemm", flat, *weights, name=f"{name}/product", transB=1)
    return to.call("Reshape", product, name=name, shape=(-1, *op.shape))


def _gelu(to: Steps, name: str, x: str, dtype: torch.dtype) -> str:
    """GELU by erf: ONNX has an operator for it only from opset 20 on."""
    part = to.constant(torch.tensor(math.sqrt(0.5), dtype=dtype), f"{name}/sqrt_half")
    half = to.constant(torch.tensor(0.5, dtype=dtype), f"{name}/half")
    one = to.constant(torch.tensor(1.0, dtype=dtype), f"{name}/one")
    root = to.call("Mul", x, part, name=f"{name}/root")
    share = to.call("Add", to.call("Erf", root, name=f"{name}/erf"), one, name=f"{name}/share")
    return to.call("Mul", to.call("Mul", x, half, name=f"{name}/input"), share, name=name)


def _convolution(op: Operation) -> dict[str, Any]:
    edge = integers(op, "padding")
    return {
        "strides": integers(op, "stride"),
        "pads": (*edge, *edge),
        "dilations": integers(op, "dilation"),
        "group": op.settings["groups"],
    }


def _window(op: Operation) -> dict[str, Any]:
    if unknown := set(op.settings) - {"kernel_size", "stride", "padding"}:
        raise UnsupportedNetworkError(
            f"network: node {op.name!r} ({op.kind}): {min(unknown)} cannot be exported"
        )
    edge = integers(op, "padding") if "padding" in op.settings else (0, 0)
    stride = "stride" if "stride" in op.settings else "kernel_size"
    found: dict[str, Any] = {
        "kernel_shape": integers(op, "kernel_size"),
        "strides": integers(op, stride),
    }
    if op.kind == "avg_pool2d":
        found["count_include_pad"] = 1  # as torch does
    return found | {"pads": (*edge, *edge)}


def _pads(op: Operation, rank: int) -> list[int]:
    """Zeros before and after every axis, the batch included."""
    ends = [[0] * (1 + rank) for _ in range(2)]
    for i, width in enumerate(integers(op, "pad")):  # as in torch: the last axis first
        ends[i % 2][-1 - i // 2] = width
    return [*ends[0], *ends[1]]
