"""Every ONNX operator that is read, and how it becomes operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper

from advrepair.core import layers
from advrepair.core.assembly import BATCH, Assembly, Value
from advrepair.core.layers import Pads, Pair
from advrepair.core.onnx_call import Call

Reader = Callable[[Call], Value]


def _binary(combine: Callable[[Assembly, Any, Any], Value]) -> Reader:
    return lambda call: combine(call.to, call.operand(0), call.operand(1))


def _simple(kind: str) -> Reader:
    return lambda call: call.to.emit(kind, [call.value()])


def _same(call: Call) -> Value:
    return call.value()


def _leaky_relu(call: Call) -> Value:
    return layers.leaky_relu(call.to, call.value(), call.take("alpha", 0.01))


def _gelu(call: Call) -> Value:
    return layers.gelu(call.to, call.value(), call.take("approximate", b"none").decode())


def _matmul(call: Call) -> Value:
    return layers.linear(call.to, call.value(), call.constant(1).T)


def _gemm(call: Call) -> Value:
    call.expect("transA", 0, default=0)
    weight = torch.from_numpy(np.array(call.constant(1)))
    if not call.take("transB", 0):
        weight = weight.T
    alpha, beta = call.take("alpha", 1.0), call.take("beta", 1.0)
    given = call.optional(2)
    bias = None if given is None else torch.from_numpy(np.array(given))
    if bias is not None and bias.dim() == 2 and len(bias) == 1:
        bias = bias[0]
    if alpha != 1.0:
        weight = (weight.double() * alpha).to(weight.dtype)
    if bias is not None and beta != 1.0:
        bias = (bias.double() * beta).to(bias.dtype)
    return layers.linear(call.to, call.value(), weight, bias)


def _conv(call: Call) -> Value:
    value, weight = _image(call), call.constant(1)
    kernel = tuple(weight.shape[2:])
    call.expect("kernel_shape", list(kernel), default=list(kernel))
    if len(kernel) != 2:
        raise call.to.refusal(f"only 2-D convolutions; its kernel is {kernel}")
    stride, dilation, pads = _window(call, value, (kernel[0], kernel[1]))
    bias, groups = call.optional(2), call.take("group", 1)
    return layers.conv2d(call.to, value, weight, bias, stride, pads, dilation, groups)


def _max_pool(call: Call) -> Value:
    value = _image(call)
    kernel = _pair(call, call.take("kernel_shape", []))
    stride, dilation, pads = _window(call, value, kernel)
    _no_dilation(call, dilation)
    call.ignore("storage_order")  # about the second output, which is refused elsewhere
    ceil = bool(call.take("ceil_mode", 0))
    return layers.max_pool2d(call.to, value, kernel, stride, pads, ceil)


def _average_pool(call: Call) -> Value:
    value = _image(call)
    kernel = _pair(call, call.take("kernel_shape", []))
    stride, dilation, pads = _window(call, value, kernel)
    _no_dilation(call, dilation)
    ceil, count = bool(call.take("ceil_mode", 0)), bool(call.take("count_include_pad", 0))
    return layers.avg_pool2d(call.to, value, kernel, stride, pads, ceil, count)


def _global_average_pool(call: Call) -> Value:
    return layers.mean_of_image(call.to, call.value(), keep=True)


def _reduce_mean(call: Call) -> Value:
    axes = call.integers("axes", 1)
    call.ignore("noop_with_empty_axes")  # without axes the mean is refused anyway
    return layers.mean(call.to, call.value(), axes, keep=bool(call.take("keepdims", 1)))


def _batch_normalization(call: Call) -> Value:
    call.expect("training_mode", 0, default=0)
    call.expect("spatial", 1, default=1)
    call.ignore("momentum")
    weight, bias, mean, variance = (call.constant(i) for i in range(1, 5))
    epsilon = call.take("epsilon", 1e-5)
    return layers.batch_norm(call.to, call.value(), mean, variance, weight, bias, epsilon)


def _flatten(call: Call) -> Value:
    value, axis = call.value(), call.take("axis", 1)
    rank = len(value.shape) + 1
    axis = axis + rank if axis < 0 else axis
    if axis < 1 or any(n != 1 for n in value.shape[: axis - 1]):
        raise call.to.refusal(f"axis {axis} joins the batch with other axes; use axis 1")
    return call.to.flatten(value) if value.shape else call.to.reshape_to(value, (1,))


def _reshape(call: Call) -> Value:
    value = call.value()
    keeps_zero = bool(call.take("allowzero", 0))
    target = [int(n) for n in call.integers("shape", 1)]
    full = (BATCH, *value.shape)
    for position, n in enumerate(target):
        if n == 0 and not keeps_zero:
            if position >= len(full):
                raise call.to.refusal(f"its target {target} copies an axis that is not there")
            target[position] = full[position]
    if call.fixed_batch and target[:1] == [1]:
        target[0] = BATCH
    return call.to.reshape(value, target)


def _transpose(call: Call) -> Value:
    value = call.value()
    backwards = list(range(len(value.shape) + 1))[::-1]
    return call.to.permute(value, call.take("perm", backwards))


def _squeeze(call: Call) -> Value:
    axes = call.integers("axes", 1)
    if not axes:
        raise call.to.refusal("it names no axes and could drop the batch; name them")
    return layers.squeeze(call.to, call.value(), axes)


def _unsqueeze(call: Call) -> Value:
    return layers.unsqueeze(call.to, call.value(), call.integers("axes", 1))


def _dropout(call: Call) -> Value:
    call.ignore("ratio", "seed", "is_test")
    training = call.optional(2)
    if training is not None and bool(np.any(training)):
        raise call.to.refusal("it drops values at random; export the network for inference")
    return call.value()


def _cast(call: Call) -> Value:
    call.ignore("saturate", "round_mode")
    wanted = str(np.dtype(helper.tensor_dtype_to_np_dtype(call.take("to", 1))))
    if f"torch.{wanted}" != str(call.to.dtype):
        raise call.to.refusal(f"it changes the numbers to {wanted}; use one precision throughout")
    return call.value()


def _pad(call: Call) -> Value:
    value = _image(call)
    call.expect("mode", b"constant", default=b"constant")
    pads = call.integers("pads", 1)
    fill, given = call.optional(2), call.take("value", 0.0)
    if bool(np.any(fill)) or given:
        raise call.to.refusal("it pads with a number other than 0")
    named = call.integers("axes", 3, tuple(range(len(pads) // 2)))
    if len(pads) != 2 * len(named):
        raise call.to.refusal(f"{len(pads)} pads do not fit {len(named)} axes")
    begin, end = [0] * 4, [0] * 4
    for position, axis in enumerate(named):
        begin[axis], end[axis] = pads[position], pads[position + len(named)]
    if any(begin[:2] + end[:2]):
        raise call.to.refusal("it pads the batch or the channels; only height and width can be")
    return layers.pad(call.to, value, (begin[2], begin[3], end[2], end[3]))


OPERATORS: dict[str, Reader] = {
    "Add": _binary(layers.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Conv": _conv,
    "Div": _binary(layers.divide),
    "Dropout": _dropout,
    "Erf": _simple("erf"),
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _binary(layers.multiply),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _simple("relu"),
    "Reshape": _reshape,
    "Sigmoid": _simple("sigmoid"),
    "Squeeze": _squeeze,
    "Sub": _binary(layers.subtract),
    "Tanh": _simple("tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _image(call: Call) -> Value:
    value = call.value()
    if len(value.shape) != 3:
        raise call.to.refusal(f"only inputs [batch,C,H,W]; its input is {value.shape} after batch")
    return value


def _pair(call: Call, given: list[int]) -> Pair:
    if len(given) != 2:
        raise call.to.refusal(f"it needs two numbers for height and width, not {given}")
    return given[0], given[1]


def _no_dilation(call: Call, dilation: Pair) -> None:
    if dilation != (1, 1):
        raise call.to.refusal("dilated pooling is not supported")


def _window(call: Call, value: Value, kernel: Pair) -> tuple[Pair, Pair, Pads]:
    """Stride, dilation and padding of a sliding window."""
    stride = _pair(call, call.take("strides", [1, 1]))
    dilation = _pair(call, call.take("dilations", [1, 1]))
    auto = call.take("auto_pad", b"NOTSET")
    given = [int(n) for n in call.take("pads", None) or (0, 0, 0, 0)]
    if len(given) != 4:
        raise call.to.refusal(f"it needs four pads, not {given}")
    if auto in (b"NOTSET", b""):
        return stride, dilation, (given[0], given[1], given[2], given[3])
    if auto == b"VALID":
        return stride, dilation, (0, 0, 0, 0)
    if auto not in (b"SAME_UPPER", b"SAME_LOWER"):
        raise call.to.refusal(f"auto_pad {auto!r} is not supported")
    before, after = [0, 0], [0, 0]
    for axis in (0, 1):
        length = value.shape[axis + 1]
        steps = -(-length // stride[axis])  # the output has ceil(length / stride) windows
        reach = (steps - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        small = max(reach - length, 0) // 2
        large = max(reach - length, 0) - small
        before[axis], after[axis] = (small, large) if auto == b"SAME_UPPER" else (large, small)
    return stride, dilation, (before[0], before[1], after[0], after[1])
