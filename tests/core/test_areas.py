"""Areas of a box by the patch that is on there, and what is proved of a repaired network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import some_parts, the_balls

from advrepair.core.areas import UNBOUNDED, areas
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.rounding import Rounding
from advrepair.core.sections import Training
from advrepair.core.training import Trained, train
from advrepair.core.types import PropertySet, Regions
from advrepair.core.verifying import Answer, Outcome, Reason, Verification
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.attacks.pgd import Pgd
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.verifiers.branch_and_bound import BranchAndBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.zonotope import Zonotope


def answered(function, asked: PropertySet, verifier=None, **how) -> Answer:
    """The answer about one property of a repaired network."""
    verifier, rounding = verifier or Zonotope(), Rounding("deployed-float32")
    template = function.bank.template
    bounder = Bounder(function.base, template, DeepPoly(), verifier, rounding, 2**31)
    return Verification(function, bounder, Pgd(), 20_000).answer(asked, None, lambda more: None)


def breaks(function, asked: PropertySet, x: torch.Tensor) -> bool:
    with torch.no_grad():
        return bool(asked.violated(function(x[None]))[0])


def repaired_parts(trained: bool):
    parts = some_parts(verifier=DeepPoly())
    if trained:
        result = Trained.nothing_yet(len(parts.repaired.bank))
        train(parts.bank, parts.worklist, parts.bounder, GradientWidth(), Training(), result)
    return parts


@pytest.mark.parametrize("verifier", [Zonotope(), BranchAndBound()])
def test_the_deployed_function_of_a_repair(verifier):
    """Patches that are trained are proved; where they are zero, N is what it was."""
    for trained, word in ((True, Outcome.HOLDS), (False, Outcome.VIOLATED)):
        parts = repaired_parts(trained)
        for i in range(len(parts.properties)):
            asked = parts.properties[torch.tensor([i])]
            answer = answered(parts.repaired, asked, verifier=verifier)
            assert answer.outcome is word
            if not trained:
                assert breaks(parts.repaired, asked, answer.x)


def test_a_box_that_reaches_beyond_the_regions_is_proved_for_both():
    """N is wrong on the ball, and the patch is on in half of it only."""
    parts = repaired_parts(True)
    lower, upper = parts.repaired.box.lower.clone(), parts.repaired.box.upper.clone()
    asked = parts.properties[torch.tensor([0])]
    x = parts.problem.x_adv[0]
    middle = asked.box.center[0, 0]
    for face, left in ((upper, x[0] < middle), (lower, x[0] > middle)):
        if left:  # the side of the counterexample loses its patch
            other = lower if face is upper else upper
            other[0, 0] = middle
    parts.repaired.box_lower, parts.repaired.box_upper = lower, upper
    answer = answered(parts.repaired, asked)
    assert answer.outcome is Outcome.VIOLATED
    assert breaks(parts.repaired, asked, answer.x)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.booleans())
def test_areas_cover_the_box_with_the_patch_that_is_on(seed, chosen):
    """On points of a grid, on the faces of regions too."""
    parts = some_parts()
    noise = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, 5, (2, 7, 6), generator=noise).float() / 4
    box = Box(ends.amin(0), ends.amax(0))
    patch = torch.randint(-1, len(parts.repaired.bank), (7,), generator=noise)
    function = parts.repaired
    function.box_lower, function.box_upper, function.patch = box.lower, box.upper, patch
    if chosen:
        function.allocator = Nearest()
    assert isinstance(function.regions, Regions)
    whole = Box(torch.full((1, 6), 0.125), torch.full((1, 6), 0.875))
    found, on = areas(function, whole)
    x = whole.clamp(torch.randint(0, 9, (400, 6), generator=noise).float() / 8)
    home = box.first(x)
    outside = UNBOUNDED if chosen else -1
    want = torch.where(home >= 0, patch[home], outside)
    pairs = found.meets(Box(x, x))
    covered = torch.zeros(len(x), dtype=torch.bool)
    covered[pairs[on[pairs[:, 1]] == want[pairs[:, 0]], 0]] = True
    assert bool(covered.all())
    assert bool((found.lower >= whole.lower).all() and (found.upper <= whole.upper).all())


def test_what_an_allocator_chooses_is_not_proved():
    parts = repaired_parts(True)
    parts.repaired.allocator = Nearest()
    x = torch.full((1, 6), 0.5)
    with torch.no_grad():
        label = parts.repaired(x).argmax(1)
    asked = the_balls(parts.repaired.base, x, label, 1e-6)
    answer = answered(parts.repaired, asked)
    assert answer.outcome is Outcome.UNKNOWN and answer.reason is Reason.ALLOCATOR
