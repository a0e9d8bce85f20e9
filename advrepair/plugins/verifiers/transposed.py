"""Affine operations backwards on flat rows, as few large matrix products.

Rows are flat as in :mod:`advrepair.plugins.verifiers.windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advrepair.core.graph import Operation, PoolWindow, integers, size
from advrepair.plugins.verifiers.affine import PULL, without_bias
from advrepair.plugins.verifiers.windows import (
    Window,
    cut,
    flat,
    grown,
    placed,
    unflat,
)

Pull = Callable[[Tensor, Window, Window], Tensor]
Pair = tuple[Tensor, Tensor]
_WIDE = 192  # numbers of a line from which on the library's own convolution is faster


def transposed(op: Operation, params: Mapping[str, Tensor], shape: Sequence[int]) -> Pull:
    """What takes rows [B,M,n] over an operation's result to rows over its input, of that shape.

    The rows are over a window; which one of either value is said with them.
    """
    if op.kind == "linear" and len(op.shape) == 1:
        weight = params[op.tensors["weight"]]
        return lambda A, have, want: A @ weight
    if op.kind == "scale":
        if "weight" not in op.tensors:
            return lambda A, have, want: grown(A, shape, have, want)
        factor = flat(params[op.tensors["weight"]].expand(1, *op.shape), op.shape)
        return lambda A, have, want: grown(A * cut(factor, shape, have), shape, have, want)
    if op.kind == "reshape" and len(shape) == len(op.shape) == 1:
        return lambda A, have, want: A
    if op.kind == "conv2d":
        weight = params[op.tensors["weight"]]
        if weight.dtype == torch.float32 and set(integers(op, "stride")) == {1}:
            return _library(op, weight, shape)
        small = 4 * size(shape) <= size(op.shape)
        if small and min(integers(op, "stride")) > 1 and set(integers(op, "dilation")) == {1}:
            return _skipping(op, weight, shape)
        return _convolution(op, weight, shape)
    linear = without_bias(op)

    def rows(A: Tensor, have: Window, want: Window) -> Tensor:
        each = unflat(A.flatten(0, 1), op.shape).unsqueeze(0)
        pulled = PULL[op.kind](linear, params, each, shape)[0].squeeze(0)
        return flat(pulled, shape).view(*A.shape[:2], -1)

    return rows


def _library(op: Operation, weight: Tensor, shape: Sequence[int]) -> Pull:
    """A convolution by the library's own, which is fast in float32 where no step is skipped."""
    (top, left), dilation = integers(op, "padding"), integers(op, "dilation")
    groups, inputs = integers(op, "groups")[0], shape[0]
    narrow = _convolution(op, weight, shape)

    def rows(A: Tensor, have: Window, want: Window) -> Tensor:
        lines, columns = have[1] - have[0], have[3] - have[2]
        if columns * min(inputs, op.shape[0]) < _WIDE:
            return narrow(A, have, want)
        images = A.reshape(-1, lines, columns, op.shape[0]).permute(0, 3, 1, 2)
        found = F.conv_transpose2d(images, weight, groups=groups, dilation=dilation)
        found = found.permute(0, 2, 3, 1).flatten(2)
        over = _reached(found, have[0] - top, have[2] - left, inputs)
        return placed(found, over, inputs, want).flatten(1).view(*A.shape[:2], -1)

    return rows


def spread(op: Operation, signed: Pair, lines: Pair, windows: Mapping[str, Window]) -> Tensor:
    """Rows over a max pool as rows over its input, [B,M,n] each over a window of the value.

    signed: positive and negative part of the rows, [M,n] where all boxes share them. lines:
    slopes below and above, [B,k,n].
    """
    (positive, negative), have = signed, windows[op.name]
    pool, channels = PoolWindow.of(op), op.shape[0]
    (down, right), kernel = pool.stride, pool.kernel
    lines_, columns = have[1] - have[0], have[3] - have[2]
    tall, wide = (lines_ - 1) * down + kernel[0], (columns - 1) * right + kernel[1]
    found = positive.new_zeros(len(lines[0]), positive.shape[-2], tall, wide, channels)
    for at, (low, high) in enumerate(zip(*(each.split(1, 1) for each in lines), strict=True)):
        i, j = divmod(at, kernel[1])
        met = found[:, :, i : i + tall - kernel[0] + 1 : down, j : j + wide - kernel[1] + 1 : right]
        part = (positive * low).addcmul_(negative, high)
        met += part.unflatten(2, (lines_, columns, channels))
    top, left = have[0] * down - pool.padding[0], have[2] * right - pool.padding[1]
    over = (top, top + tall, left, left + wide)
    return placed(found.flatten(3), over, channels, windows[op.inputs[0]]).flatten(2)


def _reached(images: Tensor, top: int, left: int, channels: int) -> Window:
    """The window that images [N,lines,columns * channels] from one corner on are over."""
    return top, top + images.shape[1], left, left + images.shape[2] // channels


