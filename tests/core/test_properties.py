"""From points and a radius to demands, and demands that cannot hold together."""

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.core.box import Box
from advrepair.core.compatibility import common_output, impossible
from advrepair.core.errors import UsageError
from advrepair.core.properties import demands, in_words, refuse_contradictions, robustness
from advrepair.core.types import PropertySet, group_margin


def ball(x, label, epsilon=0.1, outputs=3, **options):
    return robustness(torch.tensor(x), torch.tensor(label), epsilon, outputs, **options)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_it_holds_iff_the_label_wins_alone(seed, outputs):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(-3, 4, (20, outputs), generator=generator).float()
    label = torch.randint(outputs, (20,), generator=generator)
    properties = robustness(torch.zeros(20, 1), label, 0.1, outputs)
    own = y.gather(1, label[:, None])
    wins = (own > y.scatter(1, label[:, None], -torch.inf)).all(1)
    assert torch.equal(~properties.violated(y), wins)


def test_every_other_label_is_a_group_of_one_row():
    properties = ball([[0.5], [0.5]], [2, 0])
    assert properties.C.tolist() == [[[-1, 0, 1], [0, -1, 1]], [[1, -1, 0], [1, 0, -1]]]
    assert properties.group.tolist() == [[0, 1], [0, 1]]
    assert not properties.d.any()


def test_a_nan_output_breaks_it():
    y = torch.tensor([[torch.nan, 0.0, 1.0]])
    assert ball([[0.5]], [2]).violated(y).tolist() == [True]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-6, 0.7))
def test_every_point_at_distance_epsilon_is_inside(seed, epsilon):
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed))
    properties = robustness(x, torch.zeros(4, dtype=torch.long), epsilon, 2, clip=(0.0, 1.0))
    for point in (x - epsilon, x + epsilon, x):
        assert properties.box.holds(point.clamp(0, 1)).all()
    assert properties.box.lower.min() >= 0 and properties.box.upper.max() <= 1
    assert torch.equal(properties.center, x)


def test_defaults_and_names():
    properties = ball([[0.5], [0.6]], [1, 1])
    assert properties.names == ("input 0", "input 1")
    assert properties.target.tolist() == [-1, -1]
    named = ball([[0.5], [0.6]], [1, 1], target=torch.tensor([0, 2]), names=["a", "b"])
    assert (named.names, named.target.tolist()) == (("a", "b"), [0, 2])


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_must_be_an_output(label):
    with pytest.raises(UsageError, match=r"labels must lie in 0\.\.2"):
        ball([[0.5]], [label])


def test_overlap_with_one_demand_is_fine():
    refuse_contradictions(ball([[0.5], [0.55], [0.9]], [1, 1, 0]))


def test_contradictory_demands_name_the_pair_and_the_ways_out():
    properties = ball([[0.1], [0.5], [0.6]], [0, 1, 2], names=["a", "b", "c"])
    with pytest.raises(UsageError) as error:
        refuse_contradictions(properties)
    assert str(error.value) == (
        "b (label 1) and c (label 2) overlap and cannot both hold; "
        "use a smaller --epsilon, or leave one of them out of the data"
    )


def test_the_number_of_contradictory_pairs_is_told():
    with pytest.raises(UsageError, match=r"\(3 such pairs\)"):
        refuse_contradictions(ball([[0.5], [0.6], [0.55]], [0, 1, 2]))


@pytest.mark.parametrize("apart", [False, True])
def test_a_shared_face_is_an_overlap_and_one_step_more_is_not(apart):
    properties = ball([[0.25], [0.75]], [0, 1])
    face = torch.tensor(0.5)
    above = torch.nextafter(face, torch.tensor(1.0)) if apart else face
    upper, lower = properties.box.upper.clone(), properties.box.lower.clone()
    upper[0], lower[1] = face, above
    properties = evolve(properties, box=evolve(properties.box, lower=lower, upper=upper))
    if apart:
        refuse_contradictions(properties)
    else:
        with pytest.raises(UsageError, match="cannot both hold"):
            refuse_contradictions(properties)


