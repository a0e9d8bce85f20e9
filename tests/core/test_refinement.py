"""Pieces: they cover their boxes, and a child is never worse off than its parent."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.core.bounding import Bounder
from advrepair.core.layout import SplitTree
from advrepair.core.patching import patch_template
from advrepair.core.properties import robustness
from advrepair.core.refinement import Worklist
from advrepair.core.rounding import Rounding
from advrepair.core.shards import Shard
from advrepair.core.types import SplitPlan
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.testing.networks import fully_connected


def start(seed=0, count=3, patch=None, verifier=None, level="deployed-float32"):
    network = fully_connected(seed, (3, 8, 8, 4))
    generator = torch.Generator().manual_seed(seed)
    x, label = torch.rand(count, 3, generator=generator), torch.arange(count) % 4
    x = x + 2 * torch.arange(count)[:, None]  # boxes that do not meet
    properties = robustness(x, label, 0.3, 4)
    template = patch_template(network, ())
    bounder = Bounder(network, template, verifier or DeepPoly(), DeepPoly(), Rounding(level), 2**30)
    patch = list(range(count)) if patch is None else patch
    names = tuple(f"patch {i}" for i in range(max(patch) + 1))
    every = torch.arange(count)
    shard = Shard(properties, properties.box, every, torch.tensor(patch), names)
    return Worklist.start(shard, bounder), bounder


def random_plan(worklist, generator):
    pieces = torch.rand(len(worklist.owner), generator=generator) < 0.5
    piece = pieces.nonzero()[:, 0]
    return SplitPlan(piece, torch.randint(3, (len(piece),), generator=generator))


def volume(lower, upper):
    result = Fraction(1)
    for a, b in zip(lower.flatten().tolist(), upper.flatten().tolist(), strict=True):
        result *= Fraction(b) - Fraction(a)
    return result


def leaves(tree, box):
    """Faces of every leaf from its box and the cuts alone, {node: (owner, lower, upper)}."""
    faces = {i: (box.lower[i].clone(), box.upper[i].clone()) for i in range(len(box))}
    children = {}
    for node, parent in enumerate(tree.parent):
        if parent >= 0:
            children.setdefault(parent, []).append(node)
    for parent, (low, high) in sorted(children.items()):
        lower, upper = faces.pop(parent)
        faces[low], faces[high] = (lower, upper.clone()), (lower.clone(), upper)
        faces[low][1][tree.dim[parent]] = tree.cut[parent]
        faces[high][0][tree.dim[parent]] = tree.cut[parent]
    return {node: (tree.owner[node], *faces[node]) for node in faces}


def test_a_tree_grows_at_its_leaves():
    tree = SplitTree.roots(2)
    assert tree.bisect(1, 2, 0.5) == (2, 3)
    assert tree.bisect(3, 0, 0.25) == (4, 5)
    assert tree.owner == [0, 1, 1, 1, 1, 1]
    assert tree.parent == [-1, -1, 1, 1, 3, 3]
    assert tree.dim == [-1, 2, -1, 0, -1, -1]
    assert tree.cut == [0.0, 0.5, 0.0, 0.25, 0.0, 0.0]


def test_it_starts_with_one_piece_a_property():
    worklist, bounder = start()
    assert torch.equal(worklist.box.lower, worklist.properties.box.lower)
    assert worklist.owner.tolist() == worklist.node.tolist() == [0, 1, 2]
    properties = worklist.properties
    exact = bounder.base(properties.box, properties.C, properties.d, rigorous=True)
    assert torch.allclose(worklist.proof.A, exact.A, atol=1e-13)
    assert torch.equal(worklist.rows.A, worklist.proof.A.float())


def test_another_training_verifier_has_its_own_rows():
    worklist, bounder = start(verifier=Interval())
    properties = worklist.properties
    own = bounder.base(properties.box, properties.C, properties.d, rigorous=False)
    assert not worklist.rows.A.any() and worklist.proof.A.any()
    assert torch.allclose(worklist.rows.b, own.b, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([DeepPoly(), Interval()]))
def test_pieces_cover_their_boxes_and_inherit_bounds(seed, verifier):
    worklist, bounder = start(seed, verifier=verifier)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        before = [
            (kind, getattr(worklist, kind), worklist.node.tolist()) for kind in ("rows", "proof")
        ]
        plan = random_plan(worklist, generator)
        if not len(plan.piece):
            continue
        worklist.split(plan, bounder)
        for kind, parents, nodes in before:
            row_of = {node: row for row, node in enumerate(nodes)}
            mine = worklist.node.tolist()
            parent = [row_of[n] if n in row_of else row_of[worklist.tree.parent[n]] for n in mine]
            inherited = parents[torch.tensor(parent)].minimum(worklist.box)
            own = getattr(worklist, kind).minimum(worklist.box)
            assert (own >= inherited - 1e-4 * (kind == "rows")).all()
    boxes = worklist.properties.box
    found = leaves(worklist.tree, boxes)
    assert sorted(found) == sorted(worklist.node.tolist())
    total = [Fraction(0)] * 3
    for row, node in enumerate(worklist.node.tolist()):
        owner, lower, upper = found[node]
        assert owner == int(worklist.owner[row])
        assert torch.equal(worklist.box.lower[row], lower)
        assert torch.equal(worklist.box.upper[row], upper)
        total[owner] += volume(lower, upper)
    assert total == [volume(boxes.lower[i], boxes.upper[i]) for i in range(3)]


def test_some_children_do_need_their_parents_row():
    """Otherwise the inheritance above is never put to the test."""
    worse = 0
    for seed in range(20):
        worklist, bounder = start(seed, level="real")
        parent = worklist.proof
        worklist.split(SplitPlan(torch.arange(3), torch.tensor([0, 1, 2])), bounder)
        twice, owner = torch.arange(3).repeat(2), worklist.owner
        properties = worklist.properties
        fresh = bounder.base(worklist.box, properties.C[owner], properties.d[owner], rigorous=True)
        inherited = parent[twice].minimum(worklist.box)
        worse += int((fresh.minimum(worklist.box) < inherited).sum())
        best = torch.maximum(fresh.minimum(worklist.box), inherited)
        assert torch.allclose(worklist.proof.minimum(worklist.box), best, atol=1e-12)
    assert worse > 0


def test_magnitudes_shrink_with_the_pieces():
    worklist, bounder = start()
    before = worklist.proof.magnitude.clone()
    worklist.split(SplitPlan(torch.tensor([1]), torch.tensor([0])), bounder)
    owner = worklist.owner
    assert owner.tolist() == [0, 2, 1, 1]
    assert (worklist.proof.magnitude <= before[owner]).all()
    assert torch.equal(worklist.proof.magnitude[:2], before[[0, 2]])


def test_pieces_of_patches_and_their_padding():
    worklist, bounder = start(count=4, patch=[1, 0, 1, 2])
    worklist.split(SplitPlan(torch.tensor([2]), torch.tensor([1])), bounder)
    assert worklist.owner.tolist() == [0, 1, 3, 2, 2]
    patches = torch.tensor([0, 1, 2])
    assert [p.tolist() for p in worklist.pieces_of(patches)] == [[1], [0, 3, 4], [2]]
    for rigorous, rows in ((False, worklist.rows), (True, worklist.proof)):
        batch = worklist.batch(patches, rigorous)
        assert batch.real.tolist() == [[True, False, False], [True] * 3, [True, False, False]]
        expected = torch.tensor([1, 1, 1, 0, 3, 4, 2, 2, 2])
        assert torch.equal(batch.box.lower, worklist.box.lower[expected])
        assert torch.equal(batch.rows.b, rows.b[expected])
        assert torch.equal(batch.C, worklist.properties.C[worklist.owner[expected]])
    one = worklist.batch(torch.tensor([1]), rigorous=True)
    assert one.real.tolist() == [[True, True, True]]


@pytest.mark.parametrize("dim", [0, 2])
def test_the_cut_is_at_the_middle_and_shared(dim):
    worklist, bounder = start(count=1)
    center = worklist.box.center[0, dim]
    worklist.split(SplitPlan(torch.tensor([0]), torch.tensor([dim])), bounder)
    assert worklist.box.upper[0, dim] == worklist.box.lower[1, dim] == center
    assert worklist.tree.cut[0] == center.item()
