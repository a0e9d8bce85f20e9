"""Detectors are off in the boxes whatever their direction, and on at most inputs elsewhere."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advrepair.core import detecting
from advrepair.core.box import Box
from advrepair.core.detecting import Detectors, fitted

seeds = st.integers(0, 2**31)


def boxes(seed, patches=3, each=2, inputs=5, width=0.2):
    noise = torch.Generator().manual_seed(seed)
    lower = torch.rand(patches * each, inputs, generator=noise)
    return Box(lower, lower + width * torch.rand(lower.shape, generator=noise))


def images(seed, count=80, inputs=5):
    return torch.rand(count, inputs, generator=torch.Generator().manual_seed(seed + 1))


def nothing_free(patches, x):
    return torch.zeros(patches, len(x), dtype=torch.bool)


def exactly(weight, x):
    return sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(weight, x, strict=True))


@given(seeds, st.sampled_from([1e-6, 1.0, 1e6]))
def test_any_direction_is_off_in_all_boxes_and_just_so(seed, scale):
    box, noise = boxes(seed), torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(3, 5, generator=noise)
    found = Detectors.of(weight, box)
    for i in range(3):
        tops, bottoms = [], []
        for k in (2 * i, 2 * i + 1):
            up, down = weight[i] > 0, weight[i] < 0
            tops.append(exactly(weight[i], torch.where(up, box.upper[k], box.lower[k])))
            bottoms.append(exactly(weight[i], torch.where(down, box.upper[k], box.lower[k])))
        rounding = 1e-12 * (float(found.size[i]) + scale)
        assert abs(float(found.reach[i]) - float(max(tops))) <= rounding
        assert abs(float(found.dip[i]) - float(max(tops) - min(bottoms))) <= rounding
        assert all(float(abs(each)) <= float(found.size[i]) + rounding for each in tops + bottoms)


@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_the_search_may_stop_anywhere(steps, monkeypatch):
    monkeypatch.setattr(detecting, "STEPS", steps)
    box, x = boxes(4), images(4)
    found = fitted(box, 3, x, nothing_free(3, x))
    for _ in range(20):
        inside = box.lower + torch.rand(box.lower.shape) * (box.upper - box.lower)
        value = (found.weight.double().repeat_interleave(2, 0) * inside.double()).sum(1)
        assert bool((value <= found.reach.repeat_interleave(2) + 1e-9).all())


def error(found, x):
    return float((1 - found(x)).square().mean())


def test_more_steps_come_closer(monkeypatch):
    box, x = boxes(5, each=1, inputs=40), images(5, 60, 40)
    errors = []
    for steps in (0, 5, 20, 80):
        monkeypatch.setattr(detecting, "STEPS", steps)
        errors.append(error(fitted(box, 3, x, nothing_free(3, x)), x))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.8 * errors[0]


def test_they_are_on_at_inputs_that_were_not_seen():
    box = boxes(6, each=1, inputs=60)
    found = fitted(box, 3, images(6, 200, 60), nothing_free(3, images(6, 200, 60)))
    assert float((found(images(7, 400, 60)) > 1 / 16).double().mean()) > 0.99


def test_inputs_in_the_boxes_of_a_patch_do_not_count():
    box, x = boxes(8, each=1), images(8)
    x = x[box.first(x) < 0]
    more = torch.cat([x, box.center[:1], box.upper[:1]])
    less = fitted(box, 3, x, nothing_free(3, x))
    found = fitted(box, 3, more, nothing_free(3, more))
    assert torch.allclose(less.weight[0], found.weight[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(less.weight[1], found.weight[1], rtol=1e-4, atol=1e-5)


def test_where_it_is_free_a_detector_is_only_kept_from_being_large():
    box, x = boxes(9, each=1, inputs=30), images(9, 100, 30)
    free = nothing_free(3, x)
    free[:, ::2] = True
    bound, loose = (fitted(box, 3, x, each)(x)[:, ::2] for each in (nothing_free(3, x), free))
    assert float((loose > 1).double().mean()) < 0.5 * float((bound > 1).double().mean())
    assert float(loose.mean()) < float(bound.mean())


@pytest.mark.parametrize("x", [torch.zeros(0, 5), torch.full((3, 5), 0.5)])
def test_nothing_to_see_is_no_error(x):
    box = Box(torch.zeros(1, 5), torch.ones(1, 5))
    found = fitted(box, 1, x, nothing_free(1, x))
    assert not bool(found.weight.any()) and float(found.reach) == float(found.dip) == 0
