"""Layers as operations: the cases that need care, written once for every importer.

Each function adds operations to an assembly, returns the result and raises
UnsupportedNetworkError, naming the node. Constants are folded in float64 and then rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advrepair.core.assembly import Assembly, Value
from advrepair.core.erf_products import gelu_of
from advrepair.core.graph import Operation, Setting, size

Pads = tuple[int, int, int, int]  # top, left, bottom, right
Pair = tuple[int, int]


def linear(to: Assembly, value: Value, weight: Any, bias: Any = None) -> Value:
    """``value @ weight.T + bias``. weight: [out,in]. bias: [out] or None."""
    matrix = to.tensor(weight)
    if matrix.dim() != 2 or not value.shape or value.shape[-1] != matrix.shape[1]:
        sizes = f"weight {tuple(matrix.shape)}, input {value.shape}"
        raise to.refusal(f"a matrix [out,in] must fit the last axis of its input: {sizes}")
    if size(value.shape) != matrix.shape[1]:
        raise to.refusal(f"it maps each row of an input {value.shape}; flatten the input first")
    tensors = {"weight": matrix}
    if bias is not None:
        row = to.tensor(bias)
        if row.dim() > 1 or row.numel() not in (1, matrix.shape[0]):
            raise to.refusal(f"its bias {tuple(row.shape)} does not fit {matrix.shape[0]} outputs")
        tensors["bias"] = row.expand(matrix.shape[0])
    flat = to.reshape_to(value, value.shape[-1:])
    result = to.emit("linear", [flat], tensors)
    return to.reshape_to(result, value.shape[:-1] + result.shape)


def scale(to: Assembly, value: Value, weight: Any = None, bias: Any = None) -> Value:
    """``value * weight + bias`` with constants that broadcast to value."""
    factor = None if weight is None else _fitted(to, value, weight)
    shift = None if bias is None else _fitted(to, value, bias)
    if factor is not None and bool((factor == 1).all()):
        factor = None
    if shift is not None and bool((shift == 0).all()):
        shift = None
    if factor is None and shift is None:
        return value
    op = to.producer(value)
    if shift is None and factor is not None and op is not None and _undoes(to, factor, op):
        return to.value(op.inputs[0])
    if factor is None and op is not None and op.kind == "linear" and "bias" not in op.tensors:
        return linear(to, to.value(op.inputs[0]), to.weights[op.tensors["weight"]], shift)
    tensors = {"weight": factor, "bias": shift}
    return to.emit("scale", [value], {k: v for k, v in tensors.items() if v is not None})


def add(to: Assembly, left: Any, right: Any) -> Value:
    """Sum of two results, or of a result and a constant."""
    if not isinstance(left, Value):
        left, right = right, left
    if not isinstance(right, Value):
        return scale(to, left, bias=right)
    if left.shape != right.shape:
        raise to.refusal(f"it adds {left.shape} and {right.shape}; make the shapes equal")
    return to.emit("add", [left, right])


def subtract(to: Assembly, left: Any, right: Any) -> Value:
    """Difference of two results, or of a result and a constant."""
    if not isinstance(right, Value):
        return scale(to, left, bias=-to.tensor(right))
    if not isinstance(left, Value):
        return scale(to, right, weight=-1.0, bias=left)
    return add(to, left, scale(to, right, weight=-1.0))


def multiply(to: Assembly, left: Any, right: Any) -> Value:
    """Product of a result and a constant; or of two results that are a GELU."""
    if not isinstance(left, Value):
        left, right = right, left
    if not isinstance(right, Value):
        return scale(to, left, weight=right)
    found = gelu_of(to, left, right) or gelu_of(to, right, left)
    if found is None:
        raise to.refusal(
            "it multiplies two computed values; only constant factors are possible, and "
            "x * (1 + erf(x / sqrt(2))), a GELU, but not its approximation by tanh"
        )
    x, factor = found
    return scale(to, gelu(to, x), weight=factor)


def divide(to: Assembly, left: Any, right: Any) -> Value:
    """A result divided by a constant."""
    if isinstance(right, Value):
        raise to.refusal("it divides by a computed value; only constant divisors are possible")
    return scale(to, left, weight=(1.0 / to.tensor(right).double()).to(to.dtype))


def batch_norm(
    to: Assembly, value: Value, mean: Any, variance: Any, weight: Any, bias: Any, epsilon: float
) -> Value:
    """Batch normalisation at inference. mean, variance, weight, bias: [C]; weight may be None."""
    middle, spread = to.tensor(mean).double(), to.tensor(variance).double()
    factor = 1.0 / torch.sqrt(spread + epsilon)
    if weight is not None:
        factor = factor * to.tensor(weight).double()
    shift = -middle * factor
    if bias is not None:
        shift = shift + to.tensor(bias).double()
    per_channel = (-1,) + (1,) * (len(value.shape) - 1)
    return scale(
        to,
        value,
        factor.to(to.dtype).reshape(per_channel),
        shift.to(to.dtype).reshape(per_channel),
    )


def conv2d(
    to: Assembly,
    value: Value,
    weight: Any,
    bias: Any,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Value:
    """Convolution with zero padding. weight: [out,in/groups,h,w]. bias: [out] or None."""
    _image(to, value)
    tensors = {"weight": to.tensor(weight)}
    if tensors["weight"].dim() != 4:
        raise to.refusal(f"only 2-D convolutions; its weight is {tuple(tensors['weight'].shape)}")
    if bias is not None:
        tensors["bias"] = to.tensor(bias)
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        value, (top, left) = pad(to, value, pads), (0, 0)
    settings: dict[str, Setting] = {
        "stride": stride,
        "padding": (top, left),
        "dilation": dilation,
        "groups": groups,
    }
    return to.emit("conv2d", [value], tensors, settings)


def pad(to: Assembly, value: Value, pads: Pads) -> Value:
    """Surround [C,H,W] with zeros."""
    top, left, bottom, right = pads
    if min(pads) < 0:
        raise to.refusal("it crops (negative padding); export the network without it")
    if not any(pads):
        return value
    return to.emit("pad", [value], settings={"pad": (left, right, top, bottom)})


def max_pool2d(
    to: Assembly, value: Value, kernel: Pair, stride: Pair, pads: Pads, ceil: bool = False
) -> Value:
    """Maximum over windows; what lies in the padding never wins."""
    _image(to, value)
    _no_ceiling(to, value, kernel, stride, pads, ceil)
    if pads[:2] != pads[2:]:
        raise to.refusal("its padding differs between two sides; pad with an operation of its own")
    settings = {"kernel_size": kernel, "stride": stride, "padding": pads[:2]}
    return to.emit("max_pool2d", [value], settings=settings)


def avg_pool2d(
    to: Assembly,
    value: Value,
    kernel: Pair,
    stride: Pair,
    pads: Pads = (0, 0, 0, 0),
    ceil: bool = False,
    count_padding: bool = True,
) -> Value:
    """Mean over windows. count_padding: zeros of the padding count as values."""
    _image(to, value)
    _no_ceiling(to, value, kernel, stride, pads, ceil)
    settings = {"kernel_size": kernel, "stride": stride}
    result = to.emit("avg_pool2d", [pad(to, value, pads)], settings=settings)
    if count_padding or not any(pads):
        return result
    # A window at the border divides by the values it really has.
    top, left, bottom, right = pads
    ones = F.pad(torch.ones(1, *value.shape[1:], dtype=torch.float64), (left, right, top, bottom))
    share = F.avg_pool2d(ones, kernel, stride)
    return scale(to, result, (1.0 / share).to(to.dtype))


def mean_of_image(to: Assembly, value: Value, keep: bool) -> Value:
    """Mean over H and W of [C,H,W]: [C,1,1], or [C] unless keep."""
    _image(to, value)
    kernel = (value.shape[1], value.shape[2])
    pooled = avg_pool2d(to, value, kernel, kernel)
    return pooled if keep else to.reshape_to(pooled, pooled.shape[:1])


def mean(to: Assembly, value: Value, axes: Sequence[int], keep: bool) -> Value:
    """Mean over axes counted with the batch: H and W of an image only."""
    if sorted(to.axis(value, axis) for axis in axes) != [1, 2]:
        raise to.refusal("a mean must be over height and width of [batch,C,H,W]")
    return mean_of_image(to, value, keep)


def squeeze(to: Assembly, value: Value, axes: Sequence[int]) -> Value:
    """Drop axes of size 1, counted with the batch."""
    gone = {to.axis(value, axis) for axis in axes}
    if any(value.shape[axis] != 1 for axis in gone):
        raise to.refusal(f"axes {tuple(axes)} of {value.shape} are not all of size 1")
    return to.reshape_to(value, [n for i, n in enumerate(value.shape) if i not in gone])


def unsqueeze(to: Assembly, value: Value, axes: Sequence[int]) -> Value:
    """Insert axes of size 1, counted with the batch in the result."""
    shape = list(value.shape)
    for position in sorted(to.axis(value, axis, extra=len(axes)) for axis in axes):
        shape.insert(position, 1)
    return to.reshape_to(value, shape)


def leaky_relu(to: Assembly, value: Value, slope: float) -> Value:
    """``max(x, 0) + slope * min(x, 0)``, as ``(1 - slope) * max(x, 0) + slope * x``.

    The lines around the ReLU are then the best ones around the whole, and its sign can be cut.
    """
    below = to.tensor(slope)
    above = (1.0 - below.double()).to(to.dtype)
    positive = to.emit("relu", [value])
    if below == 0:
        return positive
    return add(to, scale(to, positive, above), scale(to, value, below))


def gelu(to: Assembly, value: Value, approximate: str = "none") -> Value:
    """``x (1 + erf(x / sqrt(2))) / 2``; the approximation by tanh is another function."""
    if approximate != "none":
        raise to.refusal(
            f"approximate={approximate!r} is another function than GELU; use approximate='none'"
        )
    return to.emit("gelu", [value])


def same_pads(kernel: Sequence[int], dilation: Sequence[int]) -> Pads:
    """Padding that keeps the size at stride 1; the larger half comes last."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)


