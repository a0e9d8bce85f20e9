"""Flat values, and the windows of an image that rows over them can meet.

A flat image has its axes in the order height, width, channels, so that a strip of a line is in
one piece; everything else is flat in its own order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from advrepair.core.graph import NON_AFFINE, Operation, PoolWindow, integers, size

# Lines from the first to before the last, then columns: of an image; else all of it is one.
Window = tuple[int, int, int, int]
# A window comes from a window.
_LOCAL = frozenset({"conv2d", "scale", "add"}) | NON_AFFINE


def flat(value: Tensor, shape: Sequence[int]) -> Tensor:
    """[B,*shape] as [B,n], an image with its channels last."""
    return (value.permute(0, 2, 3, 1) if len(shape) == 3 else value).flatten(1)


def unflat(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of :func:`flat`."""
    if len(shape) != 3:
        return value.reshape(-1, *shape)
    channels, height, width = shape
    return value.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def whole(shape: Sequence[int]) -> Window:
    """All of a value."""
    return (0, shape[1], 0, shape[2]) if len(shape) == 3 else (0, 1, 0, 1)


def numbers(shape: Sequence[int], window: Window) -> int:
    """How many numbers of a value a window holds."""
    top, bottom, left, right = window
    return (bottom - top) * (right - left) * size(shape) // (whole(shape)[1] * whole(shape)[3])


def seen(value: Tensor, shape: Sequence[int], window: Window) -> Tensor:
    """The window of a flat value [...,n]: a view [...,lines,columns * channels]."""
    top, bottom, left, right = window
    lines, width = whole(shape)[1::2]
    each = size(shape) // (lines * width)
    split: Tensor = value.unflatten(-1, (lines, width * each))
    return split[..., top:bottom, left * each : right * each]


def cut(value: Tensor, shape: Sequence[int], window: Window) -> Tensor:
    """The window of a flat value [...,n], flat."""
    return value if window == whole(shape) else seen(value, shape, window).flatten(-2)


def grown(A: Tensor, shape: Sequence[int], have: Window, want: Window) -> Tensor:
    """Rows over a window as rows over one that contains it."""
    if have == want:
        return A
    lines = A.unflatten(-1, (have[1] - have[0], -1))
    return placed(lines, have, lines.shape[-1] // (have[3] - have[2]), want).flatten(-2)


def placed(images: Tensor, have: Window, channels: int, want: Window) -> Tensor:
    """Images [...,lines,columns * channels] over a window as those over another; 0 beyond."""
    top, bottom = max(have[0], want[0]), min(have[1], want[1])
    left, right = max(have[2], want[2]), min(have[3], want[3])
    if top >= bottom or left >= right:
        lines, columns = want[1] - want[0], want[3] - want[2]
        return images.new_zeros(*images.shape[:-2], lines, columns * channels)
    images = images[..., top - have[0] : bottom - have[0], :]
    images = images[..., (left - have[2]) * channels : (right - have[2]) * channels]
    beside = ((left - want[2]) * channels, (want[3] - right) * channels)
    around = (*beside, top - want[0], want[1] - bottom)
    return F.pad(images, around) if any(around) else images


def joint(windows: Sequence[Window]) -> Window:
    """The smallest window that contains all."""
    top, bottom, left, right = zip(*windows, strict=True)
    return min(top), max(bottom), min(left), max(right)


def windows_below(
    operations: Sequence[Operation],
    params: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    window: Window,
) -> dict[str, Window]:
    """The window of each value that rows over one of the last operation's result can meet."""
    met: dict[str, list[Window]] = {operations[-1].name: [window]}
    found = {}
    for op in reversed(operations):
        if op.name not in met:
            continue
        window = joint(met.pop(op.name))
        found[op.name] = window if op.kind in _LOCAL else whole(op.shape)
        for source in op.inputs:
            before = _before(op, params, shapes[source], found[op.name])
            met.setdefault(source, []).append(before)
    return found | {name: joint(windows) for name, windows in met.items()}


def _before(
    op: Operation, params: Mapping[str, Tensor], shape: Sequence[int], window: Window
) -> Window:
    """The window of an operation's input that one of its result depends on."""
    if op.kind == "conv2d":
        dilation, kernel = integers(op, "dilation"), params[op.tensors["weight"]].shape[2:]
        spans = [gap * (taps - 1) + 1 for gap, taps in zip(dilation, kernel, strict=True)]
        strides, padding = integers(op, "stride"), integers(op, "padding")
    elif op.kind == "max_pool2d":
        pool = PoolWindow.of(op)
        spans, strides, padding = [*pool.kernel], pool.stride, pool.padding
    else:
        return window if op.kind in _LOCAL else whole(shape)
    ends: list[int] = []
    for axis in (0, 1):
        first, stop = window[2 * axis : 2 * axis + 2]
        length, reach = shape[1 + axis], spans[axis]
        stride, before = strides[axis], padding[axis]
        low = min(max(first * stride - before, 0), length - 1)
        ends += [low, max(low + 1, min((stop - 1) * stride - before + reach, length))]
    return ends[0], ends[1], ends[2], ends[3]


def tiles(shape: Sequence[int], units: int) -> Iterator[Window]:
    """Windows that cover a value, of near so many units; no image is one window.

    Nearly square, as then the least lies around them.
    """
    _, lines, _, width = whole(shape)
    each = size(shape) // (lines * width)
    tall = min(lines, max(1, round((units / each) ** 0.5)))
    wide = min(width, max(1, units // (each * tall)))
    for top in range(0, lines, tall):
        for left in range(0, width, wide):
            yield top, min(top + tall, lines), left, min(left + wide, width)
