"""The proof of a repair is that of its shards: the same pieces, cuts, slopes and margins."""

import pytest
import torch
from attrs import evolve
from problems import a_network, a_problem, some_parts

from advrepair.core.covering import Shards, cover
from advrepair.core.patching import PatchBank, initial_stack
from advrepair.core.proof import Proof
from advrepair.core.refinement import Worklist
from advrepair.core.solving import stated
from advrepair.core.training import Trained
from advrepair.core.types import SplitPlan
from advrepair.plugins.indicators.property_guided import PropertyGuided


def a_cover(broken):
    """Some of six properties have a patch; and what bounds them."""
    parts = some_parts(a_problem(), hidden=(3,))
    which = torch.tensor(broken)
    problem = evolve(parts.problem, x_adv=parts.properties.center[which], owner=which)
    return cover(problem, parts.bounder, PropertyGuided(), False), parts.bounder


def solved(shards, bounder):
    """Outcomes of patches as they are drawn, after cuts that each property chooses for itself."""
    found, pieces = [], []
    for shard in shards:
        worklist = Worklist.start(shard, bounder)
        names = [int(name, 16) for name in worklist.properties.identifiers()]
        for turn in range(3):
            tree = worklist.tree
            cut = [
                (piece, (names[owner] + turn % 2) % 6)  # one dimension twice
                for piece, (owner, node) in enumerate(
                    zip(worklist.owner.tolist(), worklist.node.tolist(), strict=True)
                )
                if (turn != 1 or names[owner] % 2)
                and (turn < 2 or (tree.parent[node] >= 0 and tree.first(node)))
            ]
            if cut:
                plan = SplitPlan(*(torch.tensor(part) for part in zip(*cut, strict=True)))
                worklist.split(plan, bounder)
        stack = initial_stack(bounder.template, shard.identifiers, 0)
        last = bounder.template.operations[-1].tensors
        stack[last["weight"]].fill_(0.25)
        own = torch.zeros(0)
        nothing = Trained.nothing_yet(len(shard.identifiers))
        outcome = stated(PatchBank(bounder.template, stack), worklist, bounder, own, nothing)
        found.append(outcome)
        pieces.append(worklist)
    return found, pieces


def described(proof):
    """Of every property its tree with what is known of each node, whatever the nodes' numbers."""
    leaf = {node: row for row, node in enumerate(proof.node.tolist())}
    below = proof.tree.children()

    def node(n):
        row = leaf.get(n)
        slope = tuple(proof.slope[n].tolist())
        if row is None:
            return (proof.tree.dim[n], proof.tree.cut[n], slope, *(node(c) for c in below[n]))
        box = proof.box(torch.tensor([row]))
        faces = box.lower.flatten().tolist(), box.upper.flatten().tolist()
        used = tuple(proof.patch_slope[row].tolist())
        return int(proof.owner[row]), int(proof.patch[row]), float(proof.margin[row]), used, faces

    return [node(n) for n in range(6)]


def close(have, want):
    """Equal but for the last bits of margins."""
    if isinstance(have, float):
        return have == pytest.approx(want, rel=1e-9, abs=1e-9)
    if isinstance(have, tuple | list):
        return len(have) == len(want) and all(map(close, have, want))
    return have == want


@pytest.mark.parametrize("broken", [[0, 1, 2, 3, 4, 5], [1, 2, 5]])
def test_many_shards_prove_what_one_proves(broken):
    ground, bounder = a_cover(broken)
    count, units = len(broken), bounder.template.units
    own = {p: (ground.patch == p).nonzero()[:, 0] for p in range(count)}
    expected = None
    for groups in ([list(range(count))], [[p] for p in reversed(range(count))], [[2, 0], [1]]):
        if sum(map(len, groups)) < count:
            groups = [*groups, list(range(3, count))] if count > 3 else groups
        patches = tuple(torch.tensor(group) for group in groups)
        pieces = tuple(torch.cat([own[p] for p in group]) for group in groups)
        shards = Shards(ground, patches, pieces)
        outcomes, _ = solved(shards, bounder)
        proof = Proof.joined(shards, outcomes, units)
        assert len(proof.slope) == len(proof.tree.owner)
        assert (proof.node.diff() > 0).all() and len(proof.node) > 6
        assert proof.least(6).shape == (6,)
        found = described(proof)
        expected = expected or found
        assert close(found, expected)
    alone = (proof.patch < 0).nonzero()[:, 0]
    assert len(alone) == 6 - count
    assert torch.equal(proof.margin[alone], ground.margin[proof.owner[alone]])


def test_pieces_are_those_that_were_proved():
    ground, bounder = a_cover([0, 2, 3, 5])
    shards = ground.shards(bounder.template)
    outcomes, worklists = solved(shards, bounder)
    proof = Proof.joined(shards, outcomes, bounder.template.units)
    box = proof.box(torch.arange(len(proof.node)))
    theirs = {
        (tuple(low.tolist()), tuple(high.tolist())): (margin, int(patches[patch]))
        for work, outcome, patches in zip(worklists, outcomes, shards.patches, strict=True)
        for low, high, margin, patch in zip(
            work.box.lower, work.box.upper, outcome.margin.tolist(), work.patch, strict=True
        )
    }
    served = (proof.patch >= 0).nonzero()[:, 0]
    assert len(served) == len(theirs) > 4
    for row in served.tolist():
        faces = tuple(box.lower[row].tolist()), tuple(box.upper[row].tolist())
        assert theirs[faces] == (proof.margin[row], proof.patch[row])


def test_slopes_of_a_node_are_those_of_its_own_bound():
    ground, bounder = a_cover([1, 4])
    shards = ground.shards(bounder.template)
    proof = Proof.joined(shards, solved(shards, bounder)[0], bounder.template.units)
    box, asked = proof.box(torch.arange(len(proof.node))), ground.properties
    rows = bounder.base(box, asked.C[proof.owner], asked.d[proof.owner], rigorous=True)
    assert torch.equal(rows.slope, proof.slope[proof.node])
    assert a_network().units == proof.slope.shape[1]
