"""Branch and bound: pieces are cut until each is proved, or an input refutes the demand.

The function is N + P_j with the patch as it is stored. A piece is cut at an input, or by the
sign of the input of a ReLU of N or of P_j: units of N come first, then those of P_j.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import define, evolve, field, fields, frozen
from torch import Tensor, nn

from advrepair.core.bounding import Bounder, bytes_per_box, fitting, slopes_of
from advrepair.core.box import Box, concatenated
from advrepair.core.branches import Branch
from advrepair.core.graph import size
from advrepair.core.interfaces import BranchBoundFn, CompleteVerifier
from advrepair.core.layout import SplitTree
from advrepair.core.types import LinearBound, PropertySet, worst_margin

_AT_ONCE = 64  # pieces that are cut together
_CACHE_BYTES = 2**27
_RATE, _DECAY = 0.1, 0.95  # of the ascent on slopes and multipliers
_ARRAYS = 10  # of the size of the multipliers: gradients, the optimiser's state, gaps
_DEEPEST = 200  # nodes above a piece; the checker follows 256
_ENOUGH = 1e-3  # the margin at which it stops
_STEPS = 255  # a certificate stores slopes as k/255

Weights = Mapping[str, Tensor]


@frozen(eq=False)
class Bounded:
    """Bounds of N + P_j on the parts of L boxes that a branch leaves.

    rows: [L,M,*S]. least: their least values, [L,M]. gap: [L,M,U]. empty: [L]. slope: used,
    uint8 [L,U], if rigorous.
    """

    rows: LinearBound
    least: Tensor
    gap: Tensor
    empty: Tensor
    slope: Tensor | None


@frozen(eq=False)
class Leaves:
    """L pieces of one property, and how each was bounded.

    node: [L], in a tree of their own. phase: [L,U]. slope: uint8 [L,U]. multiplier: float32
    [L,M,U]. margin: rigorous, [L]. A: worst row over the input, [L,*S]. gap: of it, [L,U].
    """

    node: Tensor
    box: Box
    phase: Tensor
    slope: Tensor
    multiplier: Tensor
    margin: Tensor
    A: Tensor
    gap: Tensor

    def __len__(self) -> int:
        return len(self.node)

    def __getitem__(self, index: Tensor) -> Leaves:
        return Leaves(**{each.name: getattr(self, each.name)[index] for each in fields(Leaves)})

    def joined(self, other: Leaves) -> Leaves:
        """These and then the others."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(Leaves)}
        box = concatenated(*pairs.pop("box"))
        return Leaves(box=box, **{name: torch.cat(pair) for name, pair in pairs.items()})


@frozen(eq=False)
class Decision:
    """How a search ended: with leaves that are all proved, with a counterexample, or neither.

    tree: its first nodes are the pieces it began with. slope: uint8 [R,U], of every node.
    counterexample: [*S], in the format of the deployed function.
    """

    tree: SplitTree
    slope: Tensor
    leaves: Leaves | None = None
    counterexample: Tensor | None = None


@frozen(eq=False)
class BranchAndBound:
    """A complete verifier made ready for N and the patches of one repair."""

    bounder: Bounder
    verifier: CompleteVerifier
    _functions: dict[tuple[str, bool], BranchBoundFn] = field(factory=dict)
    _base: dict[str, Tensor] = field(init=False)

    def __attrs_post_init__(self) -> None:
        for rigorous in (False, True):
            rounding = self.bounder.rounding if rigorous else None
            for name in ("network", "template"):
                network = getattr(self.bounder, name)
                self._functions[name, rigorous] = self.verifier.prepare_branches(network, rounding)
        wide = {name: t.double() for name, t in self.bounder.network.tensors.items()}
        object.__setattr__(self, "_base", wide)

    @property
    def units(self) -> int:
        """U, of N and of a patch together."""
        return self.bounder.network.units + self.bounder.template.units

    def decide(
        self,
        demand: PropertySet,
        box: Box,
        patch: Weights,
        model: nn.Module,
        breaks: Callable[[Tensor], bool],
    ) -> Decision:
        """Prove a property on pieces of its box, or refute it there.

        demand: the property, in the format of model. box: the pieces. patch: weights of the
        one that serves it. model: the deployed function, by which counterexamples are looked
        for. breaks: has the last word about one, an input [*S].
        Sound: proved is what :meth:`bound` proves on every leaf, and leaves cover the pieces, as
        a cut leaves every input on one of its sides.
        """
        wide = {name: t.double() for name, t in patch.items()}
        return _Search(self, demand, wide, model, breaks).run(box)

    def bound(
        self, patch: Weights, box: Box, C: Tensor, d: Tensor, branch: Branch, rigorous: bool
    ) -> Bounded:
        """Bounds of ``C (N + P_j) + d``; see :meth:`Bounder.least` where rigorous.

        Sound: the signs of a branch are those of one and the same evaluation of N + P_j, on
        which both parts speak; their bounds add up.
        """
        n = self.bounder.network.units
        parts = (
            ("network", self._base, slice(0, n), d),
            ("template", patch, slice(n, None), torch.zeros_like(d)),
        )
        found = []
        for name, params, part, constant in parts:
            slope = None if branch.slope is None else branch.slope[:, part]
            own = Branch(branch.phase[:, part], slope, branch.multiplier[:, :, part])
            found.append(self._functions[name, rigorous](params, box, C, constant, own))
        base, added = found
        rows, slope = base.rows + added.rows, None
        if rigorous:
            least = self.bounder.least(base.rows, added.rows, C, box)
            used = (base.rows, self.bounder.network), (added.rows, self.bounder.template)
            slope = torch.cat([slopes_of(*each) for each in used], 1)
        else:
            least = rows.minimum(box)
        gap = torch.cat([base.gap, added.gap], 2)
        return Bounded(rows, least, gap, base.empty | added.empty, slope)


