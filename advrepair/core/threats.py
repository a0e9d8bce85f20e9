"""Who attacks the deployed function, and what the attacker knows.

A threat proposes one point for every input, inside its ball. Whether a point breaks anything
is decided by the deployed function alone, run on that point: a threat may be as clever or as
wrong as it likes. The worst over all threats is what an adaptive attacker reaches
(arXiv 2002.08347, 1902.06705).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.attacking import perturb, uniform
from advrepair.core.box import Box
from advrepair.core.interfaces import Attack, RowWise
from advrepair.core.patching import RepairedNetwork
from advrepair.core.types import PropertySet

_ROUTES = 4  # routes tried for an input
_PROBES = 8  # random points of a ball whose route is looked at
_NEIGHBOURS = 4  # repaired boxes around which an input is moved


@frozen(eq=False)
class Target:
    """A deployed function under attack.

    attack: the one asked for. quick: a descent, which is tried besides.
    """

    model: RepairedNetwork
    attack: Attack
    quick: Attack
    noise: torch.Generator

    def search(self, model: nn.Module, asked: PropertySet) -> list[Tensor]:
        """Where both attacks end up on a model, [P,*S] each."""
        return search((self.attack, self.quick), model, asked, self.noise)


Threat = Callable[[Target, PropertySet], list[Tensor]]


def search(
    attacks: Sequence[Attack], model: nn.Module, asked: PropertySet, noise: torch.Generator
) -> list[Tensor]:
    """Where each attack ends up, begun at the centres: [P,*S] each.

    Whatever is compared is searched by the same attacks, so that none looks better for having
    been attacked less.
    """
    return [perturb(attack, model, asked, asked.center, noise) for attack in attacks]


class FixedRoute(RowWise):
    """The repaired network with the patches of each row fixed beforehand: never deployed.

    route: bool [N,Q+1], as :func:`route_of` gives it; it can only be run on all N rows.
    """

    def __init__(self, repaired: RepairedNetwork, route: Tensor) -> None:
        super().__init__()
        self.repaired, self.route = repaired, route

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N,K]; row i by the route of row i."""
        seen = self.repaired.seen(x)
        logits = self.repaired.tail(seen)
        found = self.repaired.bank.add_to(logits, seen, self.route[:, :-1])
        return self.repaired.smoothed(found, seen, logits, self.route[:, -1])

    def of_rows(self, index: Tensor) -> FixedRoute:
        """The same on some of the rows, [n]."""
        return FixedRoute(self.repaired, self.route[index])


def route_of(repaired: RepairedNetwork, x: Tensor) -> Tensor:
    """Patches of each query, and last whether a smooth allocator answers it: bool [N,Q+1]."""
    with torch.no_grad():
        gates = repaired.route(x, repaired.base(x))
    return torch.cat([gates, repaired.smooth(x)[:, None]], 1)


def transferred(target: Target, asked: PropertySet) -> list[Tensor]:
    """The attack on the network without patches: it knows nothing of them."""
    return target.search(target.model.base, asked)


def straight_through(target: Target, asked: PropertySet) -> list[Tensor]:
    """The attack on the deployed function, whose route counts as constant in the gradient."""
    return target.search(target.model, asked)


def by_route(target: Target, asked: PropertySet) -> list[Tensor]:
    """The attack with the route fixed, for each of the routes seen in the ball.

    Only a point that really takes its route is kept by the judge, as for every threat.
    """
    model, found = target.model, []
    for route in _routes_in(model, asked, target.noise):
        found += target.search(FixedRoute(model, route), asked)
    return found


def just_outside(target: Target, asked: PropertySet) -> list[Tensor]:
    """Points of the ball a rounding outside a repaired box, otherwise as the transferred ones.

    Where the boxes route, an attacker leaves them by the least step in one coordinate.
    """
    model, box = target.model, asked.box
    start = perturb(target.quick, model.base, asked, asked.center, target.noise)
    pairs = model.box.meets(box)
    found = []
    for turn in range(_NEIGHBOURS):
        rank = torch.arange(len(pairs)) - torch.searchsorted(
            pairs[:, 0].contiguous(), pairs[:, 0].contiguous()
        )
        i, j = pairs[rank == turn].T
        if not len(i):
            break
        x = start.clone()
        x[i] = _left(x[i], box[i], model.box[j])
        found.append(x)
    return found


THREATS: Mapping[str, Threat] = {
    "transferred": transferred,
    "straight-through": straight_through,
    "by-route": by_route,
    "just-outside": just_outside,
}


def _left(x: Tensor, ball: Box, home: Box) -> Tensor:
    """Points moved out of a repaired box, inside their ball, along the cheapest coordinate."""
    flat, lower, upper = x.flatten(1), home.lower.flatten(1), home.upper.flatten(1)
    low, high = ball.lower.flatten(1), ball.upper.flatten(1)
    under, over = lower.nextafter(low - 1), upper.nextafter(high + 1)
    cost_under = torch.where(under >= low, (flat - under).abs(), torch.inf)
    cost_over = torch.where(over <= high, (over - flat).abs(), torch.inf)
    cost = torch.minimum(cost_under, cost_over)
    dim = cost.argmin(1, keepdim=True)
    goal = torch.where(cost_under <= cost_over, under, over).gather(1, dim)
    possible = torch.isfinite(cost.gather(1, dim))
    moved = flat.scatter(1, dim, torch.where(possible, goal, flat.gather(1, dim)))
    return moved.view(x.shape)


def _routes_in(model: RepairedNetwork, asked: PropertySet, noise: torch.Generator) -> list[Tensor]:
    """Up to a few routes of each ball, bool [P,Q+1] each: that of the centre, then others."""
    points = [asked.center, *(uniform(asked.box, noise) for _ in range(_PROBES))]
    seen = torch.stack([route_of(model, x) for x in points])  # [T,P,Q+1]
    routes = []
    left = torch.ones(seen.shape[:2], dtype=torch.bool)
    for _ in range(_ROUTES):
        if not bool(left.any()):
            break
        first = left.to(torch.uint8).argmax(0)
        route = seen[first, torch.arange(seen.shape[1])]
        routes.append(route)
        left &= (seen != route).any(2)
    return routes
