"""Affine operations backwards on flat rows, as few large matrix products.

Rows over an image have its axes in the order height, width, channels, so that a strip of a line
is in one piece; everything else is flat in its own order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advrepair.core.graph import Operation, integers, size
from advrepair.plugins.verifiers.affine import PULL, without_bias

Pull = Callable[[Tensor], Tensor]
_STRIP = 128  # numbers of a strip of a convolution's result; the products of wider ones are mostly 0


def flat(value: Tensor, shape: Sequence[int]) -> Tensor:
    """[B,*shape] as [B,n], an image with its channels last."""
    return (value.permute(0, 2, 3, 1) if len(shape) == 3 else value).flatten(1)


def unflat(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of :func:`flat`."""
    if len(shape) != 3:
        return value.unflatten(1, tuple(shape))
    channels, height, width = shape
    return value.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)


def transposed(op: Operation, params: Mapping[str, Tensor], shape: Sequence[int]) -> Pull:
    """What takes rows [B,M,n] over an operation's result to rows over its input, of that shape."""
    if op.kind == "linear" and len(op.shape) == 1:
        weight = params[op.tensors["weight"]]
        return lambda A: A @ weight
    if op.kind == "scale":
        if "weight" not in op.tensors:
            return lambda A: A
        factor = flat(params[op.tensors["weight"]].expand(1, *op.shape), op.shape)
        return lambda A: A * factor
    if op.kind == "reshape" and len(shape) == len(op.shape) == 1:
        return lambda A: A
    if op.kind == "conv2d":
        return _convolution(op, params, shape)
    linear = without_bias(op)

    def rows(A: Tensor) -> Tensor:
        each = unflat(A.flatten(0, 1), op.shape).unsqueeze(0)
        pulled = PULL[op.kind](linear, params, each, shape)[0].squeeze(0)
        return flat(pulled, shape).unflatten(0, A.shape[:2])

    return rows


def _convolution(op: Operation, params: Mapping[str, Tensor], shape: Sequence[int]) -> Pull:
    """A convolution as one product a strip of a line of its result, then a sum of strips."""
    weight = params[op.tensors["weight"]]
    (down, right), (top, left) = integers(op, "stride"), integers(op, "padding")
    gap, kernel = integers(op, "dilation")[0], weight.shape[2]
    (channels, height, width), (inputs, lines, columns) = op.shape, shape
    strip = max(
        (w for w in range(1, width + 1) if width % w == 0 and w * channels <= _STRIP), default=1
    )
    matrix, reach = _matrix(op, weight, strip)

    def rows(A: Tensor) -> Tensor:
        met = A.reshape(-1, strip * channels) @ matrix
        met = met.view(-1, height, width // strip, kernel, reach * inputs)
        found = met.new_zeros(len(met), lines, columns * inputs)
        for k in range(kernel):
            # Result line h meets input line h * down + above.
            above = k * gap - top
            first, last = max(0, -(above // down)), min(height - 1, (lines - 1 - above) // down)
            if first > last:
                continue
            part = found[:, first * down + above : last * down + above + 1 : down]
            for at in range(width // strip):
                start = at * strip * right - left
                low, high = max(0, start), min(columns, start + reach)
                part[:, :, low * inputs : high * inputs] += met[
                    :, first : last + 1, at, k, (low - start) * inputs : (high - start) * inputs
                ]
        return found.view(*A.shape[:2], -1)

    return rows


def _matrix(op: Operation, weight: Tensor, strip: int) -> tuple[Tensor, int]:
    """A strip of a line of a convolution's result over what it meets, and how wide that is.

    [strip * channels, kernel * reach * inputs], both sides in the order of :func:`flat`.
    """
    channels = op.shape[0]
    unit = torch.eye(strip * channels, dtype=weight.dtype, device=weight.device)
    met = F.conv_transpose2d(
        unit.view(-1, 1, strip, channels).permute(0, 3, 1, 2),
        weight,
        stride=(1, integers(op, "stride")[1]),
        groups=integers(op, "groups")[0],
        dilation=(1, integers(op, "dilation")[1]),
    )
    return met.permute(0, 2, 3, 1).reshape(len(unit), -1), met.shape[3]
