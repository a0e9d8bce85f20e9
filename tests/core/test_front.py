"""Faces of features hold what the deployed front computes, down to the last bit."""

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.core.box import Box
from advrepair.core.errors import PluginError
from advrepair.core.front import Front
from advrepair.core.parting import parted, places
from advrepair.core.rounding import Rounding
from advrepair.core.sampling import SampledFront
from advrepair.core.sections import Sampling
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.testing.networks import Sketch, convolutional, fully_connected, residual


def some_boxes(network, seed, radius):
    """Two boxes, and inputs in each: corners, the middle, points anywhere."""
    noise = torch.Generator().manual_seed(seed)
    center = torch.randn(2, *network.input_shape, generator=noise)
    box = Box.around(center, radius)
    share = torch.rand(60, 2, *network.input_shape, generator=noise)
    share[:20] = share[:20].round()
    return box, box.clamp(box.lower + share * (box.upper - box.lower))


def lost(front, faces, x):
    """Features of inputs, [n,2,*S], that lie outside."""
    with torch.no_grad():
        features = torch.stack([front(each) for each in x])
    return int(((features < faces.lower) | (features > faces.upper)).sum())


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from((convolutional, fully_connected, residual)),
    verifier=st.sampled_from((Interval(), DeepPoly())),
    seed=st.integers(0, 99),
    radius=st.sampled_from((0.0, 1e-6, 0.1, 2.0)),
)
def test_faces_hold_the_features_of_every_input(kind, verifier, seed, radius):
    network = kind(seed)
    at = places(network)[seed % len(places(network))]
    front = parted(network, at).front
    box, x = some_boxes(front, seed, radius)
    faces = Front(front, verifier, Rounding("deployed-float32")).box(box)
    assert faces.lower.dtype == network.dtype
    assert lost(front, faces, x) == 0


def test_faces_without_the_account_of_rounding_would_lose_features():
    """A ball of radius 0: what the front computes is not what it is in exact arithmetic."""
    network = Sketch(1, (40,)).linear(300).relu().linear(300).relu().linear(3).finish()
    front = parted(network, "relu_3").front
    x = some_boxes(front, 0, 0.0)[1][:, :1]
    box = Box(x[0], x[0])
    sound = Front(front, Interval(), Rounding("deployed-float32"))
    careless = Front(front, Interval(), Rounding("real"))
    assert lost(front, sound.box(box), x) == 0
    assert lost(front, careless.box(box), x) > 0


def test_a_verifier_that_is_not_rigorous_is_refused():
    class Loose(Interval):
        rigorous = False

    with pytest.raises(PluginError, match="choose another --set"):
        Front(convolutional(0), Loose(), Rounding())


def test_sampled_boxes_hold_their_samples_and_miss_others():
    network = convolutional(2)
    parts = parted(network, "auto")
    box, x = some_boxes(network, 2, 0.3)
    options = Sampling(anywhere=4, corners=4, steps=2, widen=0.0)
    front = SampledFront(parts, options, 0)
    faces = front.box(box)
    middle = torch.stack([box.center])
    assert not front.proved
    assert torch.equal(front.box(box).lower, faces.lower)
    again = SampledFront(parts, options, 0).box(box[[1]])
    assert torch.equal(again.upper, faces.upper[[1]])  # whatever is in the batch
    wider = SampledFront(parts, evolve(options, widen=20.0), 0)
    # A feature that is 0 in all samples has no width that could be more.
    assert lost(parts.front, faces, x) > 5 * lost(parts.front, wider.box(box), x)
    assert lost(parts.front, faces, middle) < lost(parts.front, faces, x)
    tight, wide = front.missed(box), wider.missed(box)
    assert set(tight) == {"anywhere", "corners", "searched", "numbers"}
    assert tight["corners"] > 0.2 and tight["numbers"] > 0
    assert wide["numbers"] < tight["numbers"] / 5


def test_samples_lie_in_their_ball():
    network = convolutional(2)
    parts, box = parted(network, "auto"), some_boxes(network, 2, 0.3)[0][[0]]
    seen = []
    parts.front.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    SampledFront(parts, Sampling(steps=3), 0).box(box)
    every = torch.cat([x.detach() for x in seen])
    assert len(every) >= 64 + 6
    assert bool(((box.lower <= every) & (every <= box.upper)).all())
