"""The cover: every box in pieces, which patch is on in each, and the shards this makes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.attacking import Problem
from advrepair.core.bounding import Bounder, joined, slopes_of
from advrepair.core.box import Box, concatenated
from advrepair.core.graph import Network
from advrepair.core.interfaces import Indicator
from advrepair.core.layout import Layout, Pieces, SplitTree, lay_out
from advrepair.core.patching import patch_identifiers
from advrepair.core.shards import Outcome, Shard, packed
from advrepair.core.types import Assignment, LinearBound, PropertySet, worst_margin

_AT_ONCE = 256  # pieces whose rows are held


@frozen(eq=False)
class Cover:
    """Every box in pieces, and which patch is on in each.

    box: W pieces. owner, node: [W], property and leaf in the tree. patch: [W], -1 for none.
    own: [W], N's own margin, -inf where nobody asked. margin: [W], what is claimed where no
    patch is on, -inf elsewhere. slope: uint8 [R,U], N's slopes in those proofs. shared: bool
    [W], part of a region of another property. proof: N's rows, where boxes were cut before.
    order: [Q], the patches sorted by what they serve, so that no result depends on the order
    of the data.
    """

    properties: PropertySet
    assignment: Assignment
    layout: Layout
    tree: SplitTree
    box: Box
    owner: Tensor
    node: Tensor
    patch: Tensor
    own: Tensor
    margin: Tensor
    slope: Tensor
    shared: Tensor
    proof: LinearBound | None
    order: Tensor
    identifiers: tuple[str, ...]

    def shards(self, template: Network) -> Shards:
        """The parts that have nothing to do with each other."""
        by_patch = torch.argsort(self.patch, stable=True)
        counts = torch.bincount(self.patch[self.patch >= 0], minlength=len(self.order))
        ends = counts.cumsum(0) + int((self.patch < 0).sum())
        runs = packed(counts[self.order].tolist(), template, self.properties.C.shape[1])
        patches = [self.order[run] for run in runs]
        pieces = [
            torch.cat([by_patch[int(ends[p] - counts[p]) : int(ends[p])] for p in some])
            for some in (part.tolist() for part in patches)
        ]
        return Shards(self, tuple(patches), tuple(pieces))


@frozen(eq=False)
class Shards:
    """The shards of a cover, each made when it is asked for.

    patches: of each shard, [q]. pieces: of each shard, [w], those of a patch side by side.
    """

    cover: Cover
    patches: tuple[Tensor, ...]
    pieces: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.patches)

    def __iter__(self) -> Iterator[Shard]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Shard:
        cover, patches, pieces = self.cover, self.patches[index], self.pieces[index]
        owner = cover.owner[pieces]
        served = owner.unique()
        slot = torch.zeros(len(cover.order), dtype=torch.long)
        slot[patches] = torch.arange(len(patches))
        return Shard(
            cover.properties[served],
            cover.box[pieces],
            torch.searchsorted(served, owner),
            slot[cover.patch[pieces]],
            tuple(cover.identifiers[p] for p in patches.tolist()),
            None if cover.proof is None else cover.proof[pieces],
        )


def cover(problem: Problem, bounder: Bounder, indicator: Indicator, undecided: bool) -> Cover:
    """Decide which patch is on where: boxes that N proves alone are left alone.

    undecided: whether a property gets a patch that has no counterexample and no proof.
    """
    properties = problem.properties
    pieces = problem.pieces or Pieces.roots(properties)
    own, spare, slope = _alone(problem, pieces, bounder)
    unproved = torch.zeros(len(properties), dtype=torch.bool)
    unproved[pieces.owner[~(own > 0)]] = True
    served = problem.broken | unproved if undecided else problem.broken
    assignment = indicator.assign(properties[served.nonzero()[:, 0]])
    assignment = assignment.checked(int(served.sum())).among(served)
    # Where a patch is on anyway, it serves what was proved with nothing to spare too.
    needy, tree = ~(own > spare), copy.deepcopy(pieces.tree)
    layout, home, roots = lay_out(
        properties, tree, pieces.node, pieces.box, needy, assignment.patch
    )
    proof, box = pieces.proof, pieces.box
    more = len(roots.owner)
    if more:
        box = concatenated(box, roots.box)
        if proof is not None:
            C, d = properties.C[roots.owner], properties.d[roots.owner]
            proof = joined([proof, bounder.base(roots.box, C, d, rigorous=True)])
    home, owner = torch.cat([home, roots.home]), torch.cat([pieces.owner, roots.owner])
    own, spare = (torch.cat([t, t.new_full((more,), -torch.inf)]) for t in (own, spare))
    patch = layout.regions.patch[home]
    claimed = modest(own, spare) if pieces.proof is not None else own
    slopes = torch.zeros(len(tree.owner), bounder.network.units, dtype=torch.uint8)
    slopes[pieces.node] = slope
    names = patch_identifiers(properties, assignment)
    return Cover(
        properties,
        assignment,
        layout,
        tree,
        box,
        owner,
        torch.cat([pieces.node, roots.node]),
        patch,
        own,
        torch.where(patch < 0, claimed, -torch.inf),
        slopes,
        torch.arange(len(owner)) >= len(pieces.owner),
        proof,
        torch.tensor(sorted(range(len(names)), key=names.__getitem__), dtype=torch.long),
        names,
    )


def modest(margin: Tensor, spare: Tensor) -> Tensor:
    """Proved margins as they are claimed, [W]: what another program finds too.

    Less is claimed, no more; what is proved stays so. spare: [W], see LinearBound.spare.
    """
    least = torch.maximum(margin - spare, margin / 2)
    return torch.where(margin > 0, least, margin)


def _alone(problem: Problem, pieces: Pieces, bounder: Bounder) -> tuple[Tensor, Tensor, Tensor]:
    """N's own rigorous margin on pieces, [W], what to spare of it, [W], and its slopes, [W,U].

    Where a whole box holds a counterexample N proves nothing: nobody asks, and it is -inf.
    """
    properties, count = problem.properties, len(pieces.owner)
    own = torch.full((count,), -torch.inf, dtype=torch.float64)
    spare = torch.zeros(count, dtype=torch.float64)
    slope = torch.zeros(count, bounder.network.units, dtype=torch.uint8)
    known, asked = pieces.proof, torch.arange(count)
    if known is None:
        names = properties.identifiers()
        parent = torch.tensor(pieces.tree.parent, dtype=torch.long)[pieces.node]
        asked = asked[~problem.broken[pieces.owner] | (parent >= 0)]
        asked = torch.tensor(sorted(asked.tolist(), key=lambda i: names[int(pieces.owner[i])]))
    for index in asked.long().split(_AT_ONCE) if len(asked) else ():
        box, owner = bounder.seen(pieces.box[index]), pieces.owner[index]
        C, d = properties.C[owner], properties.d[owner]
        rows = bounder.base(box, C, d, rigorous=True) if known is None else known[index]
        margin = worst_margin(rows.minimum_rigorous(box), properties.group[owner])
        own[index], spare[index] = margin.nan_to_num(-torch.inf), rows.spare()
        slope[index] = slopes_of(rows, bounder.network)
    return own, spare, slope


def own_margin(cover: Cover, shards: Shards, outcomes: list[Outcome]) -> Tensor:
    """N's own proved margin of every property, without any patch: [P]."""
    own = cover.own.clone()
    for pieces, outcome in zip(shards.pieces, outcomes, strict=True):
        own[pieces] = outcome.own
    worst = torch.full((len(cover.properties),), torch.inf, dtype=torch.float64)
    # What regions of other properties have of a box is covered by its own pieces too.
    mine = ~cover.shared
    return worst.scatter_reduce(0, cover.owner[mine], own[mine], "amin")
