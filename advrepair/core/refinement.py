"""The worklist of pieces: every box starts as one piece; splitting keeps it covered."""

from __future__ import annotations

import torch
from attrs import define
from torch import Tensor

from advrepair.core.bounding import Batch, Bounder, joined, slopes_of
from advrepair.core.box import Box
from advrepair.core.patching import patch_identifiers
from advrepair.core.types import Assignment, LinearBound, PropertySet, SplitPlan, worst_margin


@define(eq=False)
class SplitTree:
    """How boxes were cut: node i < P is box i; a cut node has two later children.

    owner: property of each node. parent: -1 for a root. dim: flat dimension of the cut, -1
    for a leaf. cut: where. The child with the lower half comes first. A dimension s >= S is
    a cut by the sign of ReLU input s - S, units of N before those of the patch.
    """

    owner: list[int]
    parent: list[int]
    dim: list[int]
    cut: list[float]

    @classmethod
    def roots(cls, count: int) -> SplitTree:
        """One leaf a box."""
        return cls(list(range(count)), [-1] * count, [-1] * count, [0.0] * count)

    def children(self) -> list[list[int]]:
        """Of every node its two children, or none."""
        below: list[list[int]] = [[] for _ in self.owner]
        for child, parent in enumerate(self.parent):
            if parent >= 0:
                below[parent].append(child)
        return below

    def bisect(self, node: int, dim: int, cut: float) -> tuple[int, int]:
        """Cut a leaf; returns its children."""
        self.dim[node], self.cut[node] = dim, cut
        first = len(self.owner)
        self.owner += [self.owner[node]] * 2
        self.parent += [node] * 2
        self.dim += [-1, -1]
        self.cut += [0.0, 0.0]
        return first, first + 1


@define(eq=False)
class Worklist:
    """The pieces to prove: together they cover every box, because only the core splits.

    box: W pieces. owner: [W], the property of each. node: [W], its leaf in the tree.
    rows: of N in the training dtype. proof: of N, float64 and rigorous. All [W,M,*S].
    slope: uint8 [R,U], N's slopes in the proof, of every node of the tree. order: [Q], the
    patches sorted by what they serve, so that no result depends on the order of the data.
    """

    properties: PropertySet
    patch: Tensor
    box: Box
    owner: Tensor
    node: Tensor
    rows: LinearBound
    proof: LinearBound
    tree: SplitTree
    slope: Tensor
    order: Tensor

    @classmethod
    def start(cls, properties: PropertySet, assignment: Assignment, bounder: Bounder) -> Worklist:
        """One piece a property, N's rows computed and kept."""
        every = torch.arange(len(properties))
        names = properties.identifiers()
        first = torch.tensor(sorted(range(len(names)), key=names.__getitem__))
        rows, proof = _base(bounder, properties, properties.box[first], first)
        back = torch.argsort(first)
        keys = patch_identifiers(properties, assignment)
        return cls(
            properties,
            assignment.patch,
            properties.box,
            every,
            every.clone(),
            rows[back],
            proof[back],
            SplitTree.roots(len(properties)),
            slopes_of(proof, bounder.network)[back],
            torch.tensor(sorted(range(len(keys)), key=keys.__getitem__)),
        )

    def margin(self) -> Tensor:
        """N's own proved margin of every property, without any patch: [P], rigorous."""
        worst = torch.full((len(self.properties),), torch.inf, dtype=torch.float64)
        group = self.properties.group[self.owner]
        own = worst_margin(self.proof.minimum_rigorous(self.box), group).nan_to_num(-torch.inf)
        return worst.scatter_reduce(0, self.owner, own, "amin")

    def pieces_of(self, patches: Tensor) -> list[Tensor]:
        """Indices of the pieces of each patch, in the order of the worklist."""
        serving = self.patch[self.owner]
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
        self.box = concatenated(self.box[keep], halves)
        self.owner, old = torch.cat([self.owner[keep], self.owner[twice]]), self.node[keep]
        self.node = torch.cat([old, children])
        self.rows = joined([self.rows[keep], rows])
        self.proof = joined([self.proof[keep], proof])


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


def concatenated(a: Box, b: Box) -> Box:
    """Boxes of a, then those of b."""
    return Box(torch.cat([a.lower, b.lower]), torch.cat([a.upper, b.upper]))