def rows(*parts):
    """Boxes [0, 1] over one input, each with rows (group, coefficients..., constant)."""
    count, most = len(parts), max(map(len, parts))
    filled = [[*part, *[(-1, 0.0, 0.0, 0.0)] * (most - len(part))] for part in parts]
    numbers = torch.tensor(filled, dtype=torch.float64)
    lower = torch.zeros(count, 1)
    group = numbers[..., 0].long()
    return demands(lower, lower + 1, numbers[..., 1:-1], numbers[..., -1], group)


@pytest.mark.parametrize(("constant", "fits"), [(1.0, True), (0.0, False), (-1.0, False)])
def test_constants_decide_whether_demands_fit_together(constant, fits):
    properties = rows([(0, 1.0, 0.0, 0.0)], [(0, -1.0, 0.0, constant)])
    if fits:
        refuse_contradictions(properties)
    else:
        with pytest.raises(UsageError) as error:
            refuse_contradictions(properties)
        second = "y0 < 0" if not constant else "y0 < -1"
        assert str(error.value) == (
            f"property 0 (y0 > 0) and property 1 ({second}) overlap and cannot both hold; "
            "leave one of them out"
        )


@pytest.mark.parametrize("joined", [True, False])
def test_groups_decide_whether_demands_fit_together(joined):
    second = [(0, -1.0, 0.0, 0.0), (0 if joined else 1, 0.0, 1.0, 0.0)]
    properties = rows([(0, 1.0, 0.0, 0.0)], second)
    if joined:
        refuse_contradictions(properties)
    else:
        with pytest.raises(UsageError, match=r"\(y0 < 0 and y1 > 0\) overlap and cannot both"):
            refuse_contradictions(properties)


def test_a_contradiction_that_no_pair_of_rows_shows_is_refused_as_not_found():
    first = [(0, 1.0, -2.0, 0.0), (1, 1.0, 3.0, 0.0)]
    with pytest.raises(
        UsageError, match="overlap, and no output was found that meets both; leave one"
    ):
        refuse_contradictions(rows(first, [(0, -1.0, 0.0, 0.0)]))


@pytest.mark.parametrize(("group", "fits"), [([[0, 0]], True), ([[0, 1]], False)])
def test_a_label_and_the_rank_of_another_output(group, fits):
    first = ball([[0.5]], [1])
    lower, upper = first.box.lower, first.box.upper
    C = torch.tensor([[[1.0, 0, -1], [1, -1, 0]]])
    second = demands(lower, upper, C, torch.zeros(1, 2), torch.tensor(group), ["b"])
    names = ("C", "d", "group", "label", "target", "center")
    parts = [torch.cat([getattr(first, n), getattr(second, n)]) for n in names]
    both = PropertySet(Box(lower.expand(2, 1), upper.expand(2, 1)), *parts, ("a", "b"))
    if fits:
        refuse_contradictions(both)
    else:
        with pytest.raises(UsageError, match=r"a \(label 1\) and b \(output 0 is the largest\)"):
            refuse_contradictions(both)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8), st.integers(1, 3))
def test_an_output_is_found_where_there_is_one(seed, outputs, groups, each):
    generator = torch.Generator().manual_seed(seed)
    y, C, d = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((outputs,), (groups * each, outputs), (groups * each,))
    )
    group = torch.arange(groups).repeat_interleave(each)
    sign = (C @ y + d)[::each].sign()
    C[::each] *= sign[:, None]
    d[::each] *= sign
    assert not impossible(C, d, group)
    found = common_output(C, d, group)
    if found is not None:  # a search, but what it finds must hold
        assert (group_margin((C @ found + d)[None], group[None]) > 0).all()
    else:
        assert groups > 2


def test_many_boxes_that_meet_are_compared_by_their_few_demands():
    label = torch.arange(10).repeat(40)
    with pytest.raises(UsageError, match=r"\(72000 such pairs\)"):
        refuse_contradictions(robustness(torch.zeros(400, 2), label, 0.1, 10))


def test_one_ball_contradicts_nothing():
    properties = ball([[0.5], [0.6]], [0, 1])
    refuse_contradictions(properties[torch.tensor([0])])


