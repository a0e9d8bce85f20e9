"""How much work each step of a repair is: operations and bytes, counted from the shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.detecting import INPUTS, STEPS
from advrepair.core.graph import NON_AFFINE, Network, Operation, size

_SCALINGS = 3  # bounds of multiples of a patch in one epoch, core/training.py
_SUMS = 12  # times that N's rows are read until a constant is proved
_PARTS = 24  # times that the parts of a detector are read or written in a step
_STEP = 150  # times that the numbers of an input are read or written in a step of an attack
_RELU, _ENDS = 6, 3  # times that rows are read or written at a ReLU, and for their least value


@frozen
class Count:
    """single, double: floating-point operations in float32 and float64. moved: bytes."""

    single: float = 0.0
    double: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.single + other.single, self.double + other.double, self.moved + other.moved
        )

    def __rmul__(self, times: float) -> Count:
        return Count(times * self.single, times * self.double, times * self.moved)

    def limits(self, machine: Machine) -> tuple[float, float]:
        """Seconds that one thread needs at least: for the operations, and for the bytes."""
        arithmetic = self.single / machine.single + self.double / machine.double
        return arithmetic, self.moved / machine.bandwidth

    def limit(self, machine: Machine) -> float:
        """The larger of the two limits, in seconds."""
        return max(self.limits(machine))


@frozen
class Machine:
    """Measured of one thread: operations a second in float32 and float64, bytes a second."""

    single: float
    double: float
    bandwidth: float


@cache
def machine() -> Machine:
    """Measure this machine, once a process, in some 50 ms: products of matrices, and a copy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = [_rate(torch.ones(128, 784, dtype=d)) for d in (torch.float32, torch.float64)]
        source = torch.ones(2**19)  # the arrays of a shard in flight are no larger
        target = torch.empty_like(source)
        took = min(_took(lambda: target.copy_(source)) for _ in range(20))
    finally:
        torch.set_num_threads(threads)
    moved = 2 * source.numel() * source.element_size()
    return Machine(rates[0], rates[1], moved / took)


def _rate(rows: Tensor) -> float:
    """Operations a second of a product such as those of rows with the weights of a layer."""
    weight = rows.new_ones(784, 256)
    took = min(_took(lambda: rows @ weight) for _ in range(6))
    return 2 * rows.numel() * weight.shape[1] / took


def _took(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def pace(network: Network, together: int) -> float:
    """Measured seconds of a forward pass with its gradient, over the limit of its count.

    Small networks take several times their limit, large ones less than it: products of large
    matrices are faster than those that the machine is measured with. together: inputs at once.
    """
    x = torch.rand(together, *network.input_shape, dtype=network.dtype, requires_grad=True)

    def step() -> object:
        return torch.autograd.grad(network(x).sum(), x)

    took = min(_took(step) for _ in range(2))  # the first finds memory and kernels
    return took / (together * forward(network, gradient=True).limit(machine()))


def forward(network: Network, gradient: bool = False) -> Count:
    """One input through a network; with the gradient by the input, three times as much."""
    values = size(network.input_shape) + sum(size(op.shape) for op in network.operations)
    times = 2 if gradient else 1
    return Count(single=times * _products(network), moved=times * 3 * 4 * values)


def climb(network: Network) -> Count:
    """One step of an attack on one input."""
    return forward(network, True) + Count(moved=4 * _STEP * size(network.input_shape))


def rows(network: Network, count: int, rigorous: bool, own_weights: bool = False) -> Count:
    """Bounds of one box: rows of what every function is given, and ``count`` at the end.

    own_weights: the box has weights of its own, as a patch has, which are read for it alone.
    """
    found, bends, width, bounded = Count(), 0, 8 if rigorous else 4, network.bounded()
    for index, op in enumerate(network.operations):
        if op.name in bounded:
            # The first is bounded forwards: an interval, which takes as much as two inputs.
            found += _back(network, index, 2 * bounded[op.name], width) if bends else Count()
            bends += 1
    last = len(network.operations)
    found += _back(network, last, count, width)
    if own_weights:
        passes = (bends + 1) * (3 if rigorous else 1)
        found += Count(moved=passes * width * network.parameters_count)
    return found


def epoch(template: Network, count: int) -> Count:
    """One epoch of one patch on one box: its rows, their gradient, multiples, a step."""
    bound = rows(template, count, False, own_weights=True)
    ends = 4 * count * size(template.input_shape)
    multiples = Count(moved=_SCALINGS * (3 + _ENDS) * ends)
    step = Count(moved=4 * 6 * template.parameters_count)
    return 3.0 * bound + multiples + step


def proof(template: Network, count: int) -> Count:
    """The rigorous bound of N + P on one box, given the rows of N."""
    sums = (3 + _ENDS) * 8 * count * size(template.input_shape)
    return rows(template, count, True, own_weights=True) + Count(moved=sums)


def detector(template: Network) -> Count:
    """The search for one detector: two products with all inputs in each step."""
    inputs = size(template.input_shape)
    return STEPS * Count(single=4.0 * inputs * INPUTS, moved=4.0 * _PARTS * inputs)


def constants(template: Network, count: int) -> Count:
    """Constants tried as patches on one box, given the rows of N."""
    return Count(moved=_SUMS * 8 * count * size(template.input_shape))


def _back(network: Network, end: int, count: int, width: int) -> Count:
    """So many rows over the value before operation ``end``, back to the input."""
    flop, values = 0.0, _ENDS * size(network.input_shape)
    before = size(network.input_shape)
    for op in network.operations[:end]:
        after = size(op.shape)
        if op.kind in NON_AFFINE:
            values += _RELU * (before if op.kind == "max_pool2d" else after)
        elif op.kind != "reshape":
            values += before + after
        flop += _of(network, op)
        before = after
    done, moved = count * flop, width * count * values
    return Count(double=done, moved=moved) if width == 8 else Count(single=done, moved=moved)


def _products(network: Network) -> float:
    return sum(_of(network, op) for op in network.operations)


def _of(network: Network, op: Operation) -> float:
    """Multiplications and additions of one operation on one input."""
    if "weight" not in op.tensors or op.kind == "scale":
        return size(op.shape)
    weight = network.tensors[op.tensors["weight"]]
    return 2 * size(op.shape) * weight[0].numel()
