"""Steps on stacked weights: every patch is its own problem, with its own step."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.patching import Stack

_BEND = 1.0  # of what is against the step before; up to 2 it converges


class Optimiser(Protocol):
    """One step for all patches; state follows the patches that stay.

    alone: so many first steps are of the last layers only.
    """

    alone: ClassVar[int]

    def step(self, stack: Stack, gradient: Stack, loss: Tensor) -> Stack:
        """New weights from weights, gradients [q, ...] and losses [q].

        What has no gradient stays as it is.
        """
        ...

    def keep(self, stay: Tensor) -> None:
        """Forget the patches that left; stay: bool [q]."""
        ...


@define(eq=False)
class Polyak:
    """Step length loss / |direction|^2: the loss is a sum of hinges whose least value is 0.

    Polyak, 1969 (10.1016/0041-5553(69)90035-4). For an affine patch the loss is convex, and
    the step to zero loss of its current linear piece changes the patch least. lr scales it.
    So it is for the last layer of any patch while the others rest: then the bound is the least
    of functions that are linear in it. A step that turns back on the one before is bent away
    from it, which ends zigzags and still converges (Camerini, Fratta and Maffioli, 1975).
    """

    alone: ClassVar[int] = 8
    lr: float
    before: Stack = field(factory=dict)

    def step(self, stack: Stack, gradient: Stack, loss: Tensor) -> Stack:
        """See :class:`Optimiser`."""
        self.before = direction = self._bent(gradient)
        square = _products(direction, direction)
        # A verifier that knows nothing gives an infinite loss, which is no direction.
        length = loss.to(square.dtype).nan_to_num(0.0, 0.0, 0.0)
        rate = self.lr * length / square.clamp(min=1e-30)
        return stack | {n: stack[n] - _each(rate, g) * g for n, g in direction.items()}

    def _bent(self, gradient: Stack) -> Stack:
        """The gradient without what of it turns back on the step before."""
        if not self.before:
            return gradient
        back = -_BEND * _products(gradient, self.before)
        share = (back / _products(self.before, self.before).clamp(min=1e-30)).clamp(min=0)
        share = share.nan_to_num(0.0, 0.0, 0.0)
        bent = {n: gradient[n] + _each(share, g) * g for n, g in self.before.items()}
        return gradient | bent

    def keep(self, stay: Tensor) -> None:
        """The last step follows the patches."""
        self.before = {n: t[stay] for n, t in self.before.items()}


def _products(one: Stack, other: Stack) -> Tensor:
    """Inner product of each patch's weights, [q], over those that both have."""
    parts = [(one[n] * t).flatten(1).sum(1) for n, t in other.items() if n in one]
    return torch.stack(parts).sum(0)


def _each(factor: Tensor, weights: Tensor) -> Tensor:
    """A factor of each patch [q], to be multiplied with its weights [q,...]."""
    return factor.view(-1, *[1] * (weights.dim() - 1))


@define(eq=False)
class Adam:
    """Adam with its usual constants (arXiv 1412.6980), the paper's choice."""

    alone: ClassVar[int] = 0
    lr: float
    steps: int = 0
    mean: Stack = field(factory=dict)
    square: Stack = field(factory=dict)

    def step(self, stack: Stack, gradient: Stack, loss: Tensor) -> Stack:
        """See :class:`Optimiser`."""
        self.steps += 1
        result = dict(stack)
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
