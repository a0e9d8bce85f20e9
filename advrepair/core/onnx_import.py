"""Read an ONNX file as a Network.

Only what the output depends on is read. The leading axis is the batch, whether the file
fixes it to 1 or leaves it open. An operator outside the list is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from advrepair.core.assembly import BATCH, Assembly, Value, one_line
from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import Network
from advrepair.core.onnx_call import Call
from advrepair.core.onnx_constants import FOLDED, Array, constant_value, fold
from advrepair.core.onnx_operators import OPERATORS

_OLDEST_OPSET = 7  # broadcasting had other rules before
_DTYPES = {int(TensorProto.FLOAT): torch.float32, int(TensorProto.DOUBLE): torch.float64}
_READ = {*OPERATORS, *FOLDED, "Constant", "Shape"}
_HINTS = {
    "LogSoftmax": "export the network up to its logits",
    "Softmax": "export the network up to its logits",
    "ArgMax": "export the network up to its logits",
}


def read_onnx(path: Path) -> Network:
    """Read an ONNX file.

    Raises UsageError if it is no valid ONNX file; UnsupportedNetworkError, naming the node,
    for an operator, an attribute or a shape that is not supported.
    """
    model = _load(path)
    graph = model.graph
    values: dict[str, Value | Array] = {}
    nodes = _needed(path, graph)
    _check(path, model)
    for stored in graph.initializer:
        values[stored.name] = numpy_helper.to_array(stored)
    assembly, fixed = _start(path, graph, values)
    for name, node in nodes:
        assembly.enter(name, node.op_type)
        values[node.output[0]] = _read(assembly, node, values, fixed)
    result = values.get(graph.output[0].name)
    if not isinstance(result, Value):
        raise UnsupportedNetworkError(f"{path}: the output does not depend on the input")
    return assembly.finish(result)


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf and onnx have many ways to say that it is broken
        raise UsageError(f"{path}: not a readable ONNX file: {one_line(error)}") from error
    if not model.graph.output:
        raise UsageError(f"{path}: not an ONNX file, or cut off: it describes no network")
    return model


def _check(path: Path, model: onnx.ModelProto) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise UnsupportedNetworkError(
            f"{path}: opset {opset} is not read; export with opset 8 to {newest}"
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UsageError(f"{path}: not a valid ONNX file: {one_line(error)}") from error
    except ValueError as error:  # a file above 2 GiB cannot be checked in memory
        if model.ByteSize() < 2**31:
            raise UsageError(f"{path}: not a valid ONNX file: {one_line(error)}") from error


def _start(
    path: Path, graph: onnx.GraphProto, values: dict[str, Value | Array]
) -> tuple[Assembly, bool]:
    """An assembly with the network's input, and whether the file fixes the batch to 1."""
    inputs = [i for i in graph.input if i.name not in values]
    for kind, found in (("inputs", inputs), ("outputs", graph.output)):
        if len(found) != 1:
            names = ", ".join(value.name for value in found) or "none"
            raise UnsupportedNetworkError(
                f"{path}: the network must have one of its {kind}, it has {len(found)}: {names}"
            )
    declared = inputs[0].type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
    if len(dims) < 2 or dims[0] not in (None, 0, 1) or not all(dims[1:]):
        shown = ",".join("?" if d is None else str(d) for d in dims)
        raise UnsupportedNetworkError(
            f"{path}: input {inputs[0].name!r} is [{shown}]; its first axis must be a batch of 1 "
            "or an open one, and the others fixed"
        )
    if declared.elem_type not in _DTYPES:
        kind = TensorProto.DataType.Name(declared.elem_type)
        raise UnsupportedNetworkError(
            f"{path}: input {inputs[0].name!r} is {kind}; export the network in float32 or float64"
        )
    shape = [int(d) for d in dims[1:] if d is not None]
    assembly = Assembly(shape, _DTYPES[declared.elem_type], str(path))
    values[inputs[0].name] = assembly.input
    return assembly, dims[0] == 1


def _needed(path: Path, graph: onnx.GraphProto) -> list[tuple[str, onnx.NodeProto]]:
    """The nodes that the output depends on, in order, each with a name."""
    wanted = {graph.output[0].name}
    kept = []
    for index, node in reversed(list(enumerate(graph.node))):
        if wanted.isdisjoint(node.output):
            continue
        name = node.name or f"{node.op_type}_{index}"
        where = f"{path}: node {name!r} ({node.op_type})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in _READ:
            hint = _HINTS.get(node.op_type, "rebuild the network from supported operators")
            raise UnsupportedNetworkError(f"{where}: this operator is not supported; {hint}")
        if extra := wanted.intersection(node.output[1:]) - {""}:
            raise UnsupportedNetworkError(
                f"{where}: its further output {min(extra)!r} is used; only the first can be"
            )
        wanted.update(node.input)
        kept.append((name, node))
    return kept[::-1]


def _read(
    to: Assembly, node: onnx.NodeProto, values: Mapping[str, Value | Array], fixed: bool
) -> Value | Array:
    """The result of one node: computed here if it is constant, else added to the assembly."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if unknown := [name for name in node.input if name and name not in values]:
        raise to.refusal(f"it reads {unknown[0]!r}, which nothing computes")
    inputs = [values[name] if name else None for name in node.input]
    arrays = [value for value in inputs if value is not None and not isinstance(value, Value)]
    try:
        if node.op_type == "Constant":
            return constant_value(attributes)
        if node.op_type == "Shape":
            source = inputs[0]
            full = (BATCH, *source.shape) if isinstance(source, Value) else np.shape(arrays[0])
            return np.array(full)[attributes.get("start", 0) : attributes.get("end")]
        if len(arrays) == len(inputs):
            folded = fold(node.op_type, attributes, arrays)
            if folded is None:
                raise to.refusal("its inputs are constants; fold constants when exporting")
            return folded
    except ValueError as error:
        raise to.refusal(str(error)) from error
    if node.op_type not in OPERATORS:
        raise to.refusal("supported for constants and shapes only, not for computed values")
    call = Call(to, attributes, inputs, fixed)
    result = OPERATORS[node.op_type](call)
    if call.attributes:
        raise to.refusal(f"attribute {min(call.attributes)} is not supported")
    return result
