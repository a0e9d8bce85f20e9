"""A network as steps on flat arrays: what each computes, and its transposed.

Values are numbered: 0 is the input, step i makes value i + 1. Rows and values are [N,S]
arrays of float64 with the shape of an image flattened; every number stored is exact in it.
"""

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from advrepair.checker.files import Array, Malformed, Tensors, Unsupported, demand
from advrepair.checker.lines import CURVES

_MOST = 2**20  # numbers of a value, and so terms of a sum: the account needs K u small
BENT = frozenset({"relu", "max_pool2d", *CURVES})  # not affine: they get lines around them
_COPIES = BENT | {"reshape", "pad", "permute"}  # nothing is rounded
_PLAIN = ("linear", "scale", "relu", "add", "reshape", *CURVES)
_SETTINGS = {kind: "" for kind in _PLAIN} | {
    "conv2d": "stride padding dilation groups", "avg_pool2d": "kernel_size stride", "pad": "pad",
    "max_pool2d": "kernel_size stride padding", "permute": "axes",
}  # fmt: skip
Shape = tuple[int, ...]


class Step:
    """``value = apply(sum of the sources) + bias``, or the positive part of it for a ReLU.

    weight: (S) a factor of each number, (O, T) a matrix, or (G or 1, O, T) with an index: O sums
    of T inputs each at every place. index (G, P, T): the inputs that meet there, -1 for a zero.
    """

    def __init__(self, op: dict[str, Any], t: Tensors, sources: Shape, before: Shape) -> None:
        self.kind, self.sources, self.size = str(op["kind"]), sources, _size(before)
        self.shape, self.weight, self.index = _rule(op, t, before)
        same = self.shape == _whole(op["shape"]) and _size(self.shape)
        demand(same, f"its result has shape {self.shape}")
        bias = t.get("bias", np.zeros(1))
        bias = bias[:, None, None] if self.kind == "conv2d" else bias
        self.bias = np.broadcast_to(bias, self.shape).ravel()
        inputs = self.weight.shape[-1] if self.weight.ndim > 1 else 1
        # Roundings of one number when deployed, k + 2 for k terms; none for an exact copy.
        self.terms = 0 if self.kind in _COPIES else inputs + 3
        if (
            self.index is not None
        ):  # inputs of each result; and the k-th place in index where an input stands, or -1: [K,S]
            self.taps = self.index.reshape(-1, inputs)
            order = np.argsort(self.index, None, "stable")[(self.index < 0).sum() :]
            used = self.index.ravel()[order]
            times = np.arange(len(used)) - np.searchsorted(used, used)
            self.uses = np.full((times.max(initial=0) + 1, self.size), -1)
            self.uses[times, used] = order
        self.before = inputs if self.kind == "avg_pool2d" else 1  # it is summed, then divided

    def apply(self, x: Array, absolute: bool = False) -> Array:
        """The linear part, or that with absolute weights, of values [N,S]."""
        W = abs(self.weight) if absolute else self.weight
        if self.index is None:
            return x * W if W.ndim == 1 else (x.reshape(-1, W.shape[1]) @ W.T).reshape(len(x), -1)
        groups, places, taps = self.index.shape
        met = _taken(x, self.index).swapaxes(0, 1).reshape(groups, -1, taps)
        sums = (met @ W.swapaxes(1, 2)).reshape(groups, len(x), places, -1)
        return sums.transpose(1, 0, 3, 2).reshape(len(x), -1)

    def back(self, rows: Array) -> Array:
        """Rows over the result as rows over the input: the transposed of apply."""
        W, N = self.weight, len(rows)
        if self.index is None:
            return rows * W if W.ndim == 1 else (rows.reshape(-1, len(W)) @ W).reshape(N, -1)
        groups, places, _ = self.index.shape
        sums = rows.reshape(N, groups, -1, places).transpose(1, 0, 3, 2)
        met = sums.reshape(groups, -1, W.shape[1]) @ W
        return self.spread(met.reshape(groups, N, -1).swapaxes(0, 1).reshape(N, -1))

    def spread(self, rows: Array) -> Array:
        """Rows over what index names, in its order, as rows over the input."""
        return np.asarray(sum(_taken(rows, use) for use in self.uses))


def _taken(x: Array, index: Array) -> Array:
    """Columns of x, and zeros for -1."""
    return np.where(index >= 0, x[:, index], 0.0)


