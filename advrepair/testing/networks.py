"""Small random networks: every operation a verifier may meet, cheap enough to bound often.

Biases are spread wide, so that among the ReLUs some are dead, some always active, and the
unstable ones lie lopsided around zero, where a wrong slope shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from advrepair.core.graph import INPUT, STEPS, Network, Operation, Setting, size


class Sketch:
    """A network being drawn: every method adds an operation after :attr:`last`.

    seed: of the weights. input_shape: *S. dtype: of the weights.
    """

    def __init__(
        self, seed: int, input_shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> None:
        self.last = INPUT
        self._shapes = {INPUT: tuple(input_shape)}
        self._operations: list[Operation] = []
        self._tensors: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def linear(self, units: int) -> Sketch:
        """A fully connected layer."""
        weight = self._normal(units, *self._shapes[self.last])
        return self._emit("linear", {"weight": weight, "bias": self._spread(units)})

    def conv2d(self, channels: int, kernel: int, stride: int = 1, padding: int = 0) -> Sketch:
        """A square convolution."""
        weight = self._normal(channels, self._shapes[self.last][0], kernel, kernel)
        settings: dict[str, Setting] = {
            "stride": (stride, stride),
            "padding": (padding, padding),
            "dilation": (1, 1),
            "groups": 1,
        }
        return self._emit("conv2d", {"weight": weight, "bias": self._spread(channels)}, settings)

    def scale(self) -> Sketch:
        """Batch normalisation at inference: a factor, of either sign, and a shift a channel."""
        channels, *rest = self._shapes[self.last]
        shape = (channels, *[1] * len(rest))
        return self._emit("scale", {"weight": self._normal(*shape), "bias": self._spread(*shape)})

    def avg_pool2d(self, kernel: int) -> Sketch:
        """Means of disjoint squares."""
        return self.apply("avg_pool2d", kernel_size=(kernel, kernel), stride=(kernel, kernel))

    def max_pool2d(self, kernel: int, stride: int, padding: int = 0) -> Sketch:
        """Largest numbers of squares."""
        squares = {"kernel_size": kernel, "stride": stride, "padding": padding}
        return self.apply("max_pool2d", **{key: (n, n) for key, n in squares.items()})

    def reshape(self, *shape: int) -> Sketch:
        """The same numbers in another shape."""
        return self._emit("reshape", shape=shape)

    def flatten(self) -> Sketch:
        """The same numbers in one axis."""
        return self.reshape(size(self._shapes[self.last]))

    def add(self, other: str) -> Sketch:
        """The sum with an earlier value, by its name: a residual connection."""
        return self._emit("add", inputs=(self.last, other))

    def apply(self, kind: str, **settings: Setting) -> Sketch:
        """Any operation without tensors: relu, pad, permute, sigmoid, max_pool2d..."""
        return self._emit(kind, settings=settings)

    def relu(self) -> Sketch:
        """The positive part."""
        return self.apply("relu")

    def leaky(self, slope: float) -> Sketch:
        """``slope * x + (1 - slope) * max(x, 0)``, as every importer writes a leaky ReLU."""
        before = self.last
        positive = self.relu()._times(1 - slope).last
        self.last = before
        return self._times(slope).add(positive)

    def finish(self) -> Network:
        """The network up to here."""
        return Network(self._operations, self._tensors, self._shapes[INPUT])

    def _emit(
        self,
        kind: str,
        tensors: dict[str, Tensor] | None = None,
        settings: dict[str, Setting] | None = None,
        inputs: tuple[str, ...] = (),
        shape: tuple[int, ...] = (),
    ) -> Sketch:
        name = f"{kind}_{len(self._operations)}"
        roles = {role: f"{name}.{role}" for role in tensors or {}}
        self._tensors |= {roles[role]: t for role, t in (tensors or {}).items()}
        op = Operation(name, kind, inputs or (self.last,), shape, roles, settings or {})
        if not shape:
            zeros = [torch.zeros(1, *self._shapes[i], dtype=self._dtype) for i in op.inputs]
            shape = tuple(STEPS[kind](op, self._tensors, zeros).shape[1:])
            op = Operation(name, kind, op.inputs, shape, roles, op.settings)
        self._operations.append(op)
        self._shapes[name], self.last = shape, name
        return self

    def _times(self, factor: float) -> Sketch:
        shape = [1] * len(self._shapes[self.last])
        return self._emit("scale", {"weight": torch.full(shape, factor, dtype=self._dtype)})

    def _normal(self, *shape: int) -> Tensor:
        """Weights whose sums are about as large as one input."""
        values = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return (values * (1.5 / math.sqrt(size(shape[1:])))).to(self._dtype)

    def _spread(self, *shape: int) -> Tensor:
        """Biases: most around zero, about a quarter far out on either side."""
        near = 0.4 * torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        side = torch.randint(8, shape, generator=self._generator)
        far = 2.5 * ((side == 0).double() - (side == 1).double())
        return (near + far).to(self._dtype)


def fully_connected(seed: int, widths: Sequence[int] = (3, 9, 9, 9, 4)) -> Network:
    """ReLU layers between the first and the last of widths."""
    sketch = Sketch(seed, widths[:1])
    for units in widths[1:-1]:
        sketch.linear(units).relu()
    return sketch.linear(widths[-1]).finish()


def convolutional(seed: int) -> Network:
    """Strided and padded convolutions, then two linear layers."""
    sketch = Sketch(seed, (1, 6, 6)).conv2d(2, 3, stride=2, padding=1).relu()
    sketch.conv2d(3, 2).relu().flatten().linear(6).relu()
    return sketch.linear(3).finish()


def residual(seed: int) -> Network:
    """Two blocks with a path around them, one of them around the input itself."""
    sketch = Sketch(seed, (4,))
    sketch.linear(6).relu().linear(4).add(INPUT).relu()
    around = sketch.last
    sketch.linear(5).relu().linear(4).add(around).relu()
    return sketch.linear(3).finish()


def batch_normalised(seed: int) -> Network:
    """A scale a channel after a convolution and after a linear layer."""
    sketch = Sketch(seed, (2, 4, 4)).scale().conv2d(3, 3, padding=1).scale().relu()
    return sketch.flatten().linear(6).scale().relu().linear(4).scale().finish()


def pooled(seed: int) -> Network:
    """Average pools before and between ReLUs, zero padding as its own operation."""
    sketch = Sketch(seed, (2, 6, 6)).avg_pool2d(2).apply("pad", pad=(1, 0, 0, 1))
    sketch.conv2d(4, 2).relu().conv2d(3, 2).avg_pool2d(2).relu()
    return sketch.flatten().linear(5).relu().linear(3).finish()


def rearranged(seed: int) -> Network:
    """Axes permuted and reshaped between layers; the output is a ReLU."""
    sketch = Sketch(seed, (2, 3, 2)).apply("permute", axes=(1, 2, 0)).reshape(2, 6)
    sketch.apply("permute", axes=(1, 0)).flatten().linear(8).relu().reshape(2, 2, 2)
    sketch.apply("permute", axes=(2, 0, 1)).conv2d(3, 2).relu().flatten()
    return sketch.linear(3).relu().finish()


def leaky(seed: int) -> Network:
    """Leaky ReLUs after a convolution and after linear layers."""
    sketch = Sketch(seed, (1, 5, 5)).conv2d(2, 3).leaky(0.1).flatten().linear(6).leaky(0.3)
    return sketch.linear(5).leaky(0.01).linear(3).finish()


def max_pooled(seed: int) -> Network:
    """Max pools: with windows that overlap and with padding, before and after ReLUs."""
    sketch = Sketch(seed, (1, 8, 8)).max_pool2d(2, stride=1, padding=1).conv2d(3, 3, padding=1)
    sketch.relu().max_pool2d(3, stride=2).conv2d(3, 2).max_pool2d(2, stride=2).relu()
    return sketch.flatten().linear(5).relu().linear(3).finish()


def curved(seed: int) -> Network:
    """A sigmoid after a convolution, a sum around a tanh, a GELU, a ReLU and an erf."""
    sketch = Sketch(seed, (1, 5, 5)).conv2d(2, 3).apply("sigmoid").flatten().linear(6)
    around = sketch.last
    sketch.apply("tanh").linear(6).add(around).apply("gelu").linear(5).relu().linear(4)
    return sketch.apply("erf").linear(3).finish()


NETWORKS: dict[str, Callable[[int], Network]] = {
    "fully connected": fully_connected,
    "convolutional": convolutional,
    "residual": residual,
    "batch normalised": batch_normalised,
    "pooled": pooled,
    "rearranged": rearranged,
    "leaky": leaky,
    "max pooled": max_pooled,
    "curved": curved,
}


def tiny(seed: int, inputs: int = 2) -> Network:
    """Three hidden layers, few enough units for the exact oracle."""
    return fully_connected(seed, (inputs, 4, 4, 4, 3))


def absorbing(unit: float, terms: int = 48, layers: int = 3) -> Network:
    """Rounding at its worst: sums of 1 and of terms so small that each is lost when added.

    A bound that accounts for fewer roundings than there are is refuted by it, where random
    weights, whose errors cancel, refute nothing. It holds for rows on their way back, too.
    Two inputs only, so that the rounding of the minimum over the box hides nothing.
    unit: unit roundoff to be hit.
    """
    row = torch.full((1, terms), 0.99 * unit)
    row[0, 0] = 1.0
    same = torch.zeros(terms, terms)
    same[:, 0] = 1.0
    copies = torch.tensor([[1.0, 0.0]]).expand(terms, 2)
    matrices = [copies, *[torch.cat([row, same[1:]])] * layers, torch.cat([row, -row])]
    operations, tensors, last = [], {}, INPUT
    for layer, matrix in enumerate(matrices):
        if layer:
            operations.append(Operation(f"relu_{layer}", "relu", (last,), (terms,)))
            last = f"relu_{layer}"
        roles = {"weight": f"weight_{layer}"}
        operations.append(Operation(f"linear_{layer}", "linear", (last,), (len(matrix),), roles))
        tensors[f"weight_{layer}"], last = matrix, f"linear_{layer}"
    return Network(operations, tensors, (2,))
