"""The map that a kernel learns."""

import pytest
import torch
from attrs import evolve
from torch import Tensor

from advrepair.plugins.allocators import learned_map as module
from advrepair.plugins.allocators.density import ramped
from advrepair.plugins.allocators.learned_map import Lesson, learned_map

S = 12


def ramp(x: Tensor) -> Tensor:
    return ramped(x, 0.0, 1.0)


def a_lesson(count: int = 300, radius: float = 0.0) -> Lesson:
    """Two classes that the first coordinate tells apart by a little; the others are noise."""
    noise = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 2
    x = torch.rand(count, S, generator=noise)
    x[:, 0] = 0.4 + 0.2 * label
    return Lesson(x, label, ramp, radius, (0.0, 1.0), noise)


def right(to_features: Tensor, lesson: Lesson) -> float:
    """Share of points whose nearest other point is of their class."""
    phi = ramp(lesson.x) @ to_features
    apart = torch.cdist(phi, phi).fill_diagonal_(torch.inf)
    return float((lesson.label[apart.argmin(1)] == lesson.label).float().mean())


def test_it_finds_what_tells_the_classes_apart():
    lesson, start = a_lesson(), torch.eye(S)
    found = learned_map(start, lesson, 300)
    assert right(start, lesson) < 0.75 and right(found, lesson) > 0.95
    assert found.shape == start.shape and not found.requires_grad
    assert torch.equal(start, torch.eye(S))


def test_what_an_attacker_can_move_counts_less():
    """The first coordinate tells the classes apart by 0.2: half of it is in an attacker's reach."""
    start = torch.eye(S)
    calm, wary = (learned_map(start, a_lesson(radius=radius), 300) for radius in (0.0, 0.3))
    assert float(wary[0].norm() / wary.norm()) < 0.8 * float(calm[0].norm() / calm.norm())


def test_no_point_is_its_own_neighbour(monkeypatch):
    """If it were, noise would be learned as well as anything: each point has its own label."""
    counts = [3, 2]
    phi, itself = torch.randn(5, 4), torch.tensor([1, 4])
    label = torch.tensor([0, 1])
    others = module._Others(phi, counts, itself, 0.7)
    found = others.losses(phi[itself], label)
    for row, own in enumerate(itself.tolist()):
        share = -((phi - phi[own]).square().sum(1)) / 0.7
        share[own] = -torch.inf
        share = share.softmax(0)
        of_class = share[:3].sum() if label[row] == 0 else share[3:].sum()
        torch.testing.assert_close(found[row], -of_class.log(), rtol=1e-4, atol=1e-5)


def test_attacked_points_stay_within_radius_and_range():
    lesson = a_lesson(radius=0.3)
    x, label, itself = lesson.x[:50], lesson.label[:50], torch.arange(50)
    order = lesson.label.argsort(stable=True)
    others = module._Others(ramp(lesson.x[order]), [150, 150], itself, 0.5)
    moved = module._attacked(torch.eye(S), x, label, others, lesson)
    assert float((moved - x).abs().max()) <= 0.3 + 1e-6
    assert float(moved.min()) >= 0 and float(moved.max()) <= 1
    before, after = (others.losses(ramp(points), label).mean() for points in (x, moved))
    assert after > before


@pytest.mark.parametrize("steps, same", [(0, False), (5, True)])
def test_nothing_to_learn_leaves_the_map(steps, same):
    lesson = a_lesson(40)
    if same:
        lesson = evolve(lesson, x=torch.full((40, S), 0.5))
    start = torch.eye(S)
    assert torch.equal(learned_map(start, lesson, steps), start)
