"""What is proved of balls around inputs that were not repaired: for F as deployed, and for N."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.areas import least_rows
from advrepair.core.attacking import Advance
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.graph import Network
from advrepair.core.interfaces import SmoothAllocator
from advrepair.core.patching import RepairedNetwork
from advrepair.core.types import PropertySet

_AT_ONCE = 256


def least_margins(
    function: Network | RepairedNetwork,
    bounder: Bounder,
    asked: PropertySet,
    advance: Advance = lambda more: None,
) -> Tensor:
    """Rigorous lower bounds of the least ``F_label - F_k`` over each ball, [P], in float64.

    bounder: of the network of function, and of its patches. asked: balls with a label, all of
    whose rows are such differences. -inf where nothing is known, and where there is no label.
    Sound: every point of a ball lies in a region or in none. What a region has of the ball is
    bounded with that region's patch on, whether or not an earlier region decides there. The
    rest is bounded as if it were the whole ball: by N where the allocator never changes
    anything, else by what a smooth allocator states; of any other allocator nothing is known.
    Where patches and allocators see a layer, both are bounded on proved faces of its features.
    """
    found = []
    for index in torch.arange(len(asked)).split(_AT_ONCE):
        part = asked[index]
        least = _Balls(function, bounder, part).least()
        found.append(least.masked_fill(part.label < 0, -torch.inf))
        advance(len(index))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


@frozen(eq=False)
class _Balls:
    """Some balls of one function."""

    function: Network | RepairedNetwork
    bounder: Bounder
    asked: PropertySet

    def least(self) -> Tensor:
        """[B], over all that a ball meets."""
        if isinstance(self.function, Network):
            return self._of_network(self.bounder.seen(self.asked.box)).amin(1)
        ball, regions = self.asked.box, self.function.regions
        which, region = regions.box.meets(ball).T
        # What each region has of a ball; if that is the ball itself, nothing of it lies outside.
        part = _shared(ball[which], regions.box[region])
        rest = (part.lower != ball.lower[which]) | (part.upper != ball.upper[which])
        outside = torch.ones(len(ball), dtype=torch.bool)
        outside[which[~rest.flatten(1).any(1)]] = False
        found = torch.full((len(ball),), torch.inf, dtype=torch.float64)
        index = outside.nonzero()[:, 0]
        if len(index):
            found[index] = _Balls(self.function, self.bounder, self.asked[index])._outside()
        for number, i in enumerate(which.tolist()):
            one, here = self.asked[torch.tensor([i])], part[torch.tensor([number])]
            patch = regions.patch[region[number : number + 1]]
            rows, _ = least_rows(self.function, self.bounder, one, here, patch)
            least = rows.min()
            known = torch.where(least.isfinite(), least, -torch.inf)
            found[i] = torch.minimum(found[i], known)
        return found

    def _outside(self) -> Tensor:
        """As if no region were there: [B]."""
        function = self.function
        allocator = function.allocator if isinstance(function, RepairedNetwork) else None
        seen = self.bounder.seen(self.asked.box)
        if isinstance(allocator, SmoothAllocator) and isinstance(function, RepairedNetwork):
            margins = self._of_network(seen)
            least = allocator.least(seen, self.asked.label, margins, function.centres)
            return least.nan_to_num(-torch.inf, torch.inf, -torch.inf).amin(1)
        if isinstance(function, RepairedNetwork) and function.allocator.most(function.centres):
            return torch.full((len(self.asked),), -torch.inf, dtype=torch.float64)
        return self._of_network(seen).amin(1)

    def _of_network(self, box: Box) -> Tensor:
        """Lower bounds of N_label - N_k, [B,K]; infinity for the label itself.

        box: of what patches see of the balls, :meth:`~advrepair.core.bounding.Bounder.seen`.
        -inf where nothing is known, not even that N does not overflow.
        """
        label = self.asked.label
        outputs = self.bounder.network.outputs
        eye = torch.eye(outputs, dtype=box.lower.dtype)
        C = eye[label][:, None] - eye[None]
        rows = self.bounder.base(box, C, C.new_zeros(C.shape[:2]), rigorous=True)
        own = torch.arange(outputs)[None] == label[:, None]
        least = rows.minimum_rigorous(box)
        least = torch.where(least.isfinite(), least, -torch.inf)
        return least.masked_fill(own, torch.inf)


def _shared(first: Box, second: Box) -> Box:
    """What two boxes that meet have in common, pair by pair."""
    return Box(torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper))
