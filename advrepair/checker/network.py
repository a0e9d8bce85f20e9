"""A network as steps on flat arrays: what each computes, and its transposed.

Values are numbered: 0 is the input, step i makes value i + 1. Rows and values are [N, S]
arrays of float64 with the shape of an image flattened; every number stored is exact in it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from advrepair.checker.files import Array, Malformed, Tensors, Unsupported, demand

_MOST = 2**20  # numbers of a value, terms of a sum: the account of rounding needs K u small
_SETTINGS: dict[str, set[str]] = {
    "conv2d": {"stride", "padding", "dilation", "groups"},
    "avg_pool2d": {"kernel_size", "stride"},
    "pad": {"pad"},
    "permute": {"axes"},
    **{kind: set() for kind in ("linear", "scale", "relu", "add", "reshape")},
}
Shape = tuple[int, ...]
# Shape of the result, terms of one result (0: an exact copy), terms of any sum here, the
# transposed one included; apply(x, absolute) with the weights or their absolutes; transposed.
Rule = tuple[Shape, int, int, Callable[[Array, bool], Array], Callable[[Array], Array]]


@dataclass(frozen=True)
class Step:
    """``value = apply(source) + bias``, or ``relu`` or ``add`` of its sources."""

    kind: str
    sources: Shape
    bias: Array | None
    terms: int
    apply: Callable[[Array, bool], Array]
    back: Callable[[Array], Array]

    @property
    def mixes(self) -> bool:
        """Whether a result depends on more than one number."""
        return self.kind in ("linear", "conv2d", "avg_pool2d", "add")


class Network:
    """Steps in order; raises Unsupported or Malformed for what cannot be followed."""

    def __init__(self, structure: dict[str, Any], tensors: Tensors) -> None:
        shapes, numbers = [_whole(structure["input_shape"])], {"input": 0}
        self.input_shape, self.longest = shapes[0], _size(shapes[0])
        self.steps: list[Step] = []
        for op in structure["operations"]:
            name, kind = op["name"], op["kind"]
            if kind not in _SETTINGS or set(op["settings"]) - _SETTINGS[kind]:
                raise Unsupported(f"node {name!r}: this checker has no rule for such a {kind!r}")
            try:
                sources = tuple(numbers[source] for source in op["inputs"])
                demand(len(sources) == 1 + (kind == "add") and name not in numbers, "names")
                t = {role: tensors[key].astype(float) for role, key in op["tensors"].items()}
                rule = _rule(op, t, [shapes[i] for i in sources])
                shape, terms, longest, apply, back = rule
                demand(shape == _whole(op["shape"]), f"its result has shape {shape}")
                bias = t.get("bias") if kind in ("linear", "conv2d", "scale") else None
                self.longest = max(self.longest, longest, _size(shape))
                if bias is not None:
                    bias = bias[:, None, None] if kind == "conv2d" else bias
                    bias = np.broadcast_to(bias, shape).ravel()
            except (LookupError, TypeError, ValueError) as error:
                raise Malformed(f"node {name!r} ({kind}): {error}") from None
            self.steps.append(Step(kind, sources, bias, terms, apply, back))
            numbers[name] = len(shapes)
            shapes.append(shape)
        demand(self.steps and len(shapes[-1]) == 1, "the last node gives no row of scores")
        self.sizes = [_size(shape) for shape in shapes]
        if self.longest > _MOST:
            raise Unsupported(f"network: sums of more than {_MOST} terms")


def _whole(value: Any) -> Shape:
    pair = [value, value] if isinstance(value, int) else value
    demand(all(type(n) is int and 0 <= n <= _MOST for n in pair), f"{value!r}: no sizes")
    return tuple(pair)


def _size(shape: Shape) -> int:
    demand(shape and 0 < math.prod(shape) <= _MOST, f"shape {shape}: no numbers, or too many")
    return math.prod(shape)


def _rule(op: dict[str, Any], t: Tensors, shapes: list[Shape]) -> Rule:
    kind, settings, shape, W = op["kind"], op["settings"], shapes[0], t.get("weight")
    demand(W is None or W.size, "an empty weight")
    if kind == "linear":
        return _linear(t["weight"], shape)
    if kind == "conv2d":
        places = [_whole(settings[key]) for key in ("stride", "padding", "dilation")]
        return _taps(t["weight"], settings["groups"], shape, *places)
    if kind == "avg_pool2d":
        kernel, stride = _whole(settings["kernel_size"]), _whole(settings["stride"])
        # 1/k is rounded once more than the stored weights of a convolution; g has room for it.
        means = np.full((shape[0], 1, *kernel), 1 / _size(kernel))
        return _taps(means, shape[0], shape, stride, (0, 0), (1, 1))
    if kind == "scale":
        scale = np.broadcast_to(1.0 if W is None else W, shape).ravel()
        pair = (scale, abs(scale))
        return shape, 2, 2, lambda x, absolute: x * pair[absolute], lambda rows: rows * scale
    if kind in ("pad", "permute"):
        return _moved(kind, settings, shape)
    demand(shape == shapes[-1], "two shapes")
    result = _whole(op["shape"]) if kind == "reshape" else shape
    demand(_size(result) == _size(shape), f"{shape} to {result}")
    return result, 2 * (kind == "add"), 2, lambda x, absolute: x, lambda rows: rows


def _linear(W: Array, shape: Shape) -> Rule:
    demand(W.ndim == 2 and shape[-1] == W.shape[1], f"weight {W.shape} on {shape}")
    pair = (W.T, abs(W.T))
    return (
        (*shape[:-1], len(W)),
        W.shape[1] + 1,
        max(W.shape) + 1,
        lambda x, absolute: (x.reshape(-1, W.shape[1]) @ pair[absolute]).reshape(len(x), -1),
        lambda rows: (rows.reshape(-1, len(W)) @ W).reshape(len(rows), -1),
    )


def _moved(kind: str, settings: dict[str, Any], shape: Shape) -> Rule:
    """Numbers copied to other places; index -1 is a zero."""
    index, widths = np.arange(_size(shape)).reshape(shape), [(0, 0)] * len(shape)
    if kind == "pad":
        pads = _whole(settings["pad"])
        for i in range(len(pads) // 2):  # as in torch: the last axis first
            widths[-1 - i] = (pads[2 * i], pads[2 * i + 1])
        _size(tuple(n + sum(width) for n, width in zip(shape, widths, strict=True)))
        index = np.pad(index, widths, constant_values=-1)
    else:
        index = index.transpose(_whole(settings["axes"]))
    # The places that numbers came from, in order; a zero that was added has none.
    places = np.argsort(index.ravel(), kind="stable")[index.size - math.prod(shape) :]
    flat = index.ravel()

    def apply(x: Array, absolute: bool) -> Array:
        return np.where(flat >= 0, x[:, flat], 0.0)

    return index.shape, 0, 1, apply, lambda rows: rows[:, places]


def _taps(W: Array, groups: int, shape: Shape, stride: Shape, padding: Shape, gap: Shape) -> Rule:
    """A convolution as a loop over the taps of its kernel, each a strided matrix product."""
    (inner, *image), (outer, each, *kernel), pair = shape, W.shape, (W, abs(W))
    demand(groups * each == inner and outer % groups == 0, f"weight {W.shape} on {shape}")
    demand(min(*stride, *gap) > 0 and len(stride) == len(padding) == len(gap) == 2, "settings")
    wide = [n + 2 * p for n, p in zip(image, padding, strict=True)]
    size = [(wide[a] - gap[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
    demand(min(size) > 0, f"kernel {kernel} on {wide}")
    _size((inner, *wide))
    inside: Any = (..., *(slice(p, p + n) for p, n in zip(padding, image, strict=True)))
    # For every tap, the inputs it meets and where it lies in the kernel.
    windows: list[Any] = [
        ((..., *(slice(at[i] * gap[i], at[i] * gap[i] + stride[i] * size[i], stride[i])
                 for i in (0, 1))), (..., *at)) for at in np.ndindex(*kernel)
    ]  # fmt: skip

    def apply(x: Array, absolute: bool) -> Array:
        padded = np.zeros((len(x), inner, *wide))
        padded[inside] = x.reshape(len(x), *shape)
        total = np.zeros((len(x), groups, outer // groups, math.prod(size)))
        for window, tap in windows:
            part = padded[window].reshape(len(x), groups, each, -1)
            total += pair[absolute][tap].reshape(groups, -1, each) @ part
        return total.reshape(len(x), -1)

    def back(rows: Array) -> Array:
        padded = np.zeros((len(rows), inner, *wide))
        parts = rows.reshape(len(rows), groups, outer // groups, -1)
        for window, tap in windows:
            part = W[tap].reshape(groups, -1, each).swapaxes(1, 2) @ parts
            padded[window] += part.reshape(len(rows), inner, *size)
        return np.asarray(padded[inside].reshape(len(rows), -1))

    terms = W[0].size + 1
    return (outer, *size), terms, max(terms, W[:, 0].size) + 1, apply, back
