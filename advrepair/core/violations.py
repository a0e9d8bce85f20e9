"""Inputs of a region that break its demand: is there one, and then many of them.

Only pieces that are not proved can hold any, so they are looked for there alone.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.attacking import Advance, generator, perturb
from advrepair.core.box import Box
from advrepair.core.interfaces import Attack
from advrepair.core.types import PropertySet

_STARTS = 256  # open pieces whose middle an attack starts from
_AT_ONCE = 2**14
_DRAWS = 40  # batches drawn in the open pieces
_WALKS = 400  # batches of steps from what was found
_DRAWN, _POPULATION, _GENERATIONS = 20_000, 1000, 60  # of differential evolution
_SCALE, _JITTER = 0.7, 1e-4
_SHORTEST = 2.0**-12  # step, as a share of the region's width


@frozen(eq=False)
class Violations:
    """Points that break properties, distinct ones. x: [E,*S]. owner: [E], the property."""

    x: Tensor
    owner: Tensor


def find_violations(
    network: nn.Module,
    properties: PropertySet,
    which: Tensor,
    open_: Box,
    owner: Tensor,
    attack: Attack,
    count: int,
    seed: int,
    advance: Advance,
) -> Violations:
    """Up to count points for each of some properties, which: [n]; none where none is found.

    open_: pieces that may hold any, owner: the property of each. Points lie inside the exact
    region, of which the box is the least that floats can say: one float away from its faces.
    """
    found: list[Tensor] = []
    owners: list[Tensor] = []
    for i in which.tolist():
        asked = properties[torch.tensor([i])]
        pieces = open_[(owner == i).nonzero()[:, 0]]
        search = _Search(network, asked, inner(asked.box), generator(seed, 5 + 1000 * i))
        x = search.attacked(pieces, attack)
        if len(pieces) and not len(x):
            x = search.evolved(pieces)
        if len(x):
            x = search.many(pieces, x, count)
        found.append(x[:count])
        owners.append(torch.full((len(found[-1]),), i))
        advance(1)
    none = properties.center[:0]
    return Violations(torch.cat([none, *found]), torch.cat([torch.zeros(0).long(), *owners]))


def inner(box: Box) -> Box:
    """Boxes without their faces, so that rounding outward is undone; thin ones as they are."""
    lower = box.lower.nextafter(torch.full_like(box.lower, torch.inf))
    upper = box.upper.nextafter(torch.full_like(box.upper, -torch.inf))
    thin = lower > upper
    return Box(torch.where(thin, box.lower, lower), torch.where(thin, box.upper, upper))


@frozen(eq=False)
class _Search:
    """One property. box: where points count, [1,*S]."""

    network: nn.Module
    asked: PropertySet
    box: Box
    noise: torch.Generator

    def attacked(self, pieces: Box, attack: Attack) -> Tensor:
        """What the attack finds from the middles of pieces, in the whole region."""
        if not len(pieces):
            return self.asked.center[:0]
        chosen = torch.randperm(len(pieces), generator=self.noise)[:_STARTS]
        start = self.box.clamp(pieces[chosen].center)
        asked = self.asked[torch.zeros(len(start), dtype=torch.long)]
        # The attack keeps to the box of the property, faces included.
        x = self.box.clamp(perturb(attack, self.network, asked, start, self.noise))
        return self._broken(torch.cat([x, start]))

    def evolved(self, pieces: Box) -> Tensor:
        """Where a population of points ends up that keeps its lowest margins.

        Differential evolution (Storn and Price, 1997): finds the narrow valleys that a descent
        along the gradient leaves.
        """
        drawn = self.box.clamp(self._uniform(pieces[self._by_volume(pieces, _DRAWN)]))
        x, margin = self._best(drawn, self._margin(drawn))
        width = self.box.upper - self.box.lower
        for _ in range(_GENERATIONS):
            if not bool((margin > 0).all()):
                break
            a, b, other = torch.randint(len(x), (3, len(x)), generator=self.noise)
            shape = (len(x), *[1] * (x.dim() - 1))
            draw = torch.rand((2, *shape), generator=self.noise)
            base = torch.where(draw[0] < 0.5, x, x[other // 10])
            jitter = _JITTER * torch.randn(x.shape, generator=self.noise)
            step = _SCALE * draw[1] * (x[a] - x[b]) + jitter.to(x.dtype) * width
            moved = self.box.clamp((base + step).to(x.dtype))
            found = self._margin(moved)
            better = ~(found >= margin)
            x = torch.where(better.view(shape), moved, x)
            x, margin = self._best(x, torch.where(better, found, margin))
        return x[~(margin > 0)]

    def _best(self, x: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        """The points of the lowest margins, lowest first."""
        order = margin.nan_to_num(-torch.inf).argsort(stable=True)[:_POPULATION]
        return x[order], margin[order]

    def many(self, pieces: Box, known: Tensor, count: int) -> Tensor:
        """count points: drawn evenly in the open pieces, and by walking where those are rare."""
        drawn = known[:0]
        for draw in range(1, _DRAWS + 1):
            which = self._by_volume(pieces, _AT_ONCE)
            new = self._broken(self.box.clamp(self._uniform(pieces[which])))
            drawn = _distinct(torch.cat([drawn, new]))
            if len(drawn) >= count:
                return drawn
            if len(drawn) * _DRAWS < count * draw:  # at this rate they would not do
                break
        return self._walked(_distinct(torch.cat([known, drawn])), count)

    def _walked(self, known: Tensor, count: int) -> Tensor:
        """Random steps of every length from points that break the demand."""
        width = self.box.upper - self.box.lower
        longest = torch.tensor(_SHORTEST).log2()
        for _ in range(_WALKS):
            if len(known) >= count:
                break
            which = torch.randint(len(known), (_AT_ONCE // 4,), generator=self.noise)
            here = known[which]
            shape = (len(here), *[1] * (here.dim() - 1))
            length = torch.exp2(longest * torch.rand(shape, generator=self.noise))
            step = 2 * torch.rand(here.shape, generator=self.noise) - 1
            new = self.box.clamp(here + (step * length).to(here.dtype) * width)
            known = _distinct(torch.cat([known, self._broken(new)]))
        return known

    def _by_volume(self, pieces: Box, count: int) -> Tensor:
        """Pieces drawn with a chance that goes with their volume: [count]."""
        width = (pieces.upper.double() - pieces.lower.double()).flatten(1)
        # Relative volumes; a width of zero counts for nothing, as it is that of every piece.
        volume = torch.where(width > 0, width.log(), 0.0).sum(1)
        weight = (volume - volume.max()).exp()
        return torch.multinomial(weight, count, replacement=True, generator=self.noise)

    def _margin(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            outputs = self.network(x)
        return self.asked[torch.zeros(len(x), dtype=torch.long)].margin(outputs)

    def _uniform(self, box: Box) -> Tensor:
        share = torch.rand(box.lower.shape, generator=self.noise, dtype=box.lower.dtype)
        return box.lower + share * (box.upper - box.lower)

    def _broken(self, x: Tensor) -> Tensor:
        return x[~(self._margin(x) > 0)]


def _distinct(x: Tensor) -> Tensor:
    """The rows that were not there before, in their order."""
    flat = x.flatten(1)
    _, which = flat.unique(dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1 if len(which) else 0,), len(x))
    first = first.scatter_reduce(0, which, torch.arange(len(x)), "amin")
    return x[first.sort().values]
