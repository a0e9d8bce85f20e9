"""The worklist of pieces: every box starts as one piece; splitting keeps it covered."""

from __future__ import annotations

import torch
from attrs import define
from torch import Tensor

from advrepair.core.bounding import Batch, Bounder, joined, slopes_of
from advrepair.core.box import Box, concatenated, dot
from advrepair.core.layout import Layout, Pieces, SplitTree, lay_out
from advrepair.core.patching import patch_identifiers
from advrepair.core.types import (
    Assignment,
    LinearBound,
    PropertySet,
    Regions,
    SplitPlan,
    group_margin,
    worst_margin,
)


@define(eq=False)
class Worklist:
    """The pieces to prove: together they cover every box, because only the core splits.

    box: W pieces. owner: [W], the property of each. node: [W], its leaf in the tree. rows: of
    N in the training dtype. proof: of N, float64 and rigorous. All [W,M,*S]. slope: uint8
    [T,U], N's slopes in the proof, of each of the T nodes. home: [W], the region whose patch
    serves the piece. order: [Q], the patches sorted by what they serve, so that no result
    depends on the order of the data. begun: pieces that a patch served at first. screened: the
    boxes were cut before, and margins are claimed with something to spare.
    """

    properties: PropertySet
    box: Box
    owner: Tensor
    node: Tensor
    rows: LinearBound
    proof: LinearBound
    tree: SplitTree
    slope: Tensor
    layout: Layout
    home: Tensor
    order: Tensor
    begun: int = 0
    screened: bool = False

    @classmethod
    def start(
        cls, properties: PropertySet, bounder: Bounder, pieces: Pieces | None = None
    ) -> Worklist:
        """N's rows, computed and kept. pieces: how boxes were cut before; else one a property."""
        pieces = pieces or Pieces.roots(properties)
        names = properties.identifiers()
        place = torch.empty(len(names), dtype=torch.long)
        place[sorted(range(len(names)), key=names.__getitem__)] = torch.arange(len(names))
        first = place[pieces.owner].argsort(stable=True)
        if pieces.proof is None:
            rows, proof = _base(bounder, properties, pieces.box[first], pieces.owner[first])
            back = torch.argsort(first)
            rows, proof = rows[back], proof[back]
        else:
            rows, proof = pieces.proof.to(bounder.network.dtype), pieces.proof
        slope = torch.zeros(len(pieces.tree.owner), bounder.network.units, dtype=torch.uint8)
        slope[pieces.node] = slopes_of(proof, bounder.network)
        return cls(
            properties,
            pieces.box,
            pieces.owner,
            pieces.node,
            rows,
            proof,
            pieces.tree,
            slope,
            Layout.nothing(properties),
            pieces.owner.clone(),
            torch.zeros(0, dtype=torch.long),
            screened=pieces.proof is not None,
        )

    def serve(self, assignment: Assignment, bounder: Bounder) -> Regions:
        """Lay out the regions: each patch is on where its properties need it."""
        # Where a patch is on anyway, it serves what was proved with nothing to spare too.
        needy = ~(self.own_margin() > self.proof.spare())
        self.layout, self.home, roots = lay_out(
            self.properties, self.tree, self.node, self.box, needy, assignment.patch
        )
        self.order = _sorted_patches(self.properties, assignment)
        if len(roots.owner):
            rows, proof = _base(bounder, self.properties, roots.box, roots.owner)
            more = len(self.tree.owner) - len(self.slope)
            fresh = self.slope.new_zeros(more, self.slope.shape[1])
            self.slope = torch.cat([self.slope, fresh])
            self.slope[roots.node] = slopes_of(proof, bounder.network)
            self._append(roots.box, roots.owner, roots.node, rows, proof, roots.home)
        self.begun = int((self.serving() >= 0).sum())
        return self.layout.regions

    def own_margin(self) -> Tensor:
        """N's own proved margin on every piece, without any patch: [W], rigorous."""
        group = self.properties.group[self.owner]
        return worst_margin(self.proof.minimum_rigorous(self.box), group).nan_to_num(-torch.inf)

    def margin(self) -> Tensor:
        """N's own proved margin of every property: [P], rigorous."""
        worst = torch.full((len(self.properties),), torch.inf, dtype=torch.float64)
        # What regions of other properties have of a box is covered by its own pieces too.
        own = torch.tensor(self.tree.owner)[self.layout.node[self.home]] == self.owner
        return worst.scatter_reduce(0, self.owner[own], self.own_margin()[own], "amin")

    def serving(self) -> Tensor:
        """The patch that is on in each piece, or -1: [W]."""
        return self.layout.regions.patch[self.home]

    def pieces_of(self, patches: Tensor) -> list[Tensor]:
        """Indices of the pieces of each patch, in the order of the worklist."""
        serving = self.serving()
        order = torch.argsort(serving, stable=True)
        begin = torch.searchsorted(serving[order], patches)
        end = torch.searchsorted(serving[order], patches, right=True)
        return [order[i:j].sort().values for i, j in zip(begin.tolist(), end.tolist(), strict=True)]

    def batch(self, patches: Tensor, rigorous: bool) -> Batch:
        """The pieces of some patches, [q], padded with repetitions of their first piece."""
        pieces = self.pieces_of(patches)
        most = max(len(index) for index in pieces)
        slot = torch.arange(most)
        counts = torch.tensor([len(index) for index in pieces])
        real = slot < counts[:, None]
        flat = torch.stack([torch.cat([i, i[:1].expand(most - len(i))]) for i in pieces]).flatten()
        rows = self.proof if rigorous else self.rows
        owner = self.owner[flat]
        return Batch(
            self.box[flat], rows[flat], self.properties.C[owner], self.properties.group[owner], real
        )

    def split(self, plan: SplitPlan, bounder: Bounder) -> None:
        """Bisect pieces; each child keeps its parent's rows where they are better.

        DeepPoly is not monotone under splitting: its slopes may be worse on a part. A
        parent's row is valid on the whole parent, so taking the better of the two is sound.
        """
        parents = plan.piece
        low, high = self.box[parents].split(plan.dim)
        halves = Box(torch.cat([low.lower, high.lower]), torch.cat([low.upper, high.upper]))
        twice = parents.repeat(2)
        rows, proof = _base(bounder, self.properties, halves, self.owner[twice])
        slope = slopes_of(proof, bounder.network)
        rows = _better(rows, self.rows[twice], halves)
        proof = _better(proof, self.proof[twice], halves)
        cuts = low.upper.flatten(1).gather(1, plan.dim[:, None])[:, 0]
        nodes = [
            self.tree.bisect(int(node), int(dim), float(cut))
            for node, dim, cut in zip(self.node[parents], plan.dim, cuts, strict=True)
        ]
        # The tree counts the halves of a node one after the other.
        self.slope = torch.cat([self.slope, torch.stack(slope.chunk(2), 1).flatten(0, 1)])
        keep = torch.ones(len(self.owner), dtype=torch.bool)
        keep[parents] = False
        children = torch.tensor([pair[0] for pair in nodes] + [pair[1] for pair in nodes])
        owner, home = self.owner[twice], self.home[twice]
        self.box, self.owner, self.node = self.box[keep], self.owner[keep], self.node[keep]
        self.home, self.rows, self.proof = self.home[keep], self.rows[keep], self.proof[keep]
        self._append(halves, owner, children, rows, proof, home)

    def _append(
        self,
        box: Box,
        owner: Tensor,
        node: Tensor,
        rows: LinearBound,
        proof: LinearBound,
        home: Tensor,
    ) -> None:
        """Pieces more, at the end."""
        self.box = concatenated(self.box, box)
        self.owner, self.node = torch.cat([self.owner, owner]), torch.cat([self.node, node])
        self.home = torch.cat([self.home, home])
        self.rows, self.proof = joined([self.rows, rows]), joined([self.proof, proof])


