"""Detectors: affine functions that are off in the boxes of a patch and on elsewhere.

What a patch needs to know to act in its boxes and nowhere else is whether an input lies
elsewhere. One affine function says so for nearly all images of a data set.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.bounding import padded
from advrepair.core.box import Box

STEPS = 40
INPUTS = 256  # that patches should leave alone
_AT_ONCE = 16  # patches, always so many: the last bits may depend on it
_WIDTH = 0.1  # what a unit of change inside the boxes costs, in units of the squared error
_ENOUGH, _WEIGHT = 0.8, 3.0  # where f should only not be large: how large, how much more it counts


@frozen(eq=False)
class Detectors:
    """f(x) = weight.x - reach, one for each patch: at most 0 on its boxes, about 1 elsewhere.

    weight: [q,S]. reach: [q], float64. dip: [q], as far as f can fall below 0 on the boxes.
    size: [q], what the absolute terms of f add up to on the boxes, at most.
    """

    weight: Tensor
    reach: Tensor
    dip: Tensor
    size: Tensor

    @classmethod
    def of(cls, weight: Tensor, box: Box) -> Detectors:
        """Detectors in a direction each, [q,S], that are off in the boxes, q times as many.

        Sound: weight.x over a box is greatest where every coordinate is at the face that the
        sign of its weight points to; the largest of these over a patch's boxes is its reach.
        Up to the rounding of float64: whoever relies on it proves the result.
        """
        shape = (len(weight), len(box) // len(weight))
        wide = weight.double().unsqueeze(1)
        lower, upper = (t.double().flatten(1).unflatten(0, shape) for t in (box.lower, box.upper))
        low, high = wide * lower, wide * upper
        reach = torch.maximum(low, high).sum(2).amax(1)
        dip = reach - torch.minimum(low, high).sum(2).amin(1)
        size = torch.maximum(low.abs(), high.abs()).sum(2).amax(1) + reach.abs()
        return cls(weight, reach, dip, size)

    def __call__(self, x: Tensor) -> Tensor:
        """f of every patch at every input, [q,n] from x [n,*S]."""
        return self.weight @ x.flatten(1).T - self.reach.to(x.dtype)[:, None]


def fitted(box: Box, patches: int, x: Tensor, free: Tensor) -> Detectors:
    """Detectors for patches, of least squared error from 1 at inputs outside their boxes.

    Accelerated projected gradient (Beck and Teboulle, 10.1137/080716542) on the parts of the
    weights above and below 0. Whatever the directions, all of them are off in the boxes: the
    search may stop anywhere.

    box: the boxes of every patch, as many each, one patch after the other. x: [n,*S]. free:
    bool [q,n], where f may be off as well, only not above 1.
    """
    each, parts = len(box) // patches, [x.new_zeros(0, box.lower[:1].numel())]
    for index in torch.arange(patches).split(_AT_ONCE):
        full = padded(index, _AT_ONCE)
        pieces = (each * full[:, None] + torch.arange(each)).flatten()
        up, down = _Fit.of(box[pieces], _AT_ONCE, x, free[full]).solved()
        parts.append((up - down)[: len(index)])
    return Detectors.of(torch.cat(parts), box)


@frozen(eq=False)
class _Fit:
    """The problem: parts of weights are pairs, [2,q,S], above and below 0, neither negative.

    lower, upper: faces, [q,B,S]. x: [n,S]. share: [q,n], of every input in a patch's error.
    free: bool [q,n]. length: of a step, [q]. width: [q,S], of the boxes.
    """

    lower: Tensor
    upper: Tensor
    x: Tensor
    share: Tensor
    free: Tensor
    length: Tensor
    width: Tensor

    @classmethod
    def of(cls, box: Box, patches: int, x: Tensor, free: Tensor) -> _Fit:
        shape = (patches, len(box) // patches)
        lower, upper = (t.flatten(1).unflatten(0, shape) for t in (box.lower, box.upper))
        share, x = _shares(box, patches, x), x.flatten(1)
        share = torch.where(free, _WEIGHT * share, share)
        total, mean, square = share.sum(1), share @ x, share @ x.square().sum(1)
        middle = (lower + upper).mul(mean.unsqueeze(1)).sum(2)
        faces = (lower.square().sum(2) + upper.square().sum(2)) * total[:, None]
        # The trace of the squares' matrix: no curvature is larger.
        most = (2 * square[:, None] - 2 * middle + faces).amax(1)
        length = 1 / most.clamp(min=torch.finfo(x.dtype).tiny)
        return cls(lower, upper, x, share, free, length, (upper - lower).amax(1) / 2)

    def solved(self) -> Tensor:
        """The parts after so many steps, [2,q,S]."""
        point = before = ahead = self.start()
        pace = 1.0
        for _ in range(STEPS):
            point = self.step(ahead)
            faster = (1 + (1 + 4 * pace * pace) ** 0.5) / 2
            ahead = point + (pace - 1) / faster * (point - before)
            before, pace = point, faster
        return before

    def start(self) -> Tensor:
        """From the boxes to the mean input, so long that the mean of f there is 1."""
        mean = self.share @ self.x / self.share.sum(1, keepdim=True).clamp(min=1e-30)
        parts = torch.stack([mean - self.upper.amax(1), self.lower.amin(1) - mean]).clamp(min=0)
        reach, _ = self._reach(parts)
        height = ((parts[0] - parts[1]) * mean).sum(1) - reach
        return parts * torch.where(height > 0, 1 / height, 0.0).nan_to_num(0.0, 0.0)[:, None]

    def step(self, parts: Tensor) -> Tensor:
        """One step down the gradient, and back to where no part is negative."""
        reach, best = self._reach(parts)
        value = (parts[0] - parts[1]) @ self.x.T - reach[:, None]
        error = torch.where(self.free, (_ENOUGH - value).clamp(max=0), 1 - value)
        error = self.share * error
        pull, total = error @ self.x, error.sum(1)[:, None]
        row = torch.arange(len(best))
        up = pull - total * self.upper[row, best] - _WIDTH * self.width
        down = total * self.lower[row, best] - pull - _WIDTH * self.width
        moved = parts + self.length[:, None] * torch.stack([up, down])
        return moved.clamp(min=0)

    def _reach(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """How large the linear part gets on the boxes at most, [q], and on which of them."""
        most = (parts[0].unsqueeze(1) * self.upper - parts[1].unsqueeze(1) * self.lower).sum(2)
        found = most.max(1)
        return found.values, found.indices


def _shares(box: Box, patches: int, x: Tensor) -> Tensor:
    """Equal shares of the inputs outside all boxes of a patch, 0 of those inside: [q,n]."""
    point, inside = box.meets(Box(x, x)).T
    weight = x.new_ones(patches, len(x))
    weight[inside // (len(box) // patches), point] = 0
    return weight / weight.sum(1, keepdim=True).clamp(min=1)
