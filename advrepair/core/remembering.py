"""Which labelled inputs a smooth allocator remembers, and which it is fitted by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import evolve
from torch import Tensor

from advrepair.core.attacking import Problem, balls, generator
from advrepair.core.config import Configuration
from advrepair.core.data import Dataset
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network
from advrepair.core.inputs import clip_of
from advrepair.core.interfaces import SmoothAllocator
from advrepair.core.parting import parted
from advrepair.core.types import Points
from advrepair.core.work import Work

_AT_ONCE = 256
_PARTS = 100  # of the progress of a fit
_HELD_SHARE = 0.1  # of the inputs, at most, where nearly all are to be remembered


def check_allocator(plan: Configuration, data: Dataset | None) -> None:
    """Raises UsageError, before any work, for a smooth allocator with too few labelled inputs."""
    if not isinstance(plan.allocator, SmoothAllocator):
        return
    if data is None:
        raise no_inputs(plan.allocator)
    if plan.allocator.points > len(data):
        raise _too_many(plan.allocator, data)


def no_inputs(allocator: SmoothAllocator) -> UsageError:
    """The error for a smooth allocator without labelled inputs."""
    return UsageError(
        f"allocator {allocator.name!r} remembers labelled inputs: name them with --data, or use "
        "--allocator none"
    )


def remember(
    network: Network, problem: Problem, plan: Configuration, data: Dataset | None, run: Work
) -> dict[str, Tensor]:
    """What a smooth allocator is fitted to; nothing for any other.

    Raises UsageError for too few inputs.
    """
    allocator = plan.allocator
    if not isinstance(allocator, SmoothAllocator):
        return {}
    if data is None:
        raise no_inputs(allocator)
    saved = run.checkpoint.load("allocator") if run.checkpoint else None
    if saved is not None:
        return saved
    with run.stage("allocator", _PARTS) as advance:
        done = 0

        def tell(share: float) -> None:
            nonlocal done
            more = int(_PARTS * min(max(share, 0.0), 1.0)) - done
            if more > 0:
                done += more
                advance(more)

        given = evolve(points_of(network, problem, allocator, plan, data), tell=tell)
        found = dict(allocator.fit(network, given))
    if run.checkpoint:
        run.checkpoint.save("allocator", found)
    return found


def points_of(
    network: Network,
    problem: Problem,
    allocator: SmoothAllocator,
    plan: Configuration,
    data: Dataset,
) -> Points:
    """The repaired inputs first, then others at random; those held out are others again.

    Where nearly all inputs are asked for, those held out are remembered as well, after they
    have served; so the parameters are chosen by inputs that were no points.
    Raises UsageError if there are fewer inputs than points asked for.
    """
    repaired = problem.row[problem.row >= 0]
    rest = not_repaired(repaired, len(data), plan.run.seed)
    more = max(0, allocator.points - len(repaired))
    if more > len(rest):
        raise _too_many(allocator, data)
    keep = len(rest) - more < allocator.validation
    held = min(allocator.validation, len(rest) - more)
    if keep:
        held = max(held, min(allocator.validation, int(_HELD_SHARE * len(data)), len(rest)))
    first = min(more, len(rest) - held)
    clip = clip_of(plan.problem)
    chosen, last = torch.cat([repaired, rest[:first]]), rest[len(rest) - held :]
    return Points(
        x=data.images(chosen),
        label=data.labels[chosen],
        held=balls(network, data, last, plan.problem.epsilon, clip),
        keep=keep and first < more,
        clip=clip,
        noise=generator(plan.run.seed, 12),
        see=_front(network, plan),
    )


def _front(network: Network, plan: Configuration) -> Callable[[Tensor], Tensor] | None:
    """Features [N,D] of inputs [N,*S], a bounded number of them at a time; None without a layer."""
    if not plan.patch.at:
        return None
    front = parted(network, plan.patch.at).front
    return lambda x: torch.cat([front(part) for part in x.split(_AT_ONCE)])


def not_repaired(repaired: Tensor, count: int, seed: int) -> Tensor:
    """The rows of a data set of count inputs that are not repaired, in a random order: [n]."""
    others = torch.ones(count, dtype=torch.bool)
    others[repaired] = False
    rest = others.nonzero()[:, 0]
    return rest[torch.randperm(len(rest), generator=generator(seed, 13))]


def _too_many(allocator: SmoothAllocator, data: Dataset) -> UsageError:
    return UsageError(
        f"{allocator.name}.points is {allocator.points}: {data.name} has {len(data)} inputs; ask "
        "for so many at most"
    )