def _image(to: Assembly, value: Value) -> None:
    if len(value.shape) != 3:
        raise to.refusal(f"it needs an input [batch,C,H,W], not {value.shape} after the batch")


def _no_ceiling(
    to: Assembly, value: Value, kernel: Pair, stride: Pair, pads: Pads, ceil: bool
) -> None:
    for axis in (0, 1):
        room = value.shape[axis + 1] + pads[axis] + pads[axis + 2] - kernel[axis]
        if ceil and room % stride[axis]:
            raise to.refusal("ceil mode adds a window past the edge; export it with ceil_mode off")


def _undoes(to: Assembly, factor: Tensor, op: Operation) -> bool:
    """As where a GELU is written out: twice it, and half of that."""
    if op.kind != "scale" or [*op.tensors] != ["weight"]:
        return False
    return bool((to.weights[op.tensors["weight"]].double() * factor.double() == 1).all())


def _fitted(to: Assembly, value: Value, constant: Any) -> Tensor:
    """The constant with the rank of value; refuses one that would enlarge value."""
    tensor = to.tensor(constant)
    rank = len(value.shape)
    if tensor.dim() == rank + 1 and tensor.shape[0] == 1:
        tensor = tensor[0]  # the batch axis of the file
    if tensor.dim() <= rank:
        tensor = tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape))
        if all(have in (1, want) for have, want in zip(tensor.shape, value.shape, strict=True)):
            return tensor
    raise to.refusal(f"its constant {tuple(tensor.shape)} does not fit its input {value.shape}")
