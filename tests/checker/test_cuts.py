"""Pieces that are cut by the sign of a ReLU, and multipliers, where the truth is known."""

import numpy as np
import pytest
from folders import digest, edited, rehash, verdict, write

# y = relu(x) - relu(x - 0.5) + 0.1 is at least 0.1. With slope 1 below the first ReLU, a piece
# where x >= 0 and x <= 0.5, by the signs of both, needs a multiplier as well.
LEAVES = {3: "x <= 0", 4: "x >= 0", 2: "x >= 0.5"}


def operation(name, kind, inputs, shape, **tensors):
    settings: dict = {}
    parts = {"name": name, "kind": kind, "inputs": [inputs], "shape": shape}
    return {**parts, "tensors": tensors, "settings": settings}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One box [-1, 1], one patch that adds nothing, and a proof by cuts and a multiplier."""
    place = tmp_path_factory.mktemp("cuts")
    hidden = [
        operation("a", "linear", "input", [2], weight="w", bias="b"),
        operation("r", "relu", "a", [2]),
    ]
    base = [*hidden, operation("y", "linear", "r", [1], weight="v")]
    header = {
        "format": 3,
        "base": {"input_shape": [1], "operations": base},
        "patch": {
            "input_shape": [1],
            "operations": [operation("p", "linear", "input", [1], weight="w")],
        },
        "patches": ["one"],
    }
    low, high = np.float32([[-1]]), np.float32([[1]])
    stored = {
        "base/w": np.float32([[1], [1]]),
        "base/b": np.float32([0, -0.5]),
        "base/v": np.float32([[1, -1]]),
        "patch/w": np.zeros((1, 1, 1), np.float32),
        "region/lower": low,
        "region/upper": high,
        "region/patch": np.int64([0]),
        "centres/patch": np.int64([0]),
        "centres/label": np.int64([-1]),
    }
    proof = {
        "C": np.float32([[[1]]]),
        "d": np.float32([[0.1]]),
        "group": np.int64([[0]]),
        "box.lower": low,
        "box.upper": high,
        "region.node": np.int64([0]),
        "shared.node": np.int64([]),
        "shared.region": np.int64([]),
        "piece.node": np.int64(list(LEAVES)),
        "piece.margin": np.float64([0.05, 0.05, 0.05]),
        "piece.slope": np.zeros((3, 0), np.uint8),
        "tree.owner": np.int64([0] * 5),
        "tree.parent": np.int64([-1, 0, 0, 1, 1]),
        "tree.dim": np.int64([2, 1, -1, -1, -1]),  # by the second unit, then by the first
        "tree.cut": np.zeros(5),
        # 0 where the piece has a unit off, 255 where it has it on.
        "tree.slope": np.uint8([[255, 255], [255, 0], [255, 255], [0, 0], [255, 0]]),
        "multiplier.piece": np.int64([1]),
        "multiplier.unit": np.int64([0]),
        "multiplier.value": np.float32([[1]]),
    }
    claim = {"format": 3, "level": "deployed-float32", "network": digest(header, stored)}
    one = {"label": -1, "patch": 0, "status": "certified", "margin": 0.05}
    claim |= {"files": {}, "properties": [one]}
    write(place, "certificate.safetensors", proof, {"format": 3})
    write(place, "repaired.safetensors", stored, header)
    rehash(place, claim)
    return place


def test_cuts_and_multipliers_prove_what_nothing_else_does(folder):
    found = verdict(folder)
    assert found.word == "VALID", found.line
    assert 0.09 < found.margin <= 0.1


def no_multiplier(claim, proof, stored):
    proof["multiplier.value"][:] = 0


def multiplier_of_another_piece(claim, proof, stored):
    proof["multiplier.piece"][:] = 0


def multiplier_of_another_unit(claim, proof, stored):
    proof["multiplier.unit"][:] = 1


def negative_multiplier(claim, proof, stored):
    """As -1 times the wrong sign, it would be right."""
    proof["multiplier.value"][:] = -1
    swapped_children(claim, proof, stored)


def swapped_children(claim, proof, stored):
    """The multiplier now is of the half x <= 0."""
    proof["piece.node"][:2] = [4, 3]


def no_cuts(claim, proof, stored):
    proof["tree.dim"][:] = -1
    for name in [name for name in proof if name.startswith("tree.")]:
        proof[name] = proof[name][:1]
    for name in ("piece.node", "piece.margin", "piece.slope"):
        proof[name] = proof[name][:1] * 0 + (0.05 if name == "piece.margin" else 0)
    proof["multiplier.piece"][:] = 0


def missing_half(claim, proof, stored):
    for name in [name for name in proof if name.startswith("tree.")]:
        proof[name] = proof[name][:4]
    for name in ("piece.node", "piece.margin", "piece.slope"):
        proof[name] = proof[name][[0, 2]]


def one_half_twice(claim, proof, stored):
    proof["piece.node"][1] = proof["piece.node"][0]


def not_at_zero(claim, proof, stored):
    proof["tree.cut"][1] = -0.5


def a_false_claim(claim, proof, stored):
    """Below 0 somewhere: where x is negative."""
    proof["d"][:] = -0.01


def a_false_claim_where_no_piece_has_its_middle(claim, proof, stored):
    proof["box.lower"][:] = stored["region/lower"][:] = -0.2
    proof["d"][:] = -0.01


@pytest.mark.parametrize(
    "edit",
    [no_multiplier, multiplier_of_another_piece, multiplier_of_another_unit, negative_multiplier,
     swapped_children, no_cuts, missing_half, one_half_twice, not_at_zero, a_false_claim,
     a_false_claim_where_no_piece_has_its_middle],
    ids=lambda edit: edit.__name__,
)  # fmt: skip
def test_nothing_less_does(edit, folder, tmp_path):
    assert verdict(edited(folder, tmp_path / "changed", edit)).word != "VALID"


def test_a_piece_that_holds_no_input_needs_no_bound(folder, tmp_path):
    """On [-1, 0.25] the second unit is negative: whatever is said of the other half holds."""

    def narrow(claim, proof, stored):
        proof["box.upper"][:] = stored["region/upper"][:] = 0.25
        proof["piece.margin"][2] = np.inf

    found = verdict(edited(folder, tmp_path / "changed", narrow))
    assert found.word == "VALID", found.line


@pytest.mark.parametrize(
    ("root", "leaf", "word"), [(255, 0, "VALID"), (0, 255, "VALID"), (255, 255, "INCOMPLETE")]
)
def test_slopes_of_a_piece_or_of_a_node_above_it_may_prove_it(root, leaf, word, folder, tmp_path):
    """Without the cut at 0: with slope 0 below the first ReLU, y >= 0.1 where x <= 0.5."""

    def two_pieces(claim, proof, stored):
        for name in [name for name in proof if name.startswith("tree.")]:
            proof[name] = proof[name][:3]
        for name in [name for name in proof if name.startswith("multiplier.")]:
            proof[name] = proof[name][:0]
        proof["tree.dim"][1] = -1
        proof["tree.slope"][:2, 0] = root, leaf
        for name in ("piece.margin", "piece.slope"):
            proof[name] = proof[name][:2]
        proof["piece.node"] = np.int64([1, 2])

    found = verdict(edited(folder, tmp_path / "changed", two_pieces))
    assert found.word == word, found.line


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_multipliers_are_numbers_of_at_least_0(value, folder, tmp_path):
    def change(claim, proof, stored):
        proof["multiplier.value"][:] = value

    found = verdict(edited(folder, tmp_path / "changed", change))
    assert found.word == "INVALID"
    assert "multiplier" in found.line


@pytest.mark.parametrize(
    ("more", "word"), [(0.0, "VALID"), (1e-9, "VALID"), (1e-5, "INCOMPLETE"), (0.1, "INCOMPLETE")]
)
def test_a_margin_is_confirmed_up_to_rounding(more, word, folder, tmp_path):
    """In float32 the account takes about 1e-6 off: so much more may be claimed, and no more."""

    def claimed(claim, proof, stored):
        found = verdict(folder).margin
        proof["piece.margin"][:] = claim["properties"][0]["margin"] = found + more

    found = verdict(edited(folder, tmp_path / "changed", claimed))
    assert found.word == word, found.line
    assert word == "VALID" or "piece 1: margin" in found.incomplete[-1]


@pytest.mark.parametrize(("depth", "word"), [(256, "VALID"), (257, "INCOMPLETE")])
def test_trees_deeper_than_256_are_incomplete(depth, word, folder, tmp_path):
    """A chain of cuts of the input: the lower half is a leaf, the upper half is cut again."""

    def deep(claim, proof, stored):
        nodes = np.arange(1, 2 * depth + 1)
        proof["tree.owner"] = np.zeros(2 * depth + 1, int)
        proof["tree.parent"] = np.append(-1, (nodes - 1) // 2 * 2)
        proof["tree.dim"] = np.where(np.arange(2 * depth + 1) % 2 == 0, 0, -1)
        proof["tree.dim"][-1] = -1
        proof["tree.cut"] = np.zeros(2 * depth + 1)
        proof["tree.cut"][::2] = np.linspace(-1, 1, depth + 1) + 1 / depth
        above = np.append(proof["tree.cut"][::2][:-1], 1.0)  # of each piece
        on = np.stack([above > 0, above >= 0.5 + 3 / depth], 1)
        proof["tree.slope"] = np.zeros((2 * depth + 1, 2), np.uint8)
        proof["tree.slope"][np.append(nodes[::2], 2 * depth)] = 255 * on
        proof["piece.node"] = np.append(nodes[::2], 2 * depth)
        proof["piece.margin"] = np.full(depth + 1, 0.05)
        proof["piece.slope"] = np.zeros((depth + 1, 0), np.uint8)
        for name in ("multiplier.piece", "multiplier.unit", "multiplier.value"):
            proof[name] = proof[name][:0]

    found = verdict(edited(folder, tmp_path / "changed", deep))
    assert found.word == word, found.line
    assert word == "VALID" or found.line == "INCOMPLETE: tree: deeper than 256"
