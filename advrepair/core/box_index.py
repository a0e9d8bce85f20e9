"""An index of boxes that leaves few pairs to compare: the inner part of the membership test.

It asks up to 64 questions "is coordinate k at least t?" of both faces of every box, so that a box
becomes two numbers of 64 bits. The first questions also name *cells*: a box is listed in every
cell that it may reach, and a query looks into its own. A point is a box of zero width.

Why no pair is lost: boxes that share a point have ``lower <= high`` and ``low <= upper``. If lower
is at least t and high is not, or low is and upper is not, that is false, whatever t is. Only such
pairs are left out; every other is compared in full by :mod:`advrepair.core.membership`. A NaN is
at least nothing, and meets nothing there. So the questions decide how fast the answer comes, and
not what it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import frozen
from torch import Tensor

_BITS = 64  # questions
_SAMPLE, _COUPLES = 1024, 2048  # boxes, and couples of them, that choose the questions
_COORDINATES, _QUESTIONS = 128, 256  # to choose from: coordinates, and questions, about
_FADE = 1 / 16  # what a couple weighs after each question that tells it apart
_VAGUE = 0.25  # share of boxes on both sides of a question, if it is to name cells
_SPLITS = 6  # a box or a query on both sides of more of those is compared with everything
_ENTRIES = 8  # lists of each box, on average, and cells for each box, at most
_PAIRS = 2**18  # taken at a time, for bounded memory
_ONES = 0x0102040810204080  # times eight bytes 0 or 1: the highest byte has a bit for each

Pairs = tuple[Tensor, Tensor]  # numbers of queries and of boxes, [.] each


@frozen(eq=False)
class Questions:
    """Is a coordinate at least a threshold? coordinate, threshold: [64] each."""

    coordinate: Tensor
    threshold: Tensor

    def answer(self, x: Tensor) -> Tensor:
        """A bit for each question: int64 [N], of points [N,S]; NaN answers no."""
        asked = x.index_select(1, self.coordinate)
        if asked.dtype == self.threshold.dtype:
            passed = asked.ge_(self.threshold).bool()  # faster than a comparison to bool
        else:
            passed = asked >= self.threshold  # in the wider dtype, so exact
        bits = (passed.view(torch.int64) * _ONES) >> (_BITS - 8)
        return bits.to(torch.uint8).view(torch.int64)[:, 0]


@frozen(eq=False)
class Faces:
    """The answers of boxes' lower and of their upper faces, the latter inverted: [R] or [N].

    points: whether the two faces are one, so that each of them is on one side of a question.
    """

    low: Tensor
    beyond: Tensor
    points: bool

    @classmethod
    def of(cls, questions: Questions, lower: Tensor, upper: Tensor) -> Faces:
        """Of boxes [N,S]; the same tensor twice for points."""
        low = questions.answer(lower)
        high = low if lower is upper else questions.answer(upper)
        return cls(low, ~high, lower is upper)

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, index: Tensor) -> Faces:
        low, beyond = self.low.index_select(0, index), self.beyond.index_select(0, index)
        return Faces(low, beyond, self.points)

    def may_meet(self, other: Faces) -> Tensor:
        """Whether no question shows that they are apart: bool, after broadcasting."""
        return ((self.low & other.beyond) | (other.low & self.beyond)) == 0

    @property
    def vague(self) -> Tensor:
        """The questions whose both sides they may reach."""
        return ~(self.low ^ self.beyond)

    @property
    def lowest(self) -> Tensor:
        """The lowest cell of those that they may reach."""
        return self.low & ~self.beyond

    def cells(self, mask: int) -> Pairs:
        """Those that may reach a cell, by number, and the cell: each pair once."""
        owner = torch.arange(len(self), device=self.low.device)
        if self.points:
            return owner, self.low & mask
        cell, vague = self.lowest & mask, self.vague
        for bit in range(mask.bit_length()):
            also = ((vague.index_select(0, owner) >> bit) & 1).nonzero()[:, 0]
            owner = torch.cat([owner, owner[also]])
            cell = torch.cat([cell, cell[also] | (1 << bit)])
        return owner, cell

    def far(self, mask: int) -> Tensor:
        """Whether they may reach too many cells to be listed: bool."""
        vague, splits = self.vague, torch.zeros_like(self.low)
        for bit in range(mask.bit_length()):
            splits += (vague >> bit) & 1
        return splits > _SPLITS


@frozen(eq=False)
class Index:
    """Boxes by the answers to the questions.

    mask: bits that name a cell. begin, count: of each cell's list in entry. entry: numbers of
    boxes. wide: numbers of those in no list, because they may reach too many cells.
    """

    questions: Questions
    faces: Faces
    mask: int
    begin: Tensor
    count: Tensor
    entry: Tensor
    wide: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor) -> Index:
        """Of boxes with these faces, [R,S]; R and S at least 1."""
        questions = _choose(lower, upper)
        faces = Faces.of(questions, lower, upper)
        mask = _mask(faces)
        far = (
            faces.far(mask)
            if mask
            else torch.ones(len(faces), dtype=torch.bool, device=lower.device)
        )
        near = (~far).nonzero()[:, 0]
        owner, cell = faces[near].cells(mask)
        count = torch.bincount(cell, minlength=mask + 1)
        return cls(
            questions,
            faces,
            mask,
            count.cumsum(0) - count,
            count,
            near[owner[cell.argsort()]],
            far.nonzero()[:, 0],
        )

    @property
    def nbytes(self) -> int:
        """Its bytes, without the boxes themselves."""
        parts = (self.questions.coordinate, self.questions.threshold, self.faces.low)
        lists = (self.faces.beyond, self.begin, self.count, self.entry, self.wide)
        return sum(part.numel() * part.element_size() for part in (*parts, *lists))

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Pairs]:
        """Pairs of a query and a box, each once, among them all that meet.

        low, high: faces of the queries, [N,S]; the same tensor for points.
        """
        asked = Faces.of(self.questions, low, high)
        query = torch.arange(len(low), device=low.device)
        if not asked.points:
            far = asked.far(self.mask)
            boxes = torch.arange(len(self.faces), device=low.device)
            some = far.nonzero()[:, 0]
            for i, box in self._all_with(asked[some], boxes):
                yield some[i], box
            query = (~far).nonzero()[:, 0]
            asked = asked[query]
        if len(self.wide):
            for i, box in self._all_with(asked, self.wide):
                yield query[i], box
        if len(self.entry):
            for i, box in self._listed(asked):
                yield query[i], box

    def _all_with(self, asked: Faces, box: Tensor) -> Iterator[Pairs]:
        """Candidates among all pairs of queries and some boxes."""
        theirs, step = self.faces[box], max(1, _PAIRS // len(box))
        for start in range(0, len(asked), step):
            part = slice(start, start + step)
            ours = Faces(asked.low[part, None], asked.beyond[part, None], asked.points)
            i, j = ours.may_meet(theirs).nonzero().T
            yield i + start, box[j]

    def _listed(self, asked: Faces) -> Iterator[Pairs]:
        """Candidates in the lists of the cells that the queries may reach."""
        owner, cell = asked.cells(self.mask)
        count = self.count.index_select(0, cell)
        ends = count.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        if total > _PAIRS and len(asked) > 1:
            for some in torch.arange(len(asked), device=cell.device).chunk(2):
                for i, box in self._listed(asked[some]):
                    yield some[i], box
        elif total:
            slot = torch.repeat_interleave(count, output_size=total)
            shift = self.begin.index_select(0, cell) - (ends - count)
            place = torch.arange(total, device=slot.device) + shift.index_select(0, slot)
            box = self.entry.index_select(0, place)
            i = slot if asked.points else owner.index_select(0, slot)
            ours, theirs = asked[i], self.faces[box]
            keep = ours.may_meet(theirs)
            if not asked.points:
                # Once is enough: in the lowest of the cells that both may reach.
                common = (ours.lowest | theirs.lowest) & self.mask
                keep &= cell.index_select(0, slot) == common
            kept = keep.nonzero()[:, 0]
            if len(kept):
                yield i.index_select(0, kept), box.index_select(0, kept)


def _mask(faces: Faces) -> int:
    """How many questions name cells, as bits: as many as the lists stay short with."""
    count, vague = len(faces), faces.vague
    splits, bits = torch.zeros_like(vague), 0
    while 2 << bits <= _ENTRIES * count and bits < _BITS - 1:
        splits = splits + ((vague >> bits) & 1)
        near = splits[splits <= _SPLITS]
        entries, wide = int((torch.ones_like(near) << near).sum()), count - len(near)
        if entries > _ENTRIES * count or wide > 8 + count // _BITS:
            break
        bits += 1
    return (1 << bits) - 1


def _choose(lower: Tensor, upper: Tensor) -> Questions:
    """Questions that together tell most boxes apart, the most telling ones first."""
    count = min(len(lower), _SAMPLE)
    pick = torch.arange(count, device=lower.device) * len(lower) // count
    low, high = lower[pick], upper[pick]
    coordinate, threshold = _possible(low, high)
    below, above = low[:, coordinate] >= threshold, high[:, coordinate] >= threshold
    noise = torch.Generator().manual_seed(0)
    i, j = torch.randint(count, (2, _COUPLES), generator=noise).to(lower.device)
    apart = ((below[i] & ~above[j]) | (below[j] & ~above[i])).T.float()
    weight, chosen = apart.new_ones(_COUPLES), []
    for _ in range(min(_BITS, len(coordinate))):
        best = int((apart @ weight).argmax())
        chosen.append(best)
        weight = weight * (1 - (1 - _FADE) * apart[best])
        apart[best] = 0
    vague = (below != above).float().mean(0)[chosen] > _VAGUE
    order = torch.tensor(chosen, device=lower.device)[vague.to(torch.uint8).argsort(stable=True)]
    order = order.repeat(-(-_BITS // len(order)))[:_BITS]
    return Questions(coordinate[order], threshold[order])


def _possible(low: Tensor, high: Tensor) -> Pairs:
    """Questions to choose from: coordinates that vary most, thresholds between the boxes."""
    huge = torch.finfo(low.dtype).max
    middle = (
        low.double().clamp(-huge, huge) / 2 + high.double().clamp(-huge, huge) / 2
    ).nan_to_num()
    spread = middle.var(0, correction=0).nan_to_num()
    telling = spread.topk(min(_COORDINATES, low.shape[1])).indices
    steps = max(3, _QUESTIONS // len(telling))
    at = torch.arange(steps + 2, device=low.device) * (len(low) - 1) // (steps + 1)
    ranked = middle[:, telling].sort(0).values[at]
    # Halfway between two middles, so that boxes with the same middle are on one side.
    threshold = (ranked[:-2] / 2 + ranked[2:] / 2).flatten().to(low.dtype)
    return telling.repeat(steps), threshold
