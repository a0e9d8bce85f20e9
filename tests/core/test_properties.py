"""From points and a radius to demands, and demands that cannot hold together."""

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.core.errors import UsageError
from advrepair.core.properties import refuse_contradictions, robustness


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


@pytest.mark.parametrize("part", ["C", "d", "group"])
def test_every_part_of_a_demand_counts(part):
    properties = ball([[0.5], [0.5]], [1, 1])
    changed = getattr(properties, part).clone()
    changed[1, 0] += 1
    properties = evolve(properties, **{part: changed}, label=torch.tensor([1, -1]))
    with pytest.raises(UsageError, match=r"input 0 \(label 1\) and input 1 \(another specif"):
        refuse_contradictions(properties)


def test_one_ball_contradicts_nothing():
    properties = ball([[0.5], [0.6]], [0, 1])
    refuse_contradictions(properties[torch.tensor([0])])
