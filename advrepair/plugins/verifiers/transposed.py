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

Band = tuple[int, int]  # lines of an image, from the first to before the last
Pull = Callable[[Tensor, Band, Band], Tensor]
_LOCAL = frozenset({"conv2d", "scale", "add", "relu"})  # a band of lines comes from a band


def flat(value: Tensor, shape: Sequence[int]) -> Tensor:
    """[B,*shape] as [B,n], an image with its channels last."""
    return (value.permute(0, 2, 3, 1) if len(shape) == 3 else value).flatten(1)


def unflat(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of :func:`flat`."""
    if len(shape) != 3:
        return value.reshape(-1, *shape)
    channels, height, width = shape
    return value.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def lines_of(shape: Sequence[int]) -> int:
    """Lines of a value; one that is no image is all in one."""
    return shape[1] if len(shape) == 3 else 1


def cut(value: Tensor, shape: Sequence[int], band: Band) -> Tensor:
    """The band of a flat value [...,n]."""
    each = size(shape) // lines_of(shape)
    return value[..., band[0] * each : band[1] * each]


def grown(A: Tensor, shape: Sequence[int], have: Band, want: Band) -> Tensor:
    """Rows over a band as rows over one that contains it."""
    if have == want:
        return A
    each = size(shape) // lines_of(shape)
    return F.pad(A, ((have[0] - want[0]) * each, (want[1] - have[1]) * each))


def joint(bands: Sequence[Band]) -> Band:
    """The smallest band that contains all."""
    return min(low for low, _ in bands), max(high for _, high in bands)


def bands_below(
    operations: Sequence[Operation],
    params: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    band: Band,
) -> dict[str, Band]:
    """Lines of each value that rows over a band of the last operation's result can meet."""
    met: dict[str, list[Band]] = {operations[-1].name: [band]}
    found = {}
    for op in reversed(operations):
        if op.name not in met:
            continue
        band, whole = joint(met.pop(op.name)), (0, lines_of(op.shape))
        found[op.name] = band if op.kind in _LOCAL else whole
        for source in op.inputs:
            before = _before(op, params, shapes[source], found[op.name])
            met.setdefault(source, []).append(before)
    return found | {name: joint(bands) for name, bands in met.items()}


def _before(op: Operation, params: Mapping[str, Tensor], shape: Sequence[int], band: Band) -> Band:
    """Lines of an operation's input that a band of its result depends on."""
    lines = lines_of(shape)
    if op.kind != "conv2d":
        return band if op.kind in _LOCAL else (0, lines)
    kernel = params[op.tensors["weight"]].shape[2]
    stride, top = integers(op, "stride")[0], integers(op, "padding")[0]
    reach = integers(op, "dilation")[0] * (kernel - 1) + 1
    low = min(max(band[0] * stride - top, 0), lines - 1)
    return low, max(low + 1, min((band[1] - 1) * stride - top + reach, lines))


def transposed(op: Operation, params: Mapping[str, Tensor], shape: Sequence[int]) -> Pull:
    """What takes rows [B,M,n] over an operation's result to rows over its input, of that shape.

    The rows are over a band of lines; which one of either value is said with them.
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

    def rows(A: Tensor, have: Band, want: Band) -> Tensor:
        each = unflat(A.flatten(0, 1), op.shape).unsqueeze(0)
        pulled = PULL[op.kind](linear, params, each, shape)[0].squeeze(0)
        return flat(pulled, shape).view(*A.shape[:2], -1)

    return rows


def _library(op: Operation, weight: Tensor, shape: Sequence[int]) -> Pull:
    """A convolution by the library's own, which is fast in float32 where no step is skipped."""
    (top, left), dilation = integers(op, "padding"), integers(op, "dilation")
    groups = integers(op, "groups")[0]
    channels, _, width = op.shape

    def rows(A: Tensor, have: Band, want: Band) -> Tensor:
        images = A.reshape(-1, have[1] - have[0], width, channels).permute(0, 3, 1, 2)
        found = F.conv_transpose2d(
            images, weight, padding=(0, left), groups=groups, dilation=dilation
        ).permute(0, 2, 3, 1)
        return _lines(found.flatten(2), have[0] - top, want).view(*A.shape[:2], -1)

    return rows


def _lines(images: Tensor, first: int, want: Band) -> Tensor:
    """A band of images [N,lines,numbers] of which the first line is that one; 0 beyond them."""
    start, stop, count = want[0] - first, want[1] - first, images.shape[1]
    images = images[:, min(max(0, start), count) : min(max(0, stop), count)]
    before = min(max(0, -start), stop - start)
    after = stop - start - before - images.shape[1]
    return (F.pad(images, (0, 0, before, after)) if before or after else images).flatten(1)


def _convolution(op: Operation, weight: Tensor, shape: Sequence[int]) -> Pull:
    """A convolution as products of strips of lines, each added in place where it belongs.

    Between the images are lines of zeros, so that all lines of all images lie at one distance
    and one product takes them; what it adds beyond an image is zero.
    """
    (down, right), (top, left) = integers(op, "stride"), integers(op, "padding")
    gap, kernel = integers(op, "dilation")[0], weight.shape[2]
    (channels, _, width), (inputs, _, columns) = op.shape, shape
    strip = _strip(op, weight, inputs)
    matrix, reach = _matrix(op, weight, strip)
    matrix = matrix.view(len(matrix), kernel, -1)
    tall, below = gap * (kernel - 1) + 1, columns * inputs
    apart = max(0, -((down - tall) // down))

    def rows(A: Tensor, have: Band, want: Band) -> Tensor:
        height, count = have[1] - have[0], A.shape[0] * A.shape[1]
        lines = A.reshape(count, height, width * channels)
        if apart:
            lines = F.pad(lines, (0, 0, 0, apart))
        total, each = count * (height + apart), down * (height + apart)
        lines = lines.reshape(total, -1)
        found = A.new_zeros(count * each + tall, below)
        for at in range(width // strip):
            start = at * strip * right - left
            low, high = max(0, start) * inputs, min(columns, start + reach) * inputs
            if low >= high:  # it meets padding only
                continue
            part = lines[:, at * strip * channels : (at + 1) * strip * channels]
            for k in range(kernel):
                place = found.as_strided(
                    (total, high - low), (down * below, 1), k * gap * below + low
                )
                place.addmm_(part, matrix[:, k, low - start * inputs : high - start * inputs])
        images = found[: count * each].view(count, each, below)
        return _lines(images, have[0] * down - top, want).view(*A.shape[:2], -1)

    return rows


def _skipping(op: Operation, weight: Tensor, shape: Sequence[int]) -> Pull:
    """A convolution that skips steps, as products of strips of lines for what they all reach.

    All that reaches a strip of what is below, in one line, is in one product: only lines are
    added to each other, and only what is below is copied, so it should be small.
    """
    (down, right), (top, left) = integers(op, "stride"), integers(op, "padding")
    kernel, (channels, _, width), (inputs, _, columns) = weight.shape[2:], op.shape, shape
    tall, wide = -(-kernel[0] // down), -(-kernel[1] // right)
    steps = width + wide - 1  # of columns that anything is in

    def work(strip: int) -> int:
        numbers = tall * down * strip * right * inputs
        terms = (strip + wide - 1) * channels
        return -(-steps // strip) * ((terms + 24) * (-(-numbers // 16) * 16 + 16) + 500)

    strip = min(range(1, steps + 1), key=work)
    strips, reach = -(-steps // strip), strip + wide - 1
    matrix = _matrix(op, weight, reach)[0].view(reach * channels, kernel[0], -1, inputs)
    matrix = F.pad(matrix, (0, 0, 0, wide * right, 0, tall * down - kernel[0]))
    matrix = matrix[:, :, (wide - 1) * right : (wide - 1 + strip) * right]
    matrix = matrix.reshape(reach * channels, -1).contiguous()

    def rows(A: Tensor, have: Band, want: Band) -> Tensor:
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
        images = images[:, :, left : left + columns]
        if images.shape[2] < columns:
            images = F.pad(images, (0, 0, 0, columns - images.shape[2]))
        return _lines(images.flatten(2), have[0] * down - top, want).view(*A.shape[:2], -1)

    return rows


def _strip(op: Operation, weight: Tensor, inputs: int) -> int:
    """Width of the strips with the least work by a model; any divisor of the width will do.

    In nanoseconds a line: products at 75 a nanosecond, of which short sums reach a part, pieces
    of a sum at 15 each and its numbers at half of one each, as measured on one core.
    """
    channels, _, width = op.shape
    stride, dilation = integers(op, "stride")[1], integers(op, "dilation")[1]

    def work(strip: int) -> float:
        reach = (strip - 1) * stride + dilation * (weight.shape[3] - 1) + 1
        terms, pieces = strip * channels, width // strip * weight.shape[2]
        numbers = pieces * reach * inputs
        return 2 * numbers * (terms + 24) / 75 + 15 * pieces + numbers / 2

    return min((s for s in range(1, width + 1) if width % s == 0), key=work)


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
