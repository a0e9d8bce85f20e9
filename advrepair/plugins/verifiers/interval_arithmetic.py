"""Interval arithmetic forwards through every operation."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, NON_AFFINE, STEPS, Network, Operation
from advrepair.core.rounding import Rounding
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers import curves
from advrepair.plugins.verifiers.affine import without_bias
from advrepair.plugins.verifiers.curves import CURVES


def propagate(
    network: Network, params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor
) -> LinearBound:
    """Sound: each step maps the interval c ± r to f(c) ± |f|(r), up to rounding."""
    absolute = {name: tensor.abs() for name, tensor in params.items()}
    center, radius = {INPUT: box.center}, {INPUT: box.radius}
    last = network.operations[-1]
    for op in network.operations if last.kind != "linear" else network.operations[:-1]:
        step = STEPS[op.kind]
        centers, radii = [center[n] for n in op.inputs], [radius[n] for n in op.inputs]
        if op.kind in NON_AFFINE:
            low, high = image(op, centers[0] - radii[0], centers[0] + radii[0], None)
            center[op.name], radius[op.name] = (low + high) / 2, (high - low) / 2
        else:
            center[op.name] = step(op, params, centers)
            radius[op.name] = step(without_bias(op), absolute, radii)
    rows, b, source = C, d, last.name
    if last.kind == "linear":
        rows, source = C @ params[last.tensors["weight"]], last.inputs[0]
        b = d + C @ params[last.tensors["bias"]] if "bias" in last.tensors else d
    c, r = center[source].unsqueeze(-1), radius[source].unsqueeze(-1)
    lower = (rows @ c - rows.abs() @ r).squeeze(-1) + b
    # Constants only: a zero A without memory of its own.
    zero = box.lower.new_zeros(()).expand(*lower.shape, *box.lower.shape[1:])
    return LinearBound(zero, lower)


def image(
    op: Operation, low: Tensor, high: Tensor, rounding: Rounding | None
) -> tuple[Tensor, Tensor]:
    """Least and greatest result of a function that is not affine, [B,*shape] each.

    Sound: a ReLU and a max pool never fall where an input grows, and round nothing; for the
    others see :func:`advrepair.plugins.verifiers.curves.image`.
    """
    if op.kind in CURVES:
        return curves.image(op.kind, low, high, rounding)
    step = STEPS[op.kind]
    return step(op, {}, [low]), step(op, {}, [high])
