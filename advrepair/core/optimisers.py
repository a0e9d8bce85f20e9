"""Steps on stacked weights: every patch is its own problem, with its own step."""

from __future__ import annotations

from typing import Protocol

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.patching import Stack


class Optimiser(Protocol):
    """One step for all patches; state follows the patches that stay."""

    def step(self, stack: Stack, gradient: Stack, loss: Tensor) -> Stack:
        """New weights from weights, gradients [q, ...] and losses [q]."""
        ...

    def keep(self, stay: Tensor) -> None:
        """Forget the patches that left; stay: bool [q]."""
        ...


@define(eq=False)
class Polyak:
    """Step length loss / |gradient|^2: the loss is a sum of hinges whose least value is 0.

    Polyak, 1969 (10.1016/0041-5553(69)90035-4). For an affine patch the loss is convex, and
    the step to zero loss of its current linear piece changes the patch least. lr scales it.
    """

    lr: float

    def step(self, stack: Stack, gradient: Stack, loss: Tensor) -> Stack:
        """See :class:`Optimiser`."""
        square = sum(g.flatten(1).square().sum(1) for g in gradient.values())
        # A verifier that knows nothing gives an infinite loss, which is no direction.
        length = loss.to(square.dtype).nan_to_num(0.0, 0.0, 0.0)  # type: ignore[union-attr]
        rate = self.lr * length / square.clamp(min=1e-30)  # type: ignore[union-attr]
        return {n: t - gradient[n] * rate.view(-1, *[1] * (t.dim() - 1)) for n, t in stack.items()}

    def keep(self, stay: Tensor) -> None:
        """Nothing is remembered."""


@define(eq=False)
class Adam:
    """Adam with its usual constants (arXiv 1412.6980), the paper's choice."""

    lr: float
    steps: int = 0
    mean: Stack = field(factory=dict)
    square: Stack = field(factory=dict)

    def step(self, stack: Stack, gradient: Stack, loss: Tensor) -> Stack:
        """See :class:`Optimiser`."""
        self.steps += 1
        result = {}
        for n, g in gradient.items():
            self.mean[n] = 0.9 * self.mean.get(n, torch.zeros_like(g)) + 0.1 * g
            self.square[n] = 0.999 * self.square.get(n, torch.zeros_like(g)) + 0.001 * g * g
            first = self.mean[n] / (1 - 0.9**self.steps)
            second = self.square[n] / (1 - 0.999**self.steps)
            result[n] = stack[n] - self.lr * first / (second.sqrt() + 1e-8)
        return result

    def keep(self, stay: Tensor) -> None:
        """Moments follow the patches."""
        self.mean = {n: t[stay] for n, t in self.mean.items()}
        self.square = {n: t[stay] for n, t in self.square.items()}


OPTIMISERS = {"polyak": Polyak, "adam": Adam}