@define(eq=False)
class _Search:
    """One property: best first, many pieces at a time."""

    parent: BranchAndBound
    demand: PropertySet
    patch: Weights
    model: nn.Module
    breaks: Callable[[Tensor], bool]
    tree: SplitTree = field(init=False)
    slope: list[Tensor] = field(factory=list)
    _depth: list[int] = field(factory=list)
    _refuted: Tensor | None = None

    def run(self, box: Box) -> Decision:
        """Cut until every piece is proved, one holds a counterexample, or there are too many."""
        self.tree, self._depth = SplitTree.roots(len(box)), [0] * len(box)
        most = self._at_once()
        first = torch.arange(len(box))
        shape = (len(box), self.demand.C.shape[1], self.parent.units)
        phase = torch.zeros(shape[0], shape[2], dtype=torch.int8)
        open_, done = None, []
        for index in first.split(most):
            none = torch.zeros(len(index), *shape[1:], dtype=torch.float32)
            found = self._bounded(index, box[index], phase[index], None, none)
            open_ = found if open_ is None else open_.joined(found)
        while open_ is not None and self._refuted is None:
            proved = open_.margin > 0
            done.append(open_[proved.nonzero()[:, 0]])
            open_ = open_[(~proved).nonzero()[:, 0]]
            room = self._most() - len(open_) - sum(map(len, done))
            if not len(open_) or room <= 0:
                break
            order = open_.margin.nan_to_num(-torch.inf).argsort(stable=True)
            now = min(most, room)
            halves = self._halves(open_[order[:now]])
            if halves is None:
                break
            open_ = open_[order[now:]].joined(halves)
        whole = torch.cat(self.slope)
        if self._refuted is not None:
            return Decision(self.tree, whole, counterexample=self._refuted)
        if open_ is not None and len(open_):
            return Decision(self.tree, whole)
        leaves = done[0]
        for more in done[1:]:
            leaves = leaves.joined(more)
        return Decision(self.tree, whole, leaves)

    def _at_once(self) -> int:
        """Pieces bounded together: as many as stay near the cache, within the memory."""
        bounder, rows = self.parent.bounder, self.demand.C.shape[1]
        each = bytes_per_box(bounder.network, rows) + _ARRAYS * 8 * rows * self.parent.units
        most = max(2, min(_AT_ONCE, _CACHE_BYTES // max(1, each)))
        return fitting(most, each, bounder.memory)

    def _most(self) -> int:
        """Pieces at most: those asked for, or as many as the memory holds."""
        each = 4 * self.demand.C.shape[1] * self.parent.units + 1
        return min(self.parent.verifier.pieces, self.parent.bounder.memory // each)

    def _halves(self, pieces: Leaves) -> Leaves | None:
        """Both parts of every piece, bounded; None if a cut leads nowhere, or too deep."""
        box, inputs = pieces.box.to(torch.float64), size(pieces.box.input_shape)
        where = self.parent.verifier.cut(box, pieces.A, pieces.gap)
        by_sign = where >= inputs
        dim = where.clamp(max=inputs - 1)
        low, high = pieces.box.split(dim)
        sides = []
        for sign, half in ((-1, low), (1, high)):
            shape = (-1, *[1] * (half.lower.dim() - 1))
            keep = by_sign.view(shape)
            faces = Box(
                torch.where(keep, pieces.box.lower, half.lower),
                torch.where(keep, pieces.box.upper, half.upper),
            )
            phase = pieces.phase.clone()
            rows = by_sign.nonzero()[:, 0]
            phase[rows, where[rows] - inputs] = sign
            sides.append((faces, phase))
        width = (low.upper != pieces.box.upper) & (high.lower != pieces.box.lower)
        stuck = ~by_sign & ~width.flatten(1).any(1)
        if bool(stuck.any()) or max(self._depth[n] for n in pieces.node.tolist()) >= _DEEPEST:
            return None
        cut = torch.where(by_sign, 0.0, low.upper.flatten(1).gather(1, dim[:, None])[:, 0].double())
        pairs = [
            self.tree.bisect(int(node), int(place), float(at))
            for node, place, at in zip(pieces.node, where, cut, strict=True)
        ]
        for node in pieces.node.tolist():
            self._depth += [self._depth[node] + 1] * 2
        # The tree counts the halves of a node one after the other, and so do the pieces.
        twice = torch.arange(len(pieces)).repeat_interleave(2)
        mixed = [
            torch.stack(both, 1).flatten(0, 1)
            for both in zip(*((f.lower, f.upper, p) for f, p in sides), strict=True)
        ]
        return self._bounded(
            torch.tensor(pairs).flatten(),
            Box(mixed[0], mixed[1]),
            mixed[2],
            pieces.slope[twice],
            pieces.multiplier[twice],
        )

    def _bounded(
        self, node: Tensor, box: Box, phase: Tensor, slope: Tensor | None, multiplier: Tensor
    ) -> Leaves:
        """Bound pieces, with their own slopes where no sign is known; try their worst points."""
        count = len(node)
        C = self.demand.C.double().expand(count, -1, -1)
        d, group = self.demand.d.double().expand(count, -1), self.demand.group.expand(count, -1)
        wide = box.to(torch.float64)
        branch = Branch(phase, None, multiplier.double())
        if slope is not None and bool((phase != 0).any()):
            branch = self._ascended(wide, C, d, group, evolve(branch, slope=slope / _STEPS))
        with torch.no_grad():
            found = self.parent.bound(self.patch, wide, C, d, branch, rigorous=True)
        margin = worst_margin(found.least, group)
        margin = torch.where(found.empty, torch.inf, margin.nan_to_num(-torch.inf))
        row = self._worst_row(found.least, group)
        every = torch.arange(count)
        A = found.rows.A[every, row]
        assert found.slope is not None
        self.slope.append(found.slope)
        self._try(box, A, margin)
        return Leaves(
            node, box, phase, found.slope, branch.multiplier.float(), margin, A,
            found.gap[every, row],
        )  # fmt: skip

    def _worst_row(self, least: Tensor, group: Tensor) -> Tensor:
        """The best row of the worst group of each piece: [L]."""
        worst = worst_margin(least, group)
        distance = (least - worst[:, None]).abs().masked_fill(group < 0, torch.inf)
        return distance.nan_to_num(torch.inf).argmin(1)

    def _try(self, box: Box, A: Tensor, margin: Tensor) -> None:
        """Run the deployed function where the worst row is lowest."""
        if self._refuted is not None:
            return
        with torch.no_grad():
            x = torch.where(A > 0, box.lower, box.upper)[~(margin > 0)]
            if not len(x):
                return
            x = x.to(self.demand.box.lower.dtype)
            bad = self.demand[torch.zeros(len(x), dtype=torch.long)].violated(self.model(x))
        for point in x[bad]:
            if self.breaks(point):
                self._refuted = point
                return

    def _ascended(self, box: Box, C: Tensor, d: Tensor, group: Tensor, start: Branch) -> Branch:
        """Slopes and multipliers with a higher margin, as a certificate can store them.

        Whatever comes out is sound: slopes lie in [0, 1] and multipliers are not negative.
        """
        assert start.slope is not None
        slope = start.slope.clone().requires_grad_()
        multiplier = start.multiplier.clone().requires_grad_()
        best = torch.full((len(box),), -torch.inf, dtype=torch.float64)
        kept = [slope.detach().clone(), multiplier.detach().clone()]
        optimiser = torch.optim.Adam([slope, multiplier], lr=_RATE, maximize=True)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, _DECAY)
        for _ in range(self.parent.verifier.steps + 1):
            branch = Branch(start.phase, slope, multiplier)
            found = self.parent.bound(self.patch, box, C, d, branch, rigorous=False)
            worst = worst_margin(found.least, group).detach()
            better = worst > best
            best = torch.where(better, worst, best)
            for keep, now in zip(kept, (slope, multiplier), strict=True):
                keep[better] = now.detach()[better]
            if bool(((best > _ENOUGH) | found.empty).all()):
                break
            optimiser.zero_grad()
            # Every row, not the best of a group only: another one may become the best.
            found.least.clamp(max=_ENOUGH).sum().backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                slope.clamp_(0, 1)
                multiplier.clamp_(min=0)
        known = (start.phase != 0).unsqueeze(1)
        stored = torch.where(known, kept[1].float().double(), 0.0)
        return Branch(start.phase, (kept[0] * _STEPS).round() / _STEPS, stored)
