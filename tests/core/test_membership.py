"""Which boxes hold a point and which boxes meet, against a comparison of every pair."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.core import box_index, membership
from advrepair.core.box import Box
from advrepair.core.box_index import Faces, Index, Questions
from advrepair.core.membership import Membership, Scan

INF, NAN = float("inf"), float("nan")
GRID = [-INF, -1.0, -0.0, 0.0, 1e-40, 0.25, 0.5, 0.75, 1.0, 2.0, INF]


def slow_pairs(box, other):
    """Every pair in every coordinate, one after the other."""
    found = []
    for i in range(len(other)):
        for j in range(len(box)):
            below = box.lower[j].double() <= other.upper[i].double()
            if bool((below & (other.lower[i].double() <= box.upper[j].double())).all()):
                found.append([i, j])
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def slow_first(box, x):
    """The definition, without a loop that could be mistaken: one point, all boxes."""
    homes = [((box.lower <= point) & (point <= box.upper)).flatten(1).all(1) for point in x]
    return torch.tensor([int(h.nonzero()[0]) if h.any() else -1 for h in homes], dtype=torch.long)


@pytest.fixture(autouse=True)
def always_an_index(monkeypatch):
    monkeypatch.setattr(membership, "_PAYS", 0)


def agree(box, other, x):
    """With an index and without, beside what is right."""
    flat = [face.flatten(1) for face in (box.lower, box.upper)]
    ends = [face.flatten(1) for face in (other.lower, other.upper)]
    pairs, home = slow_pairs(box, other), slow_first(box, x)
    for way in (Scan.of, Index.of) if len(box) else ():
        way = Membership(*flat, way(*flat))
        assert torch.equal(way.meets(*ends), pairs)
        assert torch.equal(way.first(x.flatten(1)), home)
    assert torch.equal(box.meets(other), pairs)
    assert torch.equal(box.first(x), home)
    points = box.meets(Box(x, x))
    assert torch.equal(points, slow_pairs(box, Box(x, x)))


def boxes_of(draw, count, width, dtype):
    """Boxes with faces on a grid and a step beside it, so that many touch or just do not."""
    value = st.sampled_from(GRID)
    ends = draw(st.lists(st.tuples(value, value), min_size=count * width, max_size=count * width))
    ends = torch.tensor(ends, dtype=dtype).reshape(count, width, 2).sort(-1).values
    step = draw(st.lists(st.integers(-1, 1), min_size=count * width, max_size=count * width))
    step = torch.tensor(step).reshape(count, width)
    goal = torch.where(step > 0, INF, -INF).to(dtype)
    moved = torch.where(step == 0, ends[..., 1], ends[..., 1].nextafter(goal))
    return Box(torch.minimum(ends[..., 0], moved), torch.maximum(ends[..., 0], moved))


@st.composite
def cases(draw):
    """Boxes, other boxes and points: on faces, one step off, anywhere, NaN."""
    dtype, asked = (draw(st.sampled_from([torch.float32, torch.float64])) for _ in range(2))
    width = draw(st.integers(1, 4))
    count, others = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    box, other = boxes_of(draw, count, width, dtype), boxes_of(draw, others, width, asked)
    if count and draw(st.booleans()):  # one coordinate says nothing
        box.lower[:, 0], box.upper[:, 0] = 0.25, 0.5
    if count and draw(st.booleans()):  # all the same
        box = box[torch.zeros(count, dtype=torch.long)]
    value = st.sampled_from([*GRID, NAN])
    flat = draw(st.lists(value, min_size=3 * width, max_size=3 * width))
    x = torch.tensor(flat, dtype=asked).reshape(3, width)
    near = torch.cat([box.lower, box.upper, box.center]).to(asked)
    x = torch.cat([x, near, near.nextafter(near + 1), near.nextafter(near - 1)])
    return box, other, x


small = st.fixed_dictionaries(
    {
        "_SPLITS": st.sampled_from([0, 1, 6]),
        "_ENTRIES": st.sampled_from([1, 8, 2**20]),
        "_PAIRS": st.sampled_from([1, 5, 2**18]),
        "_VAGUE": st.sampled_from([0.0, 1.0]),
    }
)


@settings(deadline=None, max_examples=100)
@given(cases(), small, st.sampled_from([1, 3, 1024]), st.sampled_from([1, 2, 32]))
def test_few_boxes_with_faces_that_touch(case, index, queries, probes):
    with pytest.MonkeyPatch.context() as change:
        for name, value in index.items():
            change.setattr(box_index, name, value)
        change.setattr(membership, "_QUERIES", queries)
        change.setattr(membership, "_ROWS", queries)
        change.setattr(membership, "_PROBES", probes)
        change.setattr(membership, "_STAGE", queries)
        change.setattr(membership, "_COARSE", probes)
        change.setattr(membership, "_PAIRS", index["_PAIRS"])
        agree(*case)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 2, 63, 64, 65, 130]),
    st.sampled_from([(1,), (2,), (70,), (2, 3, 4)]),
    st.sampled_from([0.0, 0.02, 0.3, 2.0]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_many_boxes_anywhere(seed, count, shape, width, dtype):
    noise = torch.Generator().manual_seed(seed)
    middle = torch.randint(0, 5, (count, *shape), generator=noise, dtype=dtype) / 4
    middle += (torch.rand(count, 1, generator=noise, dtype=dtype) < 0.3).view(
        count, *[1] * len(shape)
    ) * torch.rand(count, *shape, generator=noise, dtype=dtype)
    box = Box(middle - width / 2, middle + width / 2)
    pick = torch.randint(count, (40,), generator=noise)
    x = box[pick].clamp(torch.rand(40, *shape, generator=noise, dtype=dtype) * 4 - 2)
    ball = x[:12]
    agree(box, Box(ball - width / 3, ball + width / 3), torch.cat([x, x.nextafter(x + 1)]))


def test_the_first_of_several_decides_and_faces_count():
    lower = torch.tensor([[0.5], [0.0], [0.0]])
    box = Box(lower, lower + 0.5)
    assert box.first(torch.tensor([[0.5], [0.4], [1.0], [1.1], [NAN]])).tolist() == [
        0,
        1,
        0,
        -1,
        -1,
    ]


def test_no_boxes_and_no_queries():
    nothing, one = torch.zeros(0, 2, 3), torch.zeros(1, 2, 3)
    assert Box(nothing, nothing).first(one).tolist() == [-1]
    assert Box(one, one).first(nothing).tolist() == []
    for box, other in ((nothing, one), (one, nothing), (nothing, nothing)):
        assert Box(box, box).meets(Box(other, other)).shape == (0, 2)


def test_faces_that_are_nan_hold_nothing():
    lower = torch.zeros(70, 2)
    lower[::2, 1] = NAN
    box, x = Box(lower, torch.ones(70, 2)), torch.full((3, 2), 0.5)
    assert box.first(x).tolist() == [1, 1, 1]
    assert torch.equal(box.meets(Box(x, x)), slow_pairs(box, Box(x, x)))


def test_a_face_between_two_floats_of_the_query():
    """Boxes in float64, queries in float32: compared as the numbers they are."""
    face = torch.full((70, 1), 0.1, dtype=torch.float64)  # below its float32 neighbour
    box, x = Box(face - 1, face), torch.tensor([[0.1]])
    assert x.double() > face[:1] and box.first(x).tolist() == [-1]
    assert box.first(x.nextafter(x - 1)).tolist() == [0]
    narrow = Box((face - 1).float(), face.float())
    assert narrow.first(narrow.upper[:1].double()).tolist() == [0]
    above = narrow.upper[:1].double()
    assert narrow.first(above.nextafter(above + 1)).tolist() == [-1]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 90), st.integers(1, 70))
def test_questions_are_answered_a_bit_each(seed, count, width):
    noise = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 3, (count, width), generator=noise).float()
    x[0, 0] = NAN
    coordinate = torch.randint(width, (64,), generator=noise)
    threshold = torch.randint(0, 3, (64,), generator=noise).float()
    bits = Questions(coordinate, threshold).answer(x)
    expected = x[:, coordinate] >= threshold
    assert torch.equal((bits[:, None] >> torch.arange(64)) & 1 == 1, expected)
    assert torch.equal(Questions(coordinate, threshold.double()).answer(x), bits)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63)), min_size=1), st.integers(0, 6))
def test_cells_are_all_those_between_the_faces_once(ends, bits):
    low, high = torch.tensor([(a & b, a | b) for a, b in ends]).T
    owner, cell = Faces(low, ~high, False).cells((1 << bits) - 1)
    expected = [
        (i, c)
        for i, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
        for c in range(1 << bits)
        if (a & ~c | c & ~b) & ((1 << bits) - 1) == 0
    ]
    assert sorted(zip(owner.tolist(), cell.tolist(), strict=True)) == expected


def test_an_index_leaves_few_candidates_whatever_the_number_of_boxes():
    noise = torch.Generator().manual_seed(0)
    x = (torch.rand(4000, 30, generator=noise) < 0.5).float()
    index = Index.of(x - 0.1, x + 0.1)
    query = (torch.rand(500, 30, generator=noise) < 0.5).float()
    assert sum(len(i) for i, _ in index.candidates(query, query)) < 50
    assert sum(len(i) for i, _ in index.candidates(x - 0.1, x + 0.1)) < 4200
    assert index.mask.bit_length() >= 12 and index.nbytes < 4000 * 200


def test_an_index_is_built_when_it_pays_and_once(monkeypatch):
    built = []
    plain = Index.of
    monkeypatch.setattr(membership, "_PAYS", 100)
    monkeypatch.setattr(Index, "of", lambda *faces: built.append(faces) or plain(*faces))
    lower = torch.arange(10.0)[:, None].expand(10, 2).clone()
    box, x = Box(lower, lower + 0.5), lower[3:7] + 0.25
    for _ in range(2):
        assert box.first(x).tolist() == [3, 4, 5, 6]
    assert not built
    for _ in range(3):
        assert box.first(x).tolist() == [3, 4, 5, 6]
    assert len(built) == 1
    twin = copy.deepcopy(box)
    assert pickle.loads(pickle.dumps(box)).first(x).tolist() == [3, 4, 5, 6]
    monkeypatch.setattr(membership, "_PAYS", 1)
    for moved, by in ((box, 1), (twin, 2)):  # in place
        moved.lower.add_(by)
        moved.upper.add_(by)
    for _ in range(2):
        assert box.first(x).tolist() == [2, 3, 4, 5]
        assert twin.first(x).tolist() == [1, 2, 3, 4]
    assert len(built) == 3
