"""Every torch layer that is read, by way of the function that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from advrepair.core import layers
from advrepair.core import torch_operators as functions
from advrepair.core.assembly import Assembly, Value
from advrepair.core.graph import INPUT, Network


def _activation(kind: str) -> Callable[[Assembly, Any, Value], Value]:
    return lambda to, layer, value: to.emit(kind, [value])


def _same(to: Assembly, layer: nn.Module, value: Value) -> Value:
    return value


def _conv_layer(to: Assembly, layer: nn.Conv2d, value: Value) -> Value:
    if layer.padding_mode != "zeros":
        raise to.refusal(f"padding mode {layer.padding_mode!r} is not supported; pad with zeros")
    return functions.conv2d(
        to,
        value,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )


def _norm_layer(to: Assembly, layer: nn.BatchNorm2d, value: Value) -> Value:
    mean, variance = layer.running_mean, layer.running_var
    return functions.batch_norm(to, value, mean, variance, layer.weight, layer.bias, eps=layer.eps)


def _max_pool_layer(to: Assembly, m: nn.MaxPool2d, value: Value) -> Value:
    options = (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)
    return functions.max_pool2d(to, value, *options)


def _avg_pool_layer(to: Assembly, m: nn.AvgPool2d, value: Value) -> Value:
    options = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)
    return functions.avg_pool2d(to, value, *options, m.divisor_override)


def _network(to: Assembly, layer: Network, value: Value) -> Value:
    if value.shape != layer.input_shape:
        raise to.refusal(f"it takes inputs {layer.input_shape}, not {value.shape}")
    weights, results = layer.tensors, {INPUT: value}
    for op in layer.operations:
        to.enter(op.name, op.kind)
        results[op.name] = to.emit(
            op.kind,
            [results[name] for name in op.inputs],
            {role: to.tensor(weights[name]) for role, name in op.tensors.items()},
            op.settings,
            op.shape,
        )
    return results[layer.operations[-1].name]


MODULES: dict[type[nn.Module], Callable[[Assembly, Any, Value], Value]] = {
    Network: _network,
    nn.AdaptiveAvgPool2d: lambda to, m, x: functions.adaptive_avg_pool2d(to, x, m.output_size),
    nn.AvgPool2d: _avg_pool_layer,
    nn.BatchNorm1d: _norm_layer,
    nn.BatchNorm2d: _norm_layer,
    nn.Conv2d: _conv_layer,
    nn.Dropout: _same,
    nn.Dropout2d: _same,
    nn.Flatten: lambda to, m, x: to.flatten(x, m.start_dim, m.end_dim),
    nn.GELU: lambda to, m, x: layers.gelu(to, x, m.approximate),
    nn.Identity: _same,
    nn.LeakyReLU: lambda to, m, x: layers.leaky_relu(to, x, m.negative_slope),
    nn.Linear: lambda to, m, x: layers.linear(to, x, m.weight, m.bias),
    nn.MaxPool2d: _max_pool_layer,
    nn.ReLU: _activation("relu"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Tanh: _activation("tanh"),
    nn.Unflatten: lambda to, m, x: functions.unflatten(to, x, m.dim, m.unflattened_size),
    nn.ZeroPad2d: lambda to, m, x: functions.pad(to, x, m.padding),
}
