"""Steps on stacked weights."""

import pytest
import torch

from advrepair.core.optimisers import OPTIMISERS, Adam, Polyak


def problem(seed=0, patches=3):
    generator = torch.Generator().manual_seed(seed)
    stack = {
        "w": torch.randn(patches, 4, 2, generator=generator),
        "b": torch.randn(patches, 4, generator=generator),
    }
    gradient = {name: torch.randn(t.shape, generator=generator) for name, t in stack.items()}
    return stack, gradient, torch.rand(patches, generator=generator)


def test_polyak_ends_a_linear_loss_in_one_step():
    stack, gradient, loss = problem()
    after = Polyak(1.0).step(stack, gradient, loss)
    for i in range(3):
        drop = sum(((stack[n][i] - after[n][i]) * gradient[n][i]).sum() for n in stack)
        assert drop.item() == pytest.approx(loss[i].item(), rel=1e-5)


def test_polyak_scales_with_lr():
    stack, gradient, loss = problem()
    whole, half = (Polyak(lr).step(stack, gradient, loss) for lr in (1.0, 0.5))
    for name in stack:
        assert torch.allclose(2 * (half[name] - stack[name]), whole[name] - stack[name], atol=1e-5)


def test_polyak_survives_a_vanished_gradient():
    stack, gradient, loss = problem()
    gradient = {name: torch.zeros_like(t) for name, t in gradient.items()}
    after = Polyak(1.0).step(stack, gradient, loss)
    assert all(torch.equal(after[name], stack[name]) for name in stack)


def test_polyak_does_not_turn_back():
    """What of a step is against the one before is left out; what is not, stays."""
    stack, first, loss = problem()
    second = {name: torch.randn_like(t) - first[name] for name, t in first.items()}
    second = {
        n: torch.where(torch.arange(3).view(-1, *[1] * (t.dim() - 1)) < 2, t, first[n])
        for n, t in second.items()
    }
    optimiser = Polyak(1.0)
    between = optimiser.step(stack, first, loss)
    stay = torch.tensor([True, False, True])
    optimiser.keep(stay)
    between, first, second = ({n: t[stay] for n, t in s.items()} for s in (between, first, second))
    after = optimiser.step(between, second, loss[stay])
    step = {n: (between[n] - after[n]).flatten(1) for n in after}
    along = sum((step[n] * first[n].flatten(1)).sum(1) for n in step)
    assert abs(along[0].item()) < 1e-5 and along[1].item() > 0
    plain = Polyak(1.0).step(between, second, loss[stay])
    assert all(torch.equal(after[n][1], plain[n][1]) for n in after)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_has_no_gradient_stays(name):
    stack, gradient, loss = problem()
    optimiser = OPTIMISERS[name](0.1)
    last = {"b": gradient["b"]}
    after = optimiser.step(stack, last, loss)
    assert after["w"] is stack["w"] and not torch.equal(after["b"], stack["b"])
    assert not torch.equal(optimiser.step(after, gradient, loss)["w"], stack["w"])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_patch_steps_alone(name):
    stack, gradient, loss = problem()
    together = OPTIMISERS[name](0.1).step(stack, gradient, loss)
    for i in range(3):
        part = slice(i, i + 1)
        alone = OPTIMISERS[name](0.1).step(
            {n: t[part] for n, t in stack.items()},
            {n: t[part] for n, t in gradient.items()},
            loss[part],
        )
        assert all(torch.equal(together[n][part], alone[n]) for n in stack)


def test_adam_is_adam_also_after_a_patch_has_left():
    ours, theirs = Adam(0.1), []
    stack, _, loss = problem()
    for i in range(3):
        own = [t[i].clone().requires_grad_() for t in stack.values()]
        theirs.append((own, torch.optim.Adam(own, lr=0.1, eps=1e-8)))
    stay = torch.tensor([True, False, True])
    for seed in range(6):
        gradient = problem(seed + 1)[1]
        if seed >= 3:
            gradient = {n: t[stay] for n, t in gradient.items()}
        stack = ours.step(stack, gradient, loss)
        for slot, (own, optimiser) in enumerate(theirs):
            for leaf, t in zip(own, gradient.values(), strict=True):
                leaf.grad = t[slot].clone()
            optimiser.step()
        for slot, (own, _) in enumerate(theirs):
            for leaf, t in zip(own, stack.values(), strict=True):
                assert torch.allclose(leaf, t[slot], atol=1e-5)
        if seed == 2:
            ours.keep(stay)
            stack, loss = {n: t[stay] for n, t in stack.items()}, loss[stay]
            del theirs[1]
