"""Interval bounds of fully connected ReLU networks."""

from collections.abc import Mapping
from typing import ClassVar

import attrs
from torch import Tensor
from torch.nn.functional import linear

from advrepair import (
    BoundFn,
    Box,
    LinearBound,
    Network,
    Operation,
    Rounding,
    UnsupportedNetworkError,
    Verifier,
    hookimpl,
    option,
)

KINDS = ("linear", "relu", "reshape")


@attrs.frozen
class Mine(Verifier):
    """Interval bounds of fully connected ReLU networks, in a few lines."""

    name: ClassVar[str] = "mine"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = False

    slack: float = option(0.0, "subtracted from every bound", at_least=0)

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        for op in network.operations:
            if op.kind not in KINDS:
                raise UnsupportedNetworkError(
                    f"network: node {op.name!r} ({op.kind}) has no rule in verifier 'mine'"
                )

        def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            ranges = {"input": (box.lower, box.upper)}
            for op in network.operations:
                ranges[op.name] = step(op, params, *ranges[op.inputs[0]])
            lower, upper = ranges[network.operations[-1].name]
            least = C.clamp(min=0) @ lower.unsqueeze(-1) + C.clamp(max=0) @ upper.unsqueeze(-1)
            b = least.squeeze(-1) + d - self.slack
            A = box.lower.new_zeros(*b.shape, *box.lower.shape[1:])
            return LinearBound(A, b)

        return bound


def step(
    op: Operation, params: Mapping[str, Tensor], lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds of an operation's result from bounds of its input."""
    if op.kind == "relu":
        return lower.clamp(min=0), upper.clamp(min=0)
    if op.kind == "reshape":
        return lower.reshape(len(lower), *op.shape), upper.reshape(len(upper), *op.shape)
    weight = params[op.tensors["weight"]]
    bias = params[op.tensors["bias"]] if "bias" in op.tensors else None
    center = linear((lower + upper) / 2, weight, bias)
    radius = linear((upper - lower) / 2, weight.abs())
    return center - radius, center + radius


@hookimpl
def advrepair_components() -> list[type[Verifier]]:
    return [Mine]
