"""Read a ``.nnet`` file, the text format of the ACAS Xu networks, as a Network.

The network takes inputs in physical units. Its operations are a shift by ``-mean``, a factor
``1 / range``, the layers with ReLU between them, and ``y * range + mean``. Every number is
read in float64, and it or its reciprocal is rounded to float32 once: these rounded numbers are
the network that is deployed, repaired and certified. Inputs are not clipped to the least and
greatest ones that the file states; regions that leave these are refused by whoever reads both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core import layers
from advrepair.core.assembly import Assembly
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network

_MOST = 2**24  # units of a layer; more is no file of this format


@define
class _Lines:
    """The lines of a file that hold numbers, one after the other."""

    path: Path
    rest: Iterator[tuple[int, str]] = field(init=False)
    number: int = 0

    def __attrs_post_init__(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.path}: not a readable .nnet file: {error}") from None
        lines = enumerate(text.splitlines(), start=1)
        self.rest = ((i, line) for i, line in lines if line.strip() and line.strip()[:2] != "//")

    def refusal(self, why: str) -> UsageError:
        """The error to raise about the current line."""
        return UsageError(f"{self.path}: line {self.number}: {why}")

    def numbers(self, count: int, what: str) -> Tensor:
        """The numbers of the next line, float64 [count]; refuses fewer, more, NaN."""
        try:
            self.number, line = next(self.rest)
        except StopIteration:
            raise UsageError(
                f"{self.path}: line {self.number + 1}: the file ends where {what} should be: it "
                "is cut off"
            ) from None
        parts = line.strip().removesuffix(",").split(",")
        try:
            found = torch.tensor([float(part) for part in parts], dtype=torch.float64)
        except ValueError:
            raise self.refusal(f"{what} should be numbers with commas between them") from None
        if len(found) < count or (count and len(found) != count):
            raise self.refusal(f"{what} should be {count} numbers, found {len(found)}")
        if not bool(found.isfinite().all()):
            raise self.refusal(f"{what} hold NaN or infinity")
        return found

    def sizes(self, count: int, what: str) -> list[int]:
        """As :meth:`numbers`, positive integers."""
        found = self.numbers(count, what)
        if not bool(((found >= 1) & (found == found.round()) & (found <= _MOST)).all()):
            raise self.refusal(f"{what} should be positive integers")
        return [int(each) for each in found.tolist()]


def read_ranges(path: Path) -> tuple[Tensor, Tensor]:
    """Least and greatest inputs that a ``.nnet`` file states, float64 [S] each."""
    lines = _Lines(path)
    count, inputs, _, _ = lines.sizes(4, "the numbers of layers, inputs and outputs")
    lines.sizes(count + 1, "the sizes of the layers")
    lines.numbers(0, "a flag that nothing uses")
    return lines.numbers(inputs, "the least inputs"), lines.numbers(inputs, "the greatest inputs")


def read_nnet(path: Path) -> Network:
    """Read a ``.nnet`` file; raises UsageError, naming the line, if it is damaged."""
    lines = _Lines(path)
    count, inputs, outputs, _ = lines.sizes(4, "the numbers of layers, inputs and outputs")
    sizes = lines.sizes(count + 1, "the sizes of the layers")
    if sizes[0] != inputs or sizes[-1] != outputs:
        raise lines.refusal(f"layers {sizes} do not go from {inputs} inputs to {outputs} outputs")
    lines.numbers(0, "a flag that nothing uses")
    least = lines.numbers(inputs, "the least inputs")
    if not bool((least <= lines.numbers(inputs, "the greatest inputs")).all()):
        raise lines.refusal("a greatest input is below the least one")
    mean = lines.numbers(inputs + 1, "the means")
    spread = lines.numbers(inputs + 1, "the ranges")
    if not bool((spread > 0).all()):
        raise lines.refusal("the ranges should be positive")
    to = Assembly([inputs], torch.float32, str(path))
    to.enter("normalise", "normalisation")
    value = layers.scale(to, to.input, bias=-mean[:-1].float())
    value = layers.scale(to, value, weight=(1 / spread[:-1]).float())
    for layer, (before, after) in enumerate(pairwise(sizes)):
        where = f"of layer {layer + 1}"
        weight = [lines.numbers(before, f"a row of weights {where}") for _ in range(after)]
        bias = [lines.numbers(1, f"a bias {where}") for _ in range(after)]
        to.enter(f"layer{layer + 1}", "layer")
        value = layers.linear(to, value, torch.stack(weight).float(), torch.cat(bias).float())
        if layer + 1 < count:
            to.enter(f"relu{layer + 1}", "ReLU")
            value = to.emit("relu", [value])
    if left := next(lines.rest, None):
        lines.number = left[0]
        raise lines.refusal("the file should end before this line")
    to.enter("denormalise", "normalisation")
    return to.finish(layers.scale(to, value, spread[-1:].float(), mean[-1:].float()))
