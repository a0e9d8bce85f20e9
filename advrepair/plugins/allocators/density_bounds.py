"""How low the kernel allocator's difference of two classes can fall on a box: rigorous."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.rounding import UNIT64, gamma
from advrepair.plugins.allocators.density import Density, Fitted

_AT_ONCE = 64  # boxes
_NEAR = 15.0  # points whose share may be within exp(-15) of the largest are bounded closely
_UNIT = 2.0**-24  # of float32: what is deployed in float64 errs less
_LIBRARY = 8  # units in the last place that exp and log may be wrong by
_DEEPEST = 104.0  # exp of less is 0 in float32
_TINY = 2.0**-80  # added to sizes: their relative error then covers products that underflow
_FURTHEST = 2.0**60  # numbers of a kernel beyond it, or below its inverse, prove nothing
_LARGEST = 2.0**100  # sizes beyond it prove nothing: some order of summation might overflow


def least_difference(
    trust: float, box: Box, label: Tensor, margins: Tensor, fitted: Fitted
) -> Tensor:
    """Lower bounds of F_label - F_k, [B,K]; infinity for the label itself.

    box: B boxes. label: [B]. margins: lower bounds of N_label - N_k, [B,K].
    Sound: F is the sum of two terms, and each is bounded by itself. What the deployed arithmetic
    may err in either is subtracted: see :func:`_error`. A margin that is not finite says that N
    might overflow; the softmax of an infinity is NaN, so then nothing is known of any class. Nor
    is it of a box whose faces are not finite: features in it may have overflowed.
    """
    density = Density.of(fitted, torch.float64)
    own = _one_hot(label, margins.shape[1])
    first = least_probabilities(trust, margins.masked_fill(own, torch.inf))
    parts = [
        _Bounds(density, box[index], label[index]).least()
        for index in torch.arange(len(box)).split(_AT_ONCE)
    ]
    error = _error(density, box, trust)[:, None]
    found = first + density.weight * torch.cat(parts) - error
    unknown = (~margins.isfinite() & ~own).any(1, keepdim=True)
    for face in (box.lower, box.upper):
        unknown |= ~face.flatten(1).isfinite().all(1, keepdim=True)
    found = found.masked_fill(unknown, -torch.inf)
    found = found.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return found.masked_fill(own, torch.inf)


def least_probabilities(trust: float, margins: Tensor) -> Tensor:
    """Lower bounds of log((p_y + trust) / (p_k + trust)), [B,K], p the softmax of N.

    margins: lower bounds m_k of N_y - N_k, [B,K], infinity for the label.
    Sound: p_y = 1 / (sum over k of exp(N_k - N_y)) is at least P = 1 / (1 + sum exp(-m_k)),
    and p_k <= 1 - p_y. (p + trust) / (1 - p + trust) grows with p, so P may stand for p_y. If
    m_k > 0, p_k <= p_y exp(-m_k) too, and (p + trust) / (p exp(-m) + trust) grows with p.
    1 - P is computed as a quotient: as a difference it loses what is left where P is near 1.
    """
    ratio = (-margins).exp()
    others = ratio.sum(1, keepdim=True)
    p = (1 / (1 + others)).expand_as(margins)
    worst = ((p + trust) / (1 / (1 + 1 / others) + trust)).log()
    other = ((p + trust) / (p * ratio + trust)).log()
    found = torch.where(margins > 0, torch.maximum(worst, other), worst)
    return found.nan_to_num(-torch.inf) - 1e-12  # rounding of this very computation


def _one_hot(label: Tensor, outputs: int) -> Tensor:
    return torch.arange(outputs)[None] == label[:, None]


@frozen(eq=False)
class _Bounds:
    """Least differences of log densities on some boxes.

    The scores of points are affine in the ramp. For any shares p of the label's points,
    log sum exp of their scores is at least t = sum p_i score_i - sum p_i log p_i (Gibbs'
    inequality), which is affine too. So log density of class k, less that of the label, is at
    most log sum over j of exp(max over the box of score_j - t), and the largest value of
    an affine function on a box is taken in a corner.
    """

    density: Density
    box: Box
    label: Tensor

    def least(self) -> Tensor:
        """Of every class, [B,K]; 0 for the label itself."""
        low, high = (self.density.ramp(face.double()) for face in (self.box.lower, self.box.upper))
        middle, radius = (low + high) / 2 @ self.density.map, (high - low) / 2
        mean, constant = self._tangent(middle)
        blocks = self.density.blocks()
        found = [-self._most(*block, middle, radius, mean, constant) for block in blocks]
        return torch.stack(found, 1)

    def _tangent(self, middle: Tensor) -> tuple[Tensor, Tensor]:
        """t = 2 mean.phi / temperature + constant: [B,D] and [B]. middle: phi of centres."""
        mean, constant = torch.zeros_like(middle), middle.new_zeros(len(middle))
        for k, (points, square) in enumerate(self.density.blocks()):
            here = (self.label == k).nonzero()[:, 0]
            if len(here):
                share = self.density.scores(middle[here], points, square).softmax(1)
                mean[here] = share @ points
                own = share @ square / self.density.temperature
                constant[here] = torch.special.entr(share).sum(1) - own
        return mean, constant

    def _most(
        self,
        points: Tensor,
        square: Tensor,
        middle: Tensor,
        radius: Tensor,
        mean: Tensor,
        constant: Tensor,
    ) -> Tensor:
        """Upper bounds of log sum exp(score - t) over a class, [B]. points: [n,D]."""
        factor, to_features = 2 / self.density.temperature, self.density.map
        inside = self.density.scores(middle, points, square)
        inside = inside - (factor * (mean * middle).sum(1) + constant)[:, None]
        # The gradient of a score less t is map (phi_j - mean), and no longer than the norms say:
        # enough for points that hardly count.
        norm: Tensor = torch.linalg.matrix_norm(to_features, 2) * (1 + 1e-9)
        sizes = points.square().sum(1) + mean.square().sum(1, keepdim=True)
        apart = sizes - 2 * mean @ points.T + 2 * gamma(points.shape[1] + 8) * sizes
        reach = norm * radius.norm(dim=1, keepdim=True)
        most = inside + factor * (apart.clamp(min=0).sqrt() + 1e-4) * reach
        near = most > inside.amax(1, keepdim=True) - _NEAR
        for i in range(len(middle)):
            which = near[i].nonzero()[:, 0]
            gradient = (points[which] - mean[i]) @ to_features.T
            spread = gradient.abs_() @ radius[i]
            most[i, which] = torch.minimum(most[i, which], inside[i, which] + factor * spread)
        total, largest = most.logsumexp(1), most.abs().amax(1)
        found: Tensor = total + 1e-9 * (1 + largest)  # rounding of this very computation
        return found


def _error(density: Density, box: Box, trust: float) -> Tensor:
    """What the deployed computation of F_label - F_k may be off by on each box: [B], float64.

    Infinity where it may overflow, or a number of the kernel lose its relative accuracy. Sound
    for sums in any order, with products rounded or not; exp and log are taken to be right but
    for _LIBRARY units. ``2^-10`` more is for products of errors. For either class:

    - Every score errs by :meth:`_Sizes.score_error`, so a log sum does by no more.
    - A sum of n exponentials errs by gamma(n) and by its exponents' rounding: u times the mean of
      their absolute values, weighed by the exponentials. That is the entropy of the shares less
      the log of the sum, so at most log n. Its own log is at most log n, and errs by units of it.
    - A log sum is added to the largest score, that of all is subtracted, the result is multiplied
      by a rounded weight, and added to the rest: four roundings of a difference of log sums.
    - A probability errs by its sum and by its exponent, of which more than _DEEPEST gives 0.
    - Our own float64 errs by sums of n shares, which need not add up to 1, of S and of D terms.
    """
    sizes, classes, most = _Sizes.of(density, box), len(density.counts), max(density.counts)
    scores, logs = sizes.scores, math.log(sum(density.counts))
    apart = 2 * scores + 2 * logs + 2
    log_sum = sizes.score_error + gamma(most + _LIBRARY + 3, _UNIT)
    log_sum = log_sum + _UNIT * (scores + (_LIBRARY + 2) * logs + 1)
    ours = 8 * gamma(most + sizes.terms, UNIT64) * (apart + 1)
    kernel = 2 * density.weight * (log_sum + 4 * _UNIT * apart + ours) * (1 + 2**-10)
    base = 2 * gamma(int(_DEEPEST) + 2 * _LIBRARY + classes + 8, _UNIT)
    base += 2 * (_LIBRARY + 2) * _UNIT * (1 + abs(math.log(trust)))
    known = (density.scale, density.temperature, density.weight, trust)
    ordinary = all(1 / _FURTHEST <= each <= _FURTHEST for each in known)
    fits = (sizes.largest < _LARGEST) & (kernel < _LARGEST) & (density.weight * apart < _LARGEST)
    proper = fits & (ordinary and abs(density.low) <= _FURTHEST)
    found: Tensor = torch.where(proper, kernel + base, torch.inf)
    return found


@frozen(eq=False)
class _Sizes:
    """Sums of the absolute terms of scores on some boxes, [B], and what follows of them.

    terms: products and sums behind a score. scores: the sums. score_error: what a score, as
    deployed, is off by. largest: of all that is computed on the way, in any order.
    """

    terms: int
    scores: Tensor
    score_error: Tensor
    largest: Tensor

    @classmethod
    def of(cls, density: Density, box: Box) -> _Sizes:
        """Of all points of a kernel at once.

        Sound: features are sums of S products of ramp and map, scores of D products of features
        and points. A ramp is nonnegative and largest at the upper face; its two roundings and
        that of its scale are relative. That of its beginning is not: it moves every ramp by up
        to u |low| scale, however small the ramp is, but for inputs up to low, which stay at 0 as
        rounding keeps order.
        """
        size, ramp = density.map.abs(), density.ramp(box.upper.double())
        terms = len(size) + size.shape[1] + 16
        points = torch.stack([points.abs().amax(0) for points, _ in density.blocks()])
        most, factor = points.amax(0) + _TINY, 2 / density.temperature
        features = (ramp + _TINY) @ size + _TINY
        scores = factor * (features @ most) + density.square.max() / density.temperature + _TINY
        shift = 2 * _UNIT * (abs(density.low) + _TINY) * density.scale
        moved = factor * shift * ((ramp > 0).to(size.dtype) @ size @ most)
        largest = torch.maximum(scores, (1 + factor) * features.amax(1)) + moved
        return cls(terms, scores, gamma(terms, _UNIT) * scores + moved, largest)
