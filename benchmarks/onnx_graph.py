"""The deployed function as ONNX, to be run by another program.

The files are those of :mod:`advrepair.core.onnx_writer`, which says what they hold; the patch
is an input here. :func:`open_session` says whether a session keeps it so.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor

from advrepair.core.graph import INPUT, Network
from advrepair.core.onnx_writer import network_model, write_model, write_network
from advrepair.core.operators import Steps

__all__ = [
    "LEVELS", "network_model", "open_session", "patch_feed", "repaired_model", "within_assumptions"
]  # fmt: skip

Array = NDArray[np.float32]
SUM = "sum"
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def repaired_model(base: Network, template: Network) -> bytes:
    """N + P with the weights of the patch as inputs, one patch a point.

    Inputs: ``input`` [N,*S], and those that :func:`patch_feed` gives.
    """
    steps = Steps()
    logits, value = write_network(steps, base), INPUT
    inputs: dict[str, Sequence[int]] = {INPUT: base.input_shape}
    for op in template.operations:
        name = f"patch/{op.name}"
        if op.kind == "reshape":
            value = steps.call("Reshape", value, name=name, shape=(-1, 1, *op.shape))
        elif op.kind == "relu":
            value = steps.call("Relu", value, name=name)
        elif op.kind == "linear":
            weight, bias = (f"patch/{op.tensors[role]}" for role in ("weight", "bias"))
            units, features = template.tensors[op.tensors["weight"]].shape
            inputs |= {weight: [features, units], bias: [1, units]}
            product = steps.call("MatMul", value, weight, name=f"{name}/product")
            value = steps.call("Add", product, bias, name=name)
        else:
            raise ValueError(f"patch: node {op.name!r} ({op.kind}) has no rule")
    row = steps.call("Reshape", value, name="patch/row", shape=(-1, base.outputs))
    total = steps.call("Add", logits, row, name=SUM)
    return write_model(steps, inputs, {total: [base.outputs]}, base.dtype)


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
