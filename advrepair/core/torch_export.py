"""A repaired network as a module without branches on values: for TorchScript and torch.export.

The base network and the operators of :mod:`advrepair.core.routing_steps`, which the ONNX file
holds too, run by torch. So it decides as the ONNX file does.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advrepair.core.errors import UsageError
from advrepair.core.graph import INPUT, STEPS, Network, Operation
from advrepair.core.operators import Step, Steps
from advrepair.core.patching import RepairedNetwork
from advrepair.core.routing_steps import LOGITS, SEEN, write_deployed


def _largest(x: Tensor, k: int, axis: int) -> Tensor:
    """Where the k largest are; of equal ones the first, which torch.topk leaves open."""
    return x.sort(dim=axis, descending=True, stable=True)[1].narrow(axis, 0, k)


# Every operator that a written routing may use; docs/export.md lists them.
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "ArgMax": lambda x, axis, keepdims: x.argmax(axis, keepdim=bool(keepdims)),
    "Cast": lambda x, to: x.to(to),
    "Concat": lambda *x, axis: torch.cat(x, axis),
    "Div": torch.div,
    "Equal": torch.eq,
    "Exp": torch.exp,
    "Flatten": lambda x, axis: x.flatten(axis),
    "Gather": lambda x, index, axis: x.index_select(axis, index),
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "ReduceMax": lambda x, axes, keepdims: x.amax(axes, keepdim=bool(keepdims)),
    "ReduceMin": lambda x, axes, keepdims: x.amin(axes, keepdim=bool(keepdims)),
    "ReduceSum": lambda x, axes, keepdims: x.sum(axes, keepdim=bool(keepdims)),
    "Relu": F.relu,
    "Reshape": lambda x, shape: x.reshape(shape),
    "ScatterElements": lambda x, index, source, axis: x.scatter(axis, index, source),
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "TopK": _largest,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": lambda x, axes: x.unsqueeze(axes[0]),
    "Where": torch.where,
}


class ExportableNetwork(nn.Module):
    """``RepairedNetwork.forward`` for any batch in one list of steps; outputs [N,K].

    Raises UsageError for an allocator that has no method ``write`` or uses an operator that
    is not in :data:`OPERATORS`.
    """

    def __init__(self, repaired: RepairedNetwork) -> None:
        super().__init__()
        self.front, self.tail = repaired.front, repaired.tail
        self.input_shape = repaired.base.input_shape
        routing = Steps()
        self._output = write_deployed(routing, repaired, INPUT, SEEN, LOGITS)
        self._steps: tuple[Step, ...] = tuple(routing.steps)
        self._constants = {name: f"constant_{i}" for i, name in enumerate(routing.constants)}
        for name, attribute in self._constants.items():
            self.register_buffer(attribute, routing.constants[name].clone())
        for step in self._steps:
            if step.operator not in OPERATORS:
                name = repaired.allocator.name
                raise UsageError(
                    f"allocator {name!r} uses the operator {step.operator}, which only ONNX has: "
                    "export to ONNX alone, or ask its author"
                )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N,K] of inputs [N,*S]; N > 0."""
        values = {name: self.get_buffer(attribute) for name, attribute in self._constants.items()}
        seen = x if self.front is None else _run(self.front, x)
        values |= {INPUT: x, SEEN: seen, LOGITS: _run(self.tail, seen)}
        for step in self._steps:
            inputs = [values[name] for name in step.inputs]
            values[step.output] = OPERATORS[step.operator](*inputs, **step.attributes)
        return values[self._output]


def torchscript(module: ExportableNetwork) -> bytes:
    """A TorchScript file, by tracing. torch has deprecated the format."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced: Any = torch.jit.trace(module, _example(module), check_trace=False)
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


def load_torchscript(file: bytes) -> nn.Module:
    """The module of a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: nn.Module = torch.jit.load(io.BytesIO(file))
    return module


def exported_program(module: ExportableNetwork) -> bytes:
    """What ``torch.export.load`` reads, the batch open."""
    buffer, batch = io.BytesIO(), torch.export.Dim("N", min=1)
    program = torch.export.export(module, (_example(module),), dynamic_shapes=({0: batch},))
    torch.export.save(program, buffer)
    return buffer.getvalue()


def load_exported_program(file: bytes) -> nn.Module:
    """The module in such a file."""
    return torch.export.load(io.BytesIO(file)).module()


def _example(module: ExportableNetwork) -> Tensor:
    """Two inputs: a batch of one would be taken for a fixed one."""
    return torch.zeros(2, *module.input_shape, dtype=module.tail.dtype)


def _run(network: Network, x: Tensor) -> Tensor:
    """``network(x)`` with no size of the batch in it."""
    tensors, values = network.tensors, {INPUT: x}
    for op in network.operations:
        inputs = [values[name] for name in op.inputs]
        values[op.name] = (
            _reshape(op, inputs[0]) if op.kind == "reshape" else STEPS[op.kind](op, tensors, inputs)
        )
    return values[network.operations[-1].name]


def _reshape(op: Operation, x: Tensor) -> Tensor:
    return x.reshape(-1, *op.shape)
