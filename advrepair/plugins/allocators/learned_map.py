"""A linear map that is learned: inputs of a class lie together in it, under attack as well.

The rule is that of neighbourhood components analysis (Goldberger et al., NIPS 2004): every point
is to be given its class by the kernel of the others. Here it is moved by an attacker first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

Ramp = Callable[[Tensor], Tensor]
_OTHERS = 6000  # points that a query is compared with in a step
_QUERIES = 256
_MOVES = 2  # of the attacker, in a step
_RATE = 0.12  # of the entries' size
_WARM = 50  # steps until the full rate
_TEMPERATURE = 0.12  # over the median squared distance to the nearest of the others
_NONE = -1e9


@frozen(eq=False)
class Lesson:
    """What a map is learned from.

    x: [n,*S], label: [n], of every class. ramp: of inputs, [N,*S] to [N,S]. radius: that an
    attacker may move an input by, within clip.
    """

    x: Tensor
    label: Tensor
    ramp: Ramp
    radius: float
    clip: tuple[float, float] | None
    noise: torch.Generator


@frozen(eq=False)
class _Others:
    """Points as the map of this step sees them, class after class. itself: of each query, [N]."""

    phi: Tensor
    counts: list[int]
    itself: Tensor
    temperature: float

    def losses(self, phi: Tensor, label: Tensor) -> Tensor:
        """-log of the share that each query's class has among all but itself: [N]."""
        score = (2 * phi @ self.phi.T - self.phi.square().sum(1)) / self.temperature
        score = score.scatter(1, self.itself[:, None], _NONE)
        sums = torch.stack([part.logsumexp(1) for part in score.split(self.counts, 1)], 1)
        return F.cross_entropy(sums, label, reduction="none")


def learned_map(
    start: Tensor, lesson: Lesson, steps: int, tell: Callable[[float], None] = lambda share: None
) -> Tensor:
    """The map [S,D] after so many steps of Adam from start, or start if nothing can be learned.

    In every step some points are asked about, moved by up to the radius so that they look like
    another class, and compared with some others. The rate rises first and falls to 0 then.
    tell: told what share of the steps is done.
    """
    order = lesson.label.argsort(stable=True)
    label, classes = lesson.label[order], int(lesson.label.max()) + 1
    few = min(len(label), _OTHERS)
    temperature = _TEMPERATURE * _nearest(start, lesson, few)
    if not temperature > 0 or not steps:
        return start
    found = start.clone().requires_grad_(True)
    rate = _RATE * float(start.square().mean().sqrt())
    adam = torch.optim.Adam([found], lr=rate)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / _WARM) * (1 - step / steps)
        chosen = torch.randperm(len(label), generator=lesson.noise)[:few].sort().values
        itself = torch.randint(few, (min(_QUERIES, few),), generator=lesson.noise)
        counts = torch.bincount(label[chosen], minlength=classes).tolist()
        x, known = lesson.x[order[chosen]], label[chosen[itself]]
        others = _Others(lesson.ramp(x) @ found, counts, itself, temperature)
        moved = _attacked(found.detach(), x[itself], known, others, lesson)
        loss = others.losses(lesson.ramp(moved) @ found, known).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        tell((step + 1) / steps)
    return found.detach()


def _nearest(start: Tensor, lesson: Lesson, few: int) -> float:
    """Median squared distance of some points to the nearest other of few."""
    phi = lesson.ramp(lesson.x[:few]) @ start
    asked = phi[:_QUERIES]
    apart = torch.cdist(asked, phi).square()
    apart[torch.arange(len(asked)), torch.arange(len(asked))] = torch.inf
    return float(apart.amin(1).median())


def _attacked(
    to_features: Tensor, x: Tensor, label: Tensor, others: _Others, lesson: Lesson
) -> Tensor:
    """Points [N,*S], each moved by up to a random part of the radius."""
    each = (len(x),) + (1,) * (x.dim() - 1)
    reach = lesson.radius * torch.rand(each, generator=lesson.noise, dtype=x.dtype)
    place = 2 * torch.rand(x.shape, generator=lesson.noise, dtype=x.dtype) - 1
    least, most = lesson.clip or (-torch.inf, torch.inf)
    known = _Others(others.phi.detach(), others.counts, others.itself, others.temperature)
    moved = (x + reach * place).clamp(least, most)
    for _ in range(_MOVES):
        moved.requires_grad_(True)
        loss = known.losses(lesson.ramp(moved) @ to_features, label).sum()
        (slope,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + 2 / _MOVES * reach * slope.sign()
        moved = moved.clamp(x - reach, x + reach).clamp(least, most)
    return moved
