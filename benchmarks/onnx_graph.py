"""A network's own list of operations as ONNX, to be run by another program.

Every operation becomes the ONNX operator that is defined as the same sum of products of the
same stored weights: ``scale`` stays a product and a sum. :func:`open_session` says whether a
session keeps it so. Whoever rewrites the network first, for example by folding a factor into
the weights before it, runs another function; docs/soundness.md excludes that.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from attrs import define, field
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from advrepair.core.graph import INPUT, Network, Operation, integers

Array = NDArray[np.float32]
SUM = "sum"
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@define
class _Graph:
    """Nodes and stored arrays, in the making."""

    nodes: list[onnx.NodeProto] = field(factory=list)
    stored: list[onnx.TensorProto] = field(factory=list)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node with one result, which has the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def store(self, name: str, array: NDArray[np.generic]) -> str:
        """A constant of the graph."""
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def numbers(self, name: str, values: list[int]) -> str:
        """A constant list of integers."""
        return self.store(name, np.array(values, np.int64))

    def model(self, inputs: dict[str, list[int | str]], result: str, outputs: int) -> bytes:
        """The finished model; raises what the ONNX checker finds."""
        known = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ]
        last = helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", outputs])
        graph = helper.make_graph(self.nodes, "network", known, [last], self.stored)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made.SerializeToString()


def network_model(network: Network) -> bytes:
    """The network alone; its input is called ``input``."""
    graph = _Graph()
    last = _operations(graph, network)
    return graph.model({INPUT: ["N", *network.input_shape]}, last, network.outputs)


def repaired_model(base: Network, template: Network) -> bytes:
    """N + P with the weights of the patch as inputs, one patch a point.

    Inputs: ``input`` [N,*S], and those that :func:`patch_feed` gives.
    """
    graph = _Graph()
    logits, value = _operations(graph, base), INPUT
    inputs: dict[str, list[int | str]] = {INPUT: ["N", *base.input_shape]}
    for op in template.operations:
        name = f"patch/{op.name}"
        if op.kind == "reshape":
            value = graph.node(
                "Reshape", [value, graph.numbers(f"{name}/to", [-1, 1, *op.shape])], name
            )
        elif op.kind == "relu":
            value = graph.node("Relu", [value], name)
        elif op.kind == "linear":
            weight, bias = (f"patch/{op.tensors[role]}" for role in ("weight", "bias"))
            units, features = template.tensors[op.tensors["weight"]].shape
            inputs |= {weight: ["N", features, units], bias: ["N", 1, units]}
            product = graph.node("MatMul", [value, weight], f"{name}/product")
            value = graph.node("Add", [product, bias], name)
        else:
            raise ValueError(f"patch: node {op.name!r} ({op.kind}) has no rule")
    row = graph.node("Reshape", [value, graph.numbers("row", [-1, base.outputs])], "patch/row")
    return graph.model(inputs, graph.node("Add", [logits, row], SUM), base.outputs)


def patch_feed(template: Network, stack: Mapping[str, Tensor], patch: Tensor) -> dict[str, Array]:
    """The weights of some patches, as :func:`repaired_model` takes them. patch: [N]."""
    feed = {}
    for op in template.operations:
        if op.kind == "linear":
            weight, bias = op.tensors["weight"], op.tensors["bias"]
            feed[f"patch/{weight}"] = stack[weight][patch].transpose(1, 2).contiguous().numpy()
            feed[f"patch/{bias}"] = stack[bias][patch].unsqueeze(1).numpy()
    return feed


def open_session(model: bytes, level: str, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU. level: ``off``, ``basic`` or ``all``, as in LEVELS."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def within_assumptions(network: Network, level: str) -> bool:
    """Whether a session at that level runs the operations of the file.

    At ``off`` nothing is rewritten. Above it, onnxruntime folds the factors and shifts of a
    ``scale`` into a convolution or a matrix beside it: other weights, another function. What
    else it does to our operations, joining ReLU to the node before it, moving zeros into a
    convolution's own padding, another layout of images, keeps every product of the sums.
    """
    return level == "off" or all(op.kind != "scale" for op in network.operations)


def _operations(graph: _Graph, network: Network) -> str:
    """All operations of a network; returns the name of the last result."""
    for name, tensor in network.tensors.items():
        graph.store(f"stored/{name}", tensor.numpy())
    names, shapes = {INPUT: INPUT}, {INPUT: network.input_shape}
    for op in network.operations:
        sources = [names[name] for name in op.inputs]
        names[op.name] = _operation(graph, op, sources, shapes[op.inputs[0]])
        shapes[op.name] = op.shape
    return names[network.operations[-1].name]


def _operation(graph: _Graph, op: Operation, sources: list[str], shape: tuple[int, ...]) -> str:
    """One operation; shape: of its first input."""
    name, weights = (
        f"base/{op.name}",
        [f"stored/{op.tensors[role]}" for role in ("weight", "bias") if role in op.tensors],
    )
    if op.kind == "linear":
        return _linear(graph, op, sources[0], shape)
    if op.kind == "scale":
        value = sources[0]
        for role, kind in (("weight", "Mul"), ("bias", "Add")):
            if role in op.tensors:
                value = graph.node(kind, [value, f"stored/{op.tensors[role]}"], f"{name}/{role}")
        return value
    if op.kind == "conv2d":
        edge = integers(op, "padding")
        return graph.node(
            "Conv",
            [*sources, *weights],
            name,
            strides=integers(op, "stride"),
            pads=[*edge, *edge],
            dilations=integers(op, "dilation"),
            group=op.settings["groups"],
        )
    if op.kind == "avg_pool2d" and set(op.settings) <= {"kernel_size", "stride"}:
        window, stride = integers(op, "kernel_size"), integers(op, "stride")
        return graph.node("AveragePool", sources, name, kernel_shape=window, strides=stride)
    if op.kind == "pad":
        pairs = integers(op, "pad")
        ends = [[0] * (1 + len(shape)) for _ in range(2)]
        for i, width in enumerate(pairs):  # as in torch: the last axis first
            ends[i % 2][-1 - i // 2] = width
        return graph.node(
            "Pad", [*sources, graph.numbers(f"{name}/pads", [*ends[0], *ends[1]])], name
        )
    if op.kind == "permute":
        perm = [0, *(axis + 1 for axis in integers(op, "axes"))]
        return graph.node("Transpose", sources, name, perm=perm)
    if op.kind == "reshape":
        target = graph.numbers(f"{name}/shape", [-1, *op.shape])
        return graph.node("Reshape", [*sources, target], name)
    if op.kind in ("relu", "add"):
        return graph.node(op.kind.capitalize(), sources, name)
    raise ValueError(f"network: node {op.name!r} ({op.kind}) has no rule")


def _linear(graph: _Graph, op: Operation, source: str, shape: tuple[int, ...]) -> str:
    """A matrix on the last axis: Gemm knows two axes only, so the others join the batch."""
    name, flat = f"base/{op.name}", source
    if len(shape) > 1:
        rows = graph.numbers(f"{name}/rows", [-1, shape[-1]])
        flat = graph.node("Reshape", [source, rows], f"{name}/flat")
    weights = [f"stored/{op.tensors[role]}" for role in ("weight", "bias") if role in op.tensors]
    if len(shape) == 1:
        return graph.node("Gemm", [flat, *weights], name, transB=1)
    product = graph.node("Gemm", [flat, *weights], f"{name}/product", transB=1)
    target = graph.numbers(f"{name}/shape", [-1, *op.shape])
    return graph.node("Reshape", [product, target], name)
