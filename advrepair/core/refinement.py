"""The worklist of pieces: what some patches have to prove; splitting keeps it covered."""

from __future__ import annotations

import torch
from attrs import define
from torch import Tensor

from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder, joined, slopes_of
from advrepair.core.box import Box, concatenated, dot
from advrepair.core.layout import SplitTree
from advrepair.core.shards import Shard
from advrepair.core.types import (
    LinearBound,
    PropertySet,
    SplitPlan,
    group_margin,
    worst_margin,
)


@define(eq=False)
class Worklist:
    """The pieces that the patches of a shard have to prove; only the core splits them.

    box: what patches see of w pieces. owner: [w], the property of each. patch: [w], the patch
    that is on there. node: [w], its leaf in the tree, whose first nodes are the pieces at the
    start. rows: of N in the training dtype. proof: of N, float64 and rigorous. All [w,M,*S].
    slope: uint8 [R,U], N's slopes in the proof, of each node. modest: the boxes were cut before,
    and margins are claimed with something to spare.
    """

    properties: PropertySet
    box: Box
    owner: Tensor
    patch: Tensor
    node: Tensor
    rows: LinearBound
    proof: LinearBound
    tree: SplitTree
    slope: Tensor
    modest: bool
    _least: Tensor | None = None

    @classmethod
    def start(cls, shard: Shard, bounder: Bounder) -> Worklist:
        """N's rows on every piece, computed unless they are known."""
        box = bounder.seen(shard.box)
        if shard.proof is None:
            rows, proof = _base(bounder, shard.properties, box, shard.owner)
        else:
            rows, proof = shard.proof.to(bounder.network.dtype), shard.proof
        return cls(
            shard.properties,
            box,
            shard.owner,
            shard.patch,
            torch.arange(len(shard.owner)),
            rows,
            proof,
            SplitTree.of(shard.owner.tolist()),
            slopes_of(proof, bounder.network).clone(),
            shard.proof is not None,
        )

    def own_margin(self) -> Tensor:
        """N's own proved margin on every piece, without any patch: [w], rigorous."""
        return worst_margin(self.least(), self.properties.group[self.owner]).nan_to_num(-torch.inf)

    def least(self) -> Tensor:
        """N's own rigorous lower bound of every row on every piece: [w,M]; kept."""
        if self._least is None:
            self._least = self.proof.minimum_rigorous(self.box)
        return self._least

    def pieces_of(self, patches: Tensor) -> list[Tensor]:
        """Indices of the pieces of each patch, in the order of the worklist."""
        order = torch.argsort(self.patch, stable=True)
        begin = torch.searchsorted(self.patch[order], patches)
        end = torch.searchsorted(self.patch[order], patches, right=True)
        return [order[i:j].sort().values for i, j in zip(begin.tolist(), end.tolist(), strict=True)]

    def batch(self, patches: Tensor, rigorous: bool) -> Batch:
        """The pieces of some patches, [q], padded with repetitions of their first piece."""
        pieces = self.pieces_of(patches)
        most = max(len(index) for index in pieces)
        slot = torch.arange(most)
        counts = torch.tensor([len(index) for index in pieces])
        real = slot < counts[:, None]
        flat = torch.stack([torch.cat([i, i[:1].expand(most - len(i))]) for i in pieces]).flatten()
        rows, owner, box = self.proof if rigorous else self.rows, self.owner[flat], self.box
        own = None if self._least is None else self._least[flat]
        if not torch.equal(flat, torch.arange(len(self.owner))):  # else nothing is copied
            box, rows = box[flat], rows[flat]
        return Batch(box, rows, self.properties.C[owner], self.properties.group[owner], real, own)

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
        self.node = torch.cat([self.node[keep], children])
        self.owner = torch.cat([self.owner[keep], self.owner[twice]])
        self.patch = torch.cat([self.patch[keep], self.patch[twice]])
        self.box = concatenated(self.box[keep], halves)
        self.rows = joined([self.rows[keep], rows])
        self.proof = joined([self.proof[keep], proof])
        self._least = None


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