class Network:
    """Steps in order; raises Unsupported or Malformed for what cannot be followed."""

    def __init__(self, structure: dict[str, Any], tensors: Tensors) -> None:
        shapes, numbers = [_whole(structure["input_shape"])], {"input": 0}
        self.steps: list[Step] = []
        for op in structure["operations"]:
            name, kind = op["name"], op["kind"]
            known = kind in _SETTINGS and set(op["settings"]) <= set(_SETTINGS[kind].split())
            demand(known, f"node {name!r}: no rule for such a {kind!r}", Unsupported)
            try:
                sources = tuple(numbers[source] for source in op["inputs"])
                demand(len(sources) == 1 + (kind == "add") and name not in numbers, "names")
                demand(len({shapes[i] for i in sources}) == 1, "two shapes")
                t = {role: tensors[key].astype(float) for role, key in op["tensors"].items()}
                demand(not t or kind in ("linear", "conv2d", "scale"), "tensors")
                self.steps.append(Step(op, t, sources, shapes[sources[0]]))
            except (LookupError, TypeError, ValueError) as error:
                raise Malformed(f"node {name!r} ({kind}): {error}") from None
            numbers[name] = len(shapes)
            shapes.append(self.steps[-1].shape)
        demand(self.steps and len(shapes[-1]) == 1, "the last node gives no row of scores")
        self.input_shape, self.sizes = shapes[0], [_size(shape) for shape in shapes]
        # Terms of any sum here: in a transposed one, an input meets each result at most once.
        self.longest = max(*self.sizes, *(step.terms for step in self.steps)) + 1
        self.widest = max(*self.sizes, *(getattr(step.index, "size", 0) for step in self.steps))
        self.units = sum(step.size for step in self.steps if step.kind == "relu")
        self.bent = any(step.kind in BENT - {"relu"} for step in self.steps)


def _whole(value: Any) -> Shape:
    """Whole numbers; a single one stands for both axes of an image."""
    pair = [value, value] if isinstance(value, int) else value
    demand(all(type(n) is int and n >= 0 for n in pair) and len(pair) < 32, "no sizes")
    demand(all(n <= _MOST for n in pair), f"network: a size of more than {_MOST}", Unsupported)
    return tuple(pair)


def _size(shape: Shape) -> int:
    demand(shape and min(shape) > 0, f"shape {shape}: no numbers")
    demand(math.prod(shape) <= _MOST, f"network: more than {_MOST} numbers in {shape}", Unsupported)
    return math.prod(shape)


def _rule(op: dict[str, Any], t: Tensors, shape: Shape) -> tuple[Shape, Array, Array | None]:
    """Shape of the result, weight and index of an operation on a value of a shape."""
    kind, W, result = op["kind"], t.get("weight", np.ones(1)), shape
    given = {name: _whole(value) for name, value in op["settings"].items()}
    numbers = np.arange(_size(shape)).reshape(shape)
    demand(W.size and (kind != "linear" or W.shape[1:] == shape[-1:]), f"weight {W.shape}")
    if kind == "linear":
        return (*shape[:-1], len(W)), W, None
    if kind in ("pad", "conv2d", "max_pool2d"):  # as in torch, the last axis comes first
        pads = given["pad"] if kind == "pad" else np.repeat(given.get("padding", (0, 0))[::-1], 2)
        around = np.zeros((len(shape), 2), int)
        around[::-1][: len(pads) // 2] = np.reshape(pads, (-1, 2))
        _size(tuple((np.array(shape) + around.sum(1)).tolist()))
        numbers = np.pad(numbers, around, constant_values=-1)
    if kind in ("pad", "permute"):
        numbers = numbers.transpose(given.get("axes", range(len(shape))))
        return numbers.shape, np.ones((1, 1, 1)), numbers.reshape(1, -1, 1)
    if kind in ("conv2d", "avg_pool2d", "max_pool2d"):
        kernel, groups = given.get("kernel_size", W.shape[2:]), given.get("groups", shape)[0]
        if kind != "conv2d":
            # 1/k is rounded once more than the weights of a convolution; g has room for it.
            W = np.full((groups, 1, _size(kernel)), 1 / _size(kernel))
        (down, right), (gap, wider) = given.get("stride", kernel), given.get("dilation", (1, 1))
        span = (gap * (kernel[0] - 1) + 1, wider * (kernel[1] - 1) + 1)
        met = sliding_window_view(numbers, span, (1, 2))[:, ::down, ::right, ::gap, ::wider]
        demand(groups * W.shape[1] == shape[0], f"weight {W.shape} on {shape}")
        demand(met.size <= 16 * _MOST, "network: a convolution too large", Unsupported)
        places = met.shape[1:3]
        met = met.reshape(groups, W.shape[1], math.prod(places), -1).swapaxes(1, 2)
        index = met.reshape(groups, math.prod(places), -1)
        return (len(W), *places), W.reshape(groups, -1, index.shape[2]), index
    if kind == "reshape":
        result = _whole(op["shape"])
        demand(_size(result) == _size(shape), f"{shape} to {result}")
    return result, np.broadcast_to(W, shape).ravel(), None