def _convolution(op: Operation, weight: Tensor, shape: Sequence[int]) -> Pull:
    """A convolution as products of strips of lines, each added in place where it belongs.

    Between the images are lines of zeros, so that all lines of all images lie at one distance
    and one product takes them; what it adds beyond an image is zero.
    """
    (down, right), (top, left) = integers(op, "stride"), integers(op, "padding")
    gap, kernel = integers(op, "dilation")[0], weight.shape[2]
    channels, inputs = op.shape[0], shape[0]
    tall = gap * (kernel - 1) + 1
    apart = max(0, -((down - tall) // down))
    strips: dict[int, tuple[int, Tensor]] = {}

    def rows(A: Tensor, have: Window, want: Window) -> Tensor:
        height, width, count = have[1] - have[0], have[3] - have[2], A.shape[0] * A.shape[1]
        if width not in strips:
            strip = _strip(op, weight, inputs, width)
            strips[width] = strip, _matrix(op, weight, strip).view(strip * channels, kernel, -1)
        (strip, matrix), below = strips[width], (want[3] - want[2]) * inputs
        lines = A.reshape(count, height, width * channels)
        if apart:
            lines = F.pad(lines, (0, 0, 0, apart))
        total, each = count * (height + apart), down * (height + apart)
        lines = lines.reshape(total, -1)
        found = A.new_zeros(count * each + tall, below)
        for at in range(0, width, strip):
            part = lines[:, at * channels : (at + strip) * channels]
            first = ((have[2] + at) * right - left - want[2]) * inputs
            reach = matrix.shape[2] - max(0, at + strip - width) * right * inputs
            low, high = max(0, first), min(below, first + reach)
            if low >= high:  # it meets padding only
                continue
            met = matrix[: part.shape[1], :, low - first : high - first]
            for k in range(kernel):
                place = found.as_strided(
                    (total, high - low), (down * below, 1), k * gap * below + low
                )
                place.addmm_(part, met[:, k])
        images = found[: count * each].view(count, each, below)
        over = (have[0] * down - top, have[0] * down - top + each, *want[2:])
        return placed(images, over, inputs, want).flatten(1).view(*A.shape[:2], -1)

    return rows


def _skipping(op: Operation, weight: Tensor, shape: Sequence[int]) -> Pull:
    """A convolution that skips steps, as products of strips of lines for what they all reach.

    All that reaches a strip of what is below, in one line, is in one product: only lines are
    added to each other, and only what is below is copied, so it should be small.
    """
    (down, right), (top, left) = integers(op, "stride"), integers(op, "padding")
    kernel, (channels, _, width), inputs = weight.shape[2:], op.shape, shape[0]
    tall, wide = -(-kernel[0] // down), -(-kernel[1] // right)
    steps = width + wide - 1  # of columns that anything is in

    def work(strip: int) -> int:
        numbers = tall * down * strip * right * inputs
        terms = (strip + wide - 1) * channels
        return -(-steps // strip) * ((terms + 24) * (-(-numbers // 16) * 16 + 16) + 500)

    strip = min(range(1, steps + 1), key=work)
    strips, reach = -(-steps // strip), strip + wide - 1
    matrix = _matrix(op, weight, reach).view(reach * channels, kernel[0], -1, inputs)
    matrix = F.pad(matrix, (0, 0, 0, wide * right, 0, tall * down - kernel[0]))
    matrix = matrix[:, :, (wide - 1) * right : (wide - 1 + strip) * right]
    matrix = matrix.reshape(reach * channels, -1).contiguous()

    def rows(A: Tensor, have: Window, want: Window) -> Tensor:
        A = grown(A, op.shape, have, (*have[:2], 0, width))
        height, count = have[1] - have[0], A.shape[0] * A.shape[1]
        lines = A.reshape(count * height, width * channels)
        met = A.new_empty(strips, count * height, matrix.shape[1])
        for at in range(strips):
            start = at * strip - wide + 1
            low, high = max(0, start), min(width, start + reach)
            part = lines[:, low * channels : high * channels]
            torch.mm(
                part, matrix[(low - start) * channels : (high - start) * channels], out=met[at]
            )
        # [count, height, tall, down, strips, strip * right * inputs]
        split = met.view(strips, count, height, tall, down, -1).permute(1, 2, 3, 4, 0, 5)
        found = A.new_empty(count, height + tall - 1, down, strips, split.shape[5])
        found[:, :height] = split[:, :, 0]
        found[:, height:] = 0
        for k in range(1, tall):
            found[:, k : k + height] += split[:, :, k]
        images = found.view(count, (height + tall - 1) * down, -1, inputs)
        images = images.flatten(2)
        over = _reached(images, have[0] * down - top, -left, inputs)
        return placed(images, over, inputs, want).flatten(1).view(*A.shape[:2], -1)

    return rows


def _strip(op: Operation, weight: Tensor, inputs: int, width: int) -> int:
    """How many columns of so many go into one product, by a model of the work; any will do.

    In nanoseconds a line: products at 75 a nanosecond, of which short sums reach a part, pieces
    of a sum at 15 each and its numbers at half of one each, as measured on one core.
    """
    channels = op.shape[0]
    stride, dilation = integers(op, "stride")[1], integers(op, "dilation")[1]

    def work(strip: int) -> float:
        reach = (strip - 1) * stride + dilation * (weight.shape[3] - 1) + 1
        terms, pieces = strip * channels, width / strip * weight.shape[2]
        found = pieces * reach * inputs
        return 2 * found * (terms + 24) / 75 + 15 * pieces + found / 2

    # Of one size, nearly: a last strip that is shorter has less to do.
    return min({-(-width // parts) for parts in range(1, width + 1)}, key=work)


def _matrix(op: Operation, weight: Tensor, strip: int) -> Tensor:
    """A strip of a line of a convolution's result over what it meets.

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
    return met.permute(0, 2, 3, 1).reshape(len(unit), -1)
