"""Does a property hold? An attack, then cuts until every part of its box is proved.

Nothing is repaired. What is proved is forgotten at once, so that memory stays small however
many parts there are: only those that are open are kept.
"""

from __future__ import annotations

import enum
import time

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from advrepair.core.areas import UNBOUNDED, areas, least_rows, patch_weights
from advrepair.core.attacking import Advance
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box, concatenated
from advrepair.core.branching import BranchAndBound
from advrepair.core.graph import Network
from advrepair.core.interfaces import Attack, CompleteVerifier
from advrepair.core.patching import RepairedNetwork
from advrepair.core.refinement import loss_slope
from advrepair.core.refuting import Refuter
from advrepair.core.types import PropertySet, worst_margin

SHARES = 1000  # progress is told in thousandths of the volume
_AT_ONCE = 400  # pieces that are cut together
_FRONT = 50_000  # open pieces, from which on the newest are cut, not the worst
_STARTS = 64  # of an attack
_EVERY = 32  # rounds between two attacks, at most


class Outcome(enum.StrEnum):
    """What is known about a property."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


class Reason(enum.StrEnum):
    """Why nothing is known."""

    PIECES = "the budget of pieces is used up"
    TIMEOUT = "the time is up"
    FLOATS = "a piece with no float between its faces is not proved"
    ALLOCATOR = "outside the repaired regions the allocator chooses patches, which is not bounded"


@frozen(eq=False)
class Answer:
    """What is known about one property, and how.

    margin: if it holds, the least that was proved; if it is violated, that of the
    counterexample. share: of the volume of the box that is proved. pieces: that were bounded.
    x, y: a counterexample, [*S], and the outputs there, [K].
    """

    outcome: Outcome
    margin: float | None = None
    share: float = 0.0
    pieces: int = 0
    seconds: float = 0.0
    reason: Reason | None = None
    x: Tensor | None = None
    y: Tensor | None = None


@frozen(eq=False)
class Verification:
    """How properties of one function are verified.

    function: a Network, or the deployed function of a repair; bounder: of its network, and of
    its patches. pieces: of one property, at most.
    """

    function: Network | RepairedNetwork
    bounder: Bounder
    attack: Attack
    pieces: int
    seed: int = 0

    def answer(self, asked: PropertySet, deadline: float | None, advance: Advance) -> Answer:
        """Prove or refute one property; deadline: as time.perf_counter() tells it.

        Sound: it holds if all areas that cover its box are proved, each for the patch that is on
        there, by the rigorous bound of a piece or of both its halves. Running out of anything
        is no proof. It is violated if the function, run on the counterexample alone, breaks the
        demand; at level real also a rigorous bound at that point has to say so.
        Raises SoundnessError if an input breaks the demand where it is proved.
        """
        begin = time.perf_counter()
        search = _Search(self, asked, deadline, advance)
        return evolve(search.run(), seconds=time.perf_counter() - begin, pieces=search.bounded)


@frozen(eq=False)
class _Open:
    """Pieces that are not proved.

    patch: [W], on there. margin: proved so far, [W]. dim: where to cut, [W], -1 if nowhere.
    share: of the volume, [W].
    """

    box: Box
    patch: Tensor
    margin: Tensor
    dim: Tensor
    share: Tensor

    def __len__(self) -> int:
        return len(self.patch)

    def __getitem__(self, index: Tensor) -> _Open:
        parts = (self.patch, self.margin, self.dim, self.share)
        return _Open(self.box[index], *(part[index] for part in parts))

    def joined(self, other: _Open) -> _Open:
        """These and then the others."""
        names = ("patch", "margin", "dim", "share")
        parts = (torch.cat([getattr(each, name) for each in (self, other)]) for name in names)
        return _Open(concatenated(self.box, other.box), *parts)


@define(eq=False)
class _Search:
    """One property. pace: seconds that one piece took in the last round."""

    plan: Verification
    asked: PropertySet
    deadline: float | None
    advance: Advance
    bounded: int = 0
    share: float = 0.0
    least: float = float("inf")
    pace: float = 0.0
    refuter: Refuter = field(init=False)

    def __attrs_post_init__(self) -> None:
        plan = self.plan
        self.refuter = Refuter.of(plan.function, plan.bounder, plan.attack, self.asked, plan.seed)

    def run(self) -> Answer:
        """Attack, then cut, and attack where it is not proved, less and less often."""
        point = self.refuter.sampled()
        if point is not None:
            return self._violated(point)
        box, patch = areas(self.plan.function, self.asked.box)
        if bool((patch == UNBOUNDED).any()):
            return Answer(Outcome.UNKNOWN, reason=Reason.ALLOCATOR)
        if isinstance(self.plan.bounder.certifier, CompleteVerifier):
            return self._decided(box, patch, self.plan.bounder.certifier)
        open_, turn, next_ = self._bound(box, patch, _volumes(box, self.asked.box)), 0, 1
        while len(open_):
            point = self.refuter.at(open_.box[-2 * _AT_ONCE :].center)
            turn += 1
            if point is None and turn >= next_:
                point, next_ = self.refuter.near(self._starts(open_)), turn + min(turn, _EVERY)
            if point is not None:
                return self._violated(point)
            chosen = self._chosen(open_)
            reason = self._reason(open_, len(chosen))
            if reason is not None:
                point = self.refuter.near(self._starts(open_))
                return self._unknown(reason) if point is None else self._violated(point)
            rest = torch.ones(len(open_), dtype=torch.bool)
            rest[chosen] = False
            open_ = open_[rest.nonzero()[:, 0]].joined(self._halves(open_[chosen]))
        return Answer(Outcome.HOLDS, self.least, 1.0)

    def _decided(self, box: Box, patch: Tensor, verifier: CompleteVerifier) -> Answer:
        """Ask a complete verifier about the areas of one patch after those of another."""
        most, aim = min(self.plan.pieces, verifier.pieces), self.refuter
        search = BranchAndBound(self.plan.bounder, evolve(verifier, pieces=most))  # type: ignore[misc]
        for number in patch.unique().tolist():
            if self.deadline is not None and time.perf_counter() > self.deadline:
                return self._unknown(Reason.TIMEOUT)
            part = box[patch == number]
            weights = patch_weights(self.plan.function, self.plan.bounder, number)
            found = search.decide(aim.asked, part, weights, aim.model, aim.refutes)
            self.bounded += len(found.tree.owner)
            if found.counterexample is not None:
                return self._violated(found.counterexample)
            if found.leaves is None:
                return self._unknown(Reason.PIECES)
            self._proved(found.leaves.margin, _volumes(part, self.asked.box))
        return Answer(Outcome.HOLDS, self.least, 1.0)

    def _proved(self, margin: Tensor, share: Tensor) -> None:
        """Count what is proved."""
        before = int(SHARES * self.share)
        self.least = min([self.least, *margin.tolist()])
        self.share += float(share.sum())
        self.advance(min(SHARES, int(SHARES * self.share)) - before)

    def _unknown(self, reason: Reason) -> Answer:
        return Answer(Outcome.UNKNOWN, None, min(self.share, 1.0), reason=reason)

    def _violated(self, x: Tensor) -> Answer:
        y = self.refuter.outputs(x[None])
        margin = float(self.asked.margin(y))
        return Answer(Outcome.VIOLATED, margin, min(self.share, 1.0), x=x, y=y[0])

    def _reason(self, open_: _Open, cut: int) -> Reason | None:
        """Why to stop, if it is time to."""
        if self.deadline is not None and time.perf_counter() + cut * self.pace > self.deadline:
            return Reason.TIMEOUT
        if bool((open_.dim < 0).any()):  # it will never be proved
            return Reason.FLOATS
        return Reason.PIECES if self.bounded + 2 * cut > self.plan.pieces else None

    def _chosen(self, open_: _Open) -> Tensor:
        """The pieces to cut now: the worst, or the newest where too many wait."""
        most = _AT_ONCE
        if self.deadline is not None and self.pace:  # no round longer than a second or so
            most = max(1, min(most, int(1 / self.pace)))
        most = max(1, min(most, (self.plan.pieces - self.bounded) // 2, len(open_)))
        if len(open_) > _FRONT:
            return torch.arange(len(open_) - most, len(open_))
        return open_.margin.topk(most, largest=False).indices

    def _halves(self, parents: _Open) -> _Open:
        """Both halves of pieces, bounded; those that are not proved."""
        low, high = parents.box.split(parents.dim)
        both, share = concatenated(low, high), (parents.share / 2).repeat(2)
        return self._bound(both, parents.patch.repeat(2), share)

    def _bound(self, box: Box, patch: Tensor, share: Tensor) -> _Open:
        """The pieces that are not proved; the others are counted and forgotten.

        Sound: proved is a rigorous bound > 0, of N with the patch of the piece.
        """
        begin = time.perf_counter()
        found = []
        for index in torch.arange(len(box)).split(2 * _AT_ONCE):
            margin, score = self._margins(box[index], patch[index])
            good = margin > 0
            self._proved(margin[good], share[index[good]])
            left, part = index[~good], box[index[~good]]
            middle = part.center
            free = ((part.lower < middle) & (middle < part.upper)).flatten(1)
            score = score[~good].masked_fill(~free, -1.0)
            dim = torch.where(free.any(1), score.argmax(1), -1)
            found.append(_Open(part, patch[left], margin[~good], dim, share[left]))
        self.bounded += len(box)
        self.pace = (time.perf_counter() - begin) / max(1, len(box))
        open_ = found[0]
        for more in found[1:]:
            open_ = open_.joined(more)
        return open_

    def _margins(self, box: Box, patch: Tensor) -> tuple[Tensor, Tensor]:
        """Rigorous margins of pieces, [B], and what a cut of each input may gain, [B,S]."""
        least, rows = least_rows(self.plan.function, self.plan.bounder, self.asked, box, patch)
        group = self.asked.group.expand(len(box), -1)
        margin = worst_margin(least, group).nan_to_num(-torch.inf)
        if rows.influence is None:
            width = (box.upper.double() - box.lower.double()).flatten(1)
            slope = loss_slope(rows.A, least, group).abs().flatten(1).nan_to_num(0.0)
            return margin, (slope * width).where((slope > 0).any(1, keepdim=True), width)
        # The row that decides: its value is the margin.
        apart = (least.nan_to_num(-torch.inf) - margin[:, None]).abs()
        row = apart.masked_fill(group < 0, torch.inf).nan_to_num(torch.inf).argmin(1)
        return margin, rows.influence[torch.arange(len(box)), row].flatten(1).nan_to_num(0.0)

    def _starts(self, open_: _Open) -> Tensor:
        """Centres of the worst pieces, and of the newest: inputs to attack from, [N,*S]."""
        worst = open_.margin.topk(min(_STARTS, len(open_)), largest=False).indices
        return torch.cat([open_.box[worst].center, open_.box[-_STARTS:].center])


def _volumes(parts: Box, whole: Box) -> Tensor:
    """What parts have of the volume of a box, [B]; inputs that are fixed in it do not count."""
    wide = (whole.upper.double() - whole.lower.double()).flatten(1)
    own = (parts.upper.double() - parts.lower.double()).flatten(1)
    return torch.where(wide > 0, own / wide, 1.0).prod(1)
