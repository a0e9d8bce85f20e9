"""Every torch function and method that is read, and how it becomes operations.

A function here has the parameters of its torch namesake, after the assembly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advrepair.core import layers
from advrepair.core.assembly import BATCH, Assembly, Value
from advrepair.core.layers import Pads, Pair

Numbers = int | Sequence[int]


def _pair(given: Numbers) -> Pair:
    if isinstance(given, int):
        return given, given
    first, second = (given[0], given[0]) if len(given) == 1 else given
    return int(first), int(second)


def _both(padding: Numbers) -> Pads:
    return (*_pair(padding), *_pair(padding))


def _activation(kind: str) -> Callable[..., Value]:
    def read(to: Assembly, input: Value, inplace: bool = False) -> Value:
        return to.emit(kind, [input])

    return read


def _leaky_relu(
    to: Assembly, input: Value, negative_slope: float = 0.01, inplace: bool = False
) -> Value:
    return layers.leaky_relu(to, input, negative_slope)


def _gelu(to: Assembly, input: Value, approximate: str = "none") -> Value:
    return layers.gelu(to, input, approximate)


def _same(to: Assembly, input: Value, **ignored: Any) -> Value:
    return input


def _linear(to: Assembly, input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    return layers.linear(to, input, weight, bias)


def _matmul(to: Assembly, input: Value, other: Any) -> Value:
    if not isinstance(input, Value) or not isinstance(other, Tensor) or other.dim() != 2:
        raise to.refusal("only a computed value times a stored matrix is supported")
    return layers.linear(to, input, other.T)


def conv2d(
    to: Assembly,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Value:
    spread = _pair(dilation)
    if isinstance(padding, str):
        keep = padding == "same"  # the other word is "valid"
        pads = layers.same_pads(weight.shape[2:], spread) if keep else (0, 0, 0, 0)
    else:
        pads = _both(padding)
    return layers.conv2d(to, input, weight, bias, _pair(stride), pads, spread, groups)


def batch_norm(
    to: Assembly,
    input: Value,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    if training or running_mean is None or running_var is None:
        raise to.refusal("it normalises with the batch at hand; keep running statistics")
    return layers.batch_norm(to, input, running_mean, running_var, weight, bias, eps)


def max_pool2d(
    to: Assembly,
    input: Value,
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if _pair(dilation) != (1, 1) or return_indices:
        raise to.refusal("dilated pooling and indices are not supported")
    kernel, step = _pair(kernel_size), _pair(stride or kernel_size)
    return layers.max_pool2d(to, input, kernel, step, _both(padding), ceil_mode)


def avg_pool2d(
    to: Assembly,
    input: Value,
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    if divisor_override is not None:
        raise to.refusal("divisor_override is not supported")
    kernel, step = _pair(kernel_size), _pair(stride or kernel_size)
    pads = _both(padding)
    return layers.avg_pool2d(to, input, kernel, step, pads, ceil_mode, count_include_pad)


def adaptive_avg_pool2d(to: Assembly, input: Value, output_size: Any) -> Value:
    wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * 2
    have = input.shape[1:]
    if len(have) != 2:
        raise to.refusal(f"it needs an input [batch,C,H,W], not {input.shape} after the batch")
    goal = [h if w is None else int(w) for h, w in zip(have, wanted, strict=True)]
    if any(h % g for h, g in zip(have, goal, strict=True)):
        raise to.refusal(f"{have} does not divide into {tuple(goal)} equal windows")
    kernel = (have[0] // goal[0], have[1] // goal[1])
    return layers.avg_pool2d(to, input, kernel, kernel)


def _flatten(to: Assembly, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return to.flatten(input, start_dim, end_dim)


def unflatten(to: Assembly, input: Value, dim: int, sizes: Sequence[int]) -> Value:
    position = to.axis(input, dim)
    shape = [BATCH, *input.shape[:position], *sizes, *input.shape[position + 1 :]]
    return to.reshape(input, shape)


def _reshape(to: Assembly, input: Value, *shape: Any) -> Value:
    target = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    return to.reshape(input, [int(n) for n in target])


def _permute(to: Assembly, input: Value, *dims: Any) -> Value:
    return to.permute(input, dims[0] if len(dims) == 1 else dims)


def _transpose(to: Assembly, input: Value, dim0: int, dim1: int) -> Value:
    order = list(range(len(input.shape) + 1))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return to.permute(input, order)


def _squeeze(to: Assembly, input: Value, *dim: Any) -> Value:
    if not dim:
        raise to.refusal("without an axis it could drop the batch; name the axis")
    axes = [dim[0]] if isinstance(dim[0], int) else list(dim[0])
    # torch leaves an axis of another size as it is
    axes = [axis for axis in axes if input.shape[to.axis(input, axis)] == 1]
    return layers.squeeze(to, input, axes)


def _unsqueeze(to: Assembly, input: Value, dim: int) -> Value:
    return layers.unsqueeze(to, input, [dim])


def _mean(to: Assembly, input: Value, dim: Any = None, keepdim: bool = False) -> Value:
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    return layers.mean(to, input, axes, keepdim)


def pad(
    to: Assembly, input: Value, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Value:
    if mode != "constant" or value or len(pad) > 4:
        raise to.refusal("only zeros around height and width can be padded")
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return layers.pad(to, input, (top, left, bottom, right))


def _dropout(
    to: Assembly, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    if training and p:
        raise to.refusal("it drops values at inference too; pass training=self.training")
    return input


def _add(to: Assembly, input: Any, other: Any, alpha: float = 1) -> Value:
    if alpha != 1:
        raise to.refusal("alpha is not supported; multiply first")
    return layers.add(to, input, other)


def _sub(to: Assembly, input: Any, other: Any, alpha: float = 1) -> Value:
    if alpha != 1:
        raise to.refusal("alpha is not supported; multiply first")
    return layers.subtract(to, input, other)


def _div(to: Assembly, input: Any, other: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        raise to.refusal("rounding is not supported")
    return layers.divide(to, input, other)


def _negate(to: Assembly, input: Value) -> Value:
    return layers.scale(to, input, weight=-1.0)


def _size(to: Assembly, input: Value, dim: int | None = None) -> Any:
    sizes = (BATCH, *input.shape)
    return sizes if dim is None else sizes[dim]


def _convert(to: Assembly, input: Value, *wanted: Any, **options: Any) -> Value:
    asked = [*wanted, *options.values()]
    if any(isinstance(item, torch.dtype) and item != to.dtype for item in asked):
        raise to.refusal(f"it changes the precision; keep {to.dtype} throughout")
    return input


def _convert_to(dtype: torch.dtype) -> Callable[..., Value]:
    return lambda to, input: _convert(to, input, dtype)


_SHARED: dict[str, Callable[..., Any]] = {
    "add": _add,
    "div": _div,
    "erf": _activation("erf"),
    "flatten": _flatten,
    "matmul": _matmul,
    "mean": _mean,
    "mul": layers.multiply,
    "neg": _negate,
    "permute": _permute,
    "relu": _activation("relu"),
    "reshape": _reshape,
    "sigmoid": _activation("sigmoid"),
    "squeeze": _squeeze,
    "sub": _sub,
    "tanh": _activation("tanh"),
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
}

METHODS: dict[str, Callable[..., Any]] = {
    **_SHARED,
    "clone": _same,
    "contiguous": _same,
    "detach": _same,
    "dim": lambda to, input: len(input.shape) + 1,
    "double": _convert_to(torch.float64),
    "float": _convert_to(torch.float32),
    "size": _size,
    "to": _convert,
    "type": _convert,
    "unflatten": unflatten,
    "view": _reshape,
}

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, name): read for name, read in _SHARED.items()},
    **{getattr(F, name): read for name, read in _SHARED.items() if hasattr(F, name)},
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    F.avg_pool2d: avg_pool2d,
    F.batch_norm: batch_norm,
    F.conv2d: conv2d,
    F.dropout: _dropout,
    F.gelu: _gelu,
    F.leaky_relu: _leaky_relu,
    F.linear: _linear,
    F.max_pool2d: max_pool2d,
    F.pad: pad,
    operator.add: _add,
    operator.iadd: _add,
    operator.matmul: _matmul,
    operator.mul: layers.multiply,
    operator.imul: layers.multiply,
    operator.neg: _negate,
    operator.sub: _sub,
    operator.isub: _sub,
    operator.truediv: _div,
    operator.itruediv: _div,
    torch.conv2d: conv2d,
    torch.special.erf: _activation("erf"),
    torch.special.expit: _activation("sigmoid"),
}