def _sorted_patches(properties: PropertySet, assignment: Assignment) -> Tensor:
    """Patches in an order of what they serve: [Q]."""
    keys = patch_identifiers(properties, assignment)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return torch.tensor(order, dtype=torch.long)


def _base(
    bounder: Bounder, properties: PropertySet, box: Box, owner: Tensor
) -> tuple[LinearBound, LinearBound]:
    C, d = properties.C[owner], properties.d[owner]
    proof = bounder.base(box, C, d, rigorous=True)
    if bounder.one_verifier:
        return proof.to(bounder.network.dtype), proof
    return bounder.base(box, C, d, rigorous=False), proof


def _better(own: LinearBound, inherited: LinearBound, box: Box) -> LinearBound:
    """Row by row, whichever is higher at its lowest point of the box."""
    take = own.minimum(box) >= inherited.minimum(box).nan_to_num(-torch.inf)
    A = torch.where(take.view(*take.shape, *[1] * (own.A.dim() - 2)), own.A, inherited.A)
    sizes = own.magnitude
    if sizes is not None and inherited.magnitude is not None:
        sizes = torch.fmin(sizes, inherited.magnitude)
    return LinearBound(A, torch.where(take, own.b, inherited.b), sizes)


def loss_slope(A: Tensor, margin: Tensor, group: Tensor) -> Tensor:
    """Gradient in x of the violated hinges, [B,*S] (Alg. 1, line 16).

    A: [B,M,*S]. margin, group: [B,M].
    """
    rows = margin.detach().requires_grad_()
    loss = (-group_margin(rows, group)).clamp(min=0).sum()
    (weight,) = torch.autograd.grad(loss, rows)
    return dot(A.flatten(2).transpose(1, 2), weight).view(A.shape[0], *A.shape[2:])
