"""What N proves alone: boxes are cut where it does not, before any patch is thought of.

Pieces that are proved here need no patch, so that a repair touches only what is left open.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from advrepair.core.attacking import Advance
from advrepair.core.bounding import Bounder, joined
from advrepair.core.box import Box, concatenated
from advrepair.core.interfaces import Refiner
from advrepair.core.layout import Pieces, SplitTree
from advrepair.core.preserving import Decisions, needed, preserving_constant
from advrepair.core.refinement import loss_slope
from advrepair.core.sections import Screening
from advrepair.core.types import LinearBound, PropertySet, SplitPlan, worst_margin

_FIRST = 1 / 3  # of the pieces are spent on the volume, the rest on the worst of what is open


@define(eq=False)
class _Parts:
    """Pieces with their rows. least: lower bounds of rows, [W,M]. slope: [W,*S].

    again: bool [W], cut from a piece that was proved, though with nothing to spare.
    """

    box: Box
    owner: Tensor
    node: Tensor
    rows: LinearBound
    least: Tensor
    slope: Tensor
    again: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, index: Tensor) -> _Parts:
        return _Parts(
            self.box[index],
            self.owner[index],
            self.node[index],
            self.rows[index],
            self.least[index],
            self.slope[index],
            self.again[index],
        )


def _gathered(parts: list[_Parts]) -> _Parts:
    """Some parts after the others."""
    names = ("owner", "node", "least", "slope", "again")
    owner, node, least, slope, again = (torch.cat([getattr(p, n) for p in parts]) for n in names)
    faces = (torch.cat([getattr(p.box, n) for p in parts]) for n in ("lower", "upper"))
    return _Parts(Box(*faces), owner, node, joined([p.rows for p in parts]), least, slope, again)


@frozen(eq=False)
class Screen:
    """One screening of some properties.

    samples: of N's outputs in the boxes of properties, and the inputs they belong to.
    """

    properties: PropertySet
    bounder: Bounder
    refiner: Refiner
    budget: Screening
    samples: tuple[Tensor, Decisions]
    advance: Advance
    _history: list[tuple[int, float, float]] = field(factory=list)
    _begin: float = field(factory=time.perf_counter)

    def run(self, which: Tensor, most: int = 0) -> Pieces:
        """Cut the boxes of some properties, which: [n], where N is not proved.

        most: pieces, at most; those of the budget if 0.

        Sound: what counts as proved here is the rigorous bound that the certificate states,
        and the pieces cover the boxes, as only cuts make them.
        """
        if not len(which):
            return Pieces.roots(self.properties)
        tree = SplitTree.roots(len(self.properties))
        every = torch.arange(len(self.properties))
        plain = every[~torch.isin(every, which)]
        parts = [plain] if len(plain) else []
        done = [self._bounded(self.properties.box[index], index, index) for index in parts]
        open_ = self._bounded(self.properties.box[which], which, which)
        most = most or self.budget.pieces
        few = int(_FIRST * most)
        open_ = self._cut(open_, done, tree, few, self._oldest)
        open_ = self._cut(open_, done, tree, most, self._neediest(open_))
        whole = _gathered([*done, open_])
        left = (~(self._worst(whole) > 0)).nonzero()[:, 0]
        rows = evolve(whole.rows, influence=None)
        story = tuple(self._history)
        return Pieces(tree, whole.box, whole.owner, whole.node, left, rows, story)

    def _cut(
        self,
        open_: _Parts,
        done: list[_Parts],
        tree: SplitTree,
        most: int,
        choose: Callable[[_Parts, int], SplitPlan],
    ) -> _Parts:
        """Cut pieces until none is open or there are so many; what is proved goes to done."""
        while True:
            good = (self._margin(open_) > 0) | (open_.again & (self._worst(open_) > 0))
            done.append(open_[good.nonzero()[:, 0]])
            self.advance(int(good.sum()))
            open_ = open_[(~good).nonzero()[:, 0]]
            pieces = sum(map(len, done)) + len(open_)
            spent = time.perf_counter() - self._begin
            self._history.append((pieces, 1 - self._share(open_), spent))
            room = most - pieces
            plan = choose(open_, min(room, self.budget.split)) if room > 0 and len(open_) else None
            if plan is None or not len(plan.piece):
                return open_
            rest = torch.ones(len(open_), dtype=torch.bool)
            rest[plan.piece] = False
            halves = self._halves(open_[plan.piece], plan.dim, tree)
            open_ = _gathered([open_[rest.nonzero()[:, 0]], halves])

    def _share(self, parts: _Parts) -> float:
        """Volume of pieces, each as a share of its box, over the number of boxes."""
        whole = self.properties.box[parts.owner]
        width = (whole.upper.double() - whole.lower.double()).flatten(1)
        part = (parts.box.upper.double() - parts.box.lower.double()).flatten(1)
        share = torch.where(width > 0, part / width.clamp(min=1e-300), 1.0).prod(1)
        return float(share.sum()) / max(1, len(self.properties))

    def _oldest(self, open_: _Parts, budget: int) -> SplitPlan:
        """The pieces that wait longest: halves are equal in volume, so these are the largest."""
        first = open_[torch.arange(min(budget, len(open_)))]
        margin = self._margin(first)
        return self.refiner.choose(first.box, margin, first.slope, budget)

    def _neediest(self, open_: _Parts) -> Callable[[_Parts, int], SplitPlan]:
        """The pieces for which a constant patch would have to be largest."""
        x, decisions = self.samples
        rates = torch.zeros(*self.properties.d.shape, dtype=torch.float64)
        for i in open_.owner.unique().tolist():
            part = open_[(open_.owner == i).nonzero()[:, 0]]
            inside = decisions.inside(x, part.box)
            value = preserving_constant(part.least, *self._demand(part.owner), inside, 0.0)
            if value is not None:
                rates[i] = self.properties.C[i].double() @ (value / value.abs().max())

        def choose(open_: _Parts, budget: int) -> SplitPlan:
            group, rate = self.properties.group[open_.owner], rates[open_.owner]
            need = needed(open_.least, rate, group, 0.0)
            need = torch.where(torch.isinf(need), 0.0, need).amax(1)
            margin = torch.where(need > 0, -need, self._margin(open_))
            return self.refiner.choose(open_.box, margin, open_.slope, -(-budget // 2))

        return choose

    def _margin(self, parts: _Parts) -> Tensor:
        """Margins beyond what a proof should have to spare: [W]."""
        return (self._worst(parts) - parts.rows.spare()).nan_to_num(-torch.inf)

    def _worst(self, parts: _Parts) -> Tensor:
        return worst_margin(parts.least, self.properties.group[parts.owner])

    def _demand(self, owner: Tensor) -> tuple[Tensor, Tensor]:
        return self.properties.C[owner], self.properties.group[owner]

    def _halves(self, parents: _Parts, dim: Tensor, tree: SplitTree) -> _Parts:
        """Both halves of pieces."""
        low, high = parents.box.split(dim)
        cut = low.upper.flatten(1).gather(1, dim[:, None])[:, 0].double().tolist()
        pairs = [
            tree.bisect(*each)
            for each in zip(parents.node.tolist(), dim.tolist(), cut, strict=True)
        ]
        node = torch.tensor(pairs).T.flatten()
        again = (self._worst(parents) > 0).repeat(2)
        return self._bounded(concatenated(low, high), parents.owner.repeat(2), node, again)

    def _bounded(
        self, box: Box, owner: Tensor, node: Tensor, again: Tensor | None = None
    ) -> _Parts:
        """N's rows on boxes; slope: how much the row that matters varies over each input."""
        C, group = self._demand(owner)
        rows = self.bounder.base(box, C, self.properties.d[owner], rigorous=True)
        least = rows.minimum_rigorous(box)
        if rows.influence is None:
            slope = loss_slope(rows.A, least, group)
        else:
            worst = worst_margin(least, group).nan_to_num(-torch.inf)
            distance = (least.nan_to_num(-torch.inf) - worst[:, None]).abs()
            row = distance.masked_fill(group < 0, torch.inf).nan_to_num(torch.inf).argmin(1)
            width = (box.upper.double() - box.lower.double()).clamp(min=1e-300)
            slope = rows.influence[torch.arange(len(owner)), row] / width
        again = torch.zeros(len(owner), dtype=torch.bool) if again is None else again
        return _Parts(box, owner, node, rows, least, slope, again)