def made(**changes):
    """Arguments of :func:`demands` for two properties over [1,2] inputs and two outputs."""
    lower = torch.tensor([[[0.0, 1.0]], [[2.0, 3.0]]])
    good = {
        "lower": lower,
        "upper": lower + 1,
        "C": torch.tensor([[[1.0, -1.0], [0.5, 0.0]], [[1.0, 0.0], [7.0, 7.0]]]).double(),
        "d": torch.tensor([[0.0, 1.0], [2.0, 3.0]]).double(),
        "group": torch.tensor([[0, 1], [0, -1]]),
    }
    return demands(**good | changes)


def test_demands_are_what_was_given():
    properties = made(names=["a", "b"])
    assert properties.names == ("a", "b")
    assert properties.label.tolist() == properties.target.tolist() == [-1, -1]
    assert properties.center.tolist() == [[[0.5, 1.5]], [[2.5, 3.5]]]
    assert properties.C[1].tolist() == [[1, 0], [0, 0]], "a row that fills up says nothing"
    assert properties.d[1].tolist() == [2, 0]
    y = torch.tensor([[1.0, 0.0], [-2.0, 9.0]])
    assert properties.violated(y).tolist() == [False, True]
    assert made().names == ("property 0", "property 1")


NAN = torch.full((2, 1, 2), torch.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lower": NAN}, "property 0: a face of its box is NaN or infinite"),
        ({"lower": torch.full((2, 1, 2), 9.0)}, "property 0: its box is inverted"),
        ({"C": NAN.reshape(2, 2, 1).expand(2, 2, 2)}, "property 0: C or d is NaN"),
        ({"d": torch.tensor([[0.0, 0], [torch.inf, 0]])}, "property 1: C or d is NaN"),
        ({"group": torch.tensor([[0, 1], [-1, -1]])}, "property 1: it has no row"),
        ({"group": torch.tensor([[0, 2], [0, -1]])}, r"property 0: group .* in -1\.\.1"),
        ({"C": torch.eye(2).repeat(2, 1, 1) - torch.eye(2)[0]}, "a row has no coefficient"),
        ({"C": torch.zeros(2, 2)}, r"C has shape \(2, 2\)"),
        ({"C": torch.zeros(2, 0, 2), "d": NAN[:, 0, :0], "group": NAN[:, 0, :0]}, "it has no row"),
        ({"d": torch.zeros(2, 3)}, r"d has shape \(2, 3\), not \(2, 2\)"),
        ({"group": torch.zeros(1, 2)}, "lengths 2, 2, 2, 2, 1"),
        ({"names": ["a"]}, "names has shape"),
        ({"upper": torch.ones(2, 2)}, "must agree"),
        ({"d": torch.zeros(2, 2, dtype=torch.long)}, "must be floating-point"),
    ],
)
def test_demands_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        made(**changes)


LARGER = [[-1.0, 1, 0], [-1, 0, 1]]
WORDS = [
    (LARGER, [0, 0], "output 0 is not the largest"),
    (LARGER, [0, 1], "output 0 is the smallest"),
    ([[1.0, -1, 0], [2, 0, -2]], [0, 0], "output 0 is not the smallest"),
    ([[0.0, -1, 1], [-1, 0, 1]], [1, 0], "output 2 is the largest"),
    ([[-1.0, 1, 0], [-1, 1, 0]], [0, 0], "y1 > y0 or y1 > y0"),
    ([[-1.0, 1, 0], [-1, 0, 2]], [0, 1], "y1 > y0 and -y0 + 2 y2 > 0"),
    ([[-1.0, 1, 0]], [0], "y1 > y0"),
]


@pytest.mark.parametrize(("C", "group", "words"), WORDS)
def test_ranks_are_said_in_words(C, group, words):
    lower = torch.zeros(1, 1)
    C, group = torch.tensor([C]), torch.tensor([group])
    properties = demands(lower, lower, C, torch.zeros(group.shape), group)
    assert in_words(properties, 0) == f"for every input of the box, {words}"
