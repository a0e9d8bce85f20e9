"""Search for counterexamples: before the repair, after it, and to test generalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import Factory, field, frozen
from torch import Tensor, nn

from advrepair.core.box import Box
from advrepair.core.data import Dataset
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network
from advrepair.core.interfaces import Attack
from advrepair.core.layout import Pieces
from advrepair.core.properties import robustness, united
from advrepair.core.types import PropertySet

_AT_ONCE = 256
Advance = Callable[[int], None]


@frozen(eq=False)
class Problem:
    """What is to be repaired: P properties, and counterexamples of those that do not hold.

    x_adv: [E,*S], property owner[e] is broken there; one of each property, unless said
    otherwise. row: [P], the row of the data set behind it, -1 if there is none. unseen: more
    counterexamples, none of them in x_adv, if they are known already: points and the property
    of each. pieces: how the boxes were cut in the search for them. others: inputs that patches
    should leave alone, [n,*S], and their labels, if that is asked for.
    """

    properties: PropertySet
    x_adv: Tensor
    row: Tensor
    owner: Tensor = field(default=Factory(lambda self: torch.arange(len(self.x_adv)), True))
    unseen: tuple[Tensor, Tensor] | None = None
    pieces: Pieces | None = None
    others: tuple[Tensor, Tensor] | None = None

    @property
    def broken(self) -> Tensor:
        """Properties with a counterexample: bool [P]."""
        return torch.bincount(self.owner, minlength=len(self.properties)) > 0


def at_once(network: Network) -> int:
    """Inputs that are attacked together: fewer where what a descent holds of each is large."""
    return max(8, network.at_once(_AT_ONCE, held=2))


def generator(seed: int, purpose: int) -> torch.Generator:
    """A generator for one purpose, so that stages do not share their random numbers."""
    return torch.Generator().manual_seed(seed * 1000 + purpose)


def find_counterexamples(
    network: Network,
    data: Dataset,
    epsilon: float,
    count: int | None,
    clip: tuple[float, float] | None,
    attack: Attack,
    seed: int,
    advance: Advance,
) -> Problem:
    """The first count inputs that are classified correctly and have a counterexample.

    count: None for all of them. advance: told of each that is found.
    Raises UsageError if the attack finds fewer than count, or none.
    """
    noise = generator(seed, 1)
    found: list[Problem] = []
    have = tried = 0
    for index in torch.arange(len(data)).split(at_once(network)):
        x, y = data.images(index), data.labels[index]
        right = _logits(network, x).argmax(1) == y
        tried += int(right.sum())
        asked = balls(network, data, index[right], epsilon, clip)
        x_adv = perturb(attack, network, asked, asked.center, noise)
        found.append(_broken(network, Problem(asked, x_adv, index[right]), count, have))
        have += len(found[-1].row)
        advance(len(found[-1].row))
        if have == count:
            return join(found)
    if count is None and have:
        return join(found)
    raise UsageError(
        f"count is {count or 'all'}: the attack finds {have} counterexamples at epsilon "
        f"{epsilon:g} among the {tried} correctly classified inputs of {data.name}; "
        + (f"use --count {have} or a larger --epsilon" if have else "use a larger --epsilon")
    )


def given_counterexamples(
    network: Network,
    data: Dataset,
    epsilon: float,
    count: int | None,
    clip: tuple[float, float] | None,
) -> Problem:
    """The first count inputs whose x_adv the network gets wrong.

    Raises UsageError if an x_adv lies outside its ball, or for fewer than count.
    """
    found: list[Problem] = []
    have = 0
    for index in torch.arange(len(data)).split(at_once(network)):
        asked = balls(network, data, index, epsilon, clip)
        x_adv = data.adversarial(index)
        if bool((outside := ~asked.box.holds(x_adv)).any()):
            row = int(index[outside][0])
            raise UsageError(
                f"x_adv row {row} lies outside the ball of radius {epsilon:g} around x row {row}; "
                "use a larger --epsilon or correct the file"
            )
        found.append(_broken(network, Problem(asked, x_adv, index), count, have))
        have += len(found[-1].row)
        if have == count:
            return join(found)
    if count is None and have:
        return join(found)
    raise UsageError(
        f"count is {count or 'all'}: the network is wrong on {have} of the {len(data)} x_adv; "
        + (f"use --count {have}" if have else "there is nothing to repair")
    )


def _broken(network: Network, asked: Problem, count: int | None, have: int) -> Problem:
    """Those whose x_adv the network gets wrong, no more than are missing to count."""
    wrong = asked.properties.violated(_logits(network, asked.x_adv)).nonzero()[:, 0]
    kept = wrong[: None if count is None else count - have]
    return Problem(asked.properties[kept], asked.x_adv[kept], asked.row[kept])


def generalisation_set(
    network: Network, problem: Problem, attack: Attack, samples: int, seed: int, advance: Advance
) -> tuple[Tensor, Tensor]:
    """Up to ``samples`` further counterexamples of every property with a label, for RGR.

    Returns points [N,*S] and the property of each, [N]; those that are known already besides.
    They differ from x_adv.
    """
    noise = generator(seed, 2)
    labelled = (problem.properties.label[problem.owner] >= 0).nonzero()[:, 0]
    more = problem.unseen or (problem.x_adv[:0], problem.owner[:0])
    # One array from the start: putting parts together would hold all of them twice.
    most = len(labelled) * samples + len(more[0])
    points = problem.x_adv.new_empty(most, *problem.x_adv.shape[1:])
    owners, have = problem.owner.new_empty(most), 0
    for example in labelled.repeat_interleave(samples).split(at_once(network)):
        index, known = problem.owner[example], problem.x_adv[example]
        asked = problem.properties[index]
        start = uniform(asked.box, noise)
        x = perturb(attack, network, asked, start, noise)
        new = asked.violated(_logits(network, x)) & (x != known).flatten(1).any(1)
        found = slice(have, have + int(new.sum()))
        points[found], owners[found], have = x[new], index[new], found.stop
        advance(len(index))
    end = have + len(more[0])
    points[have:end], owners[have:end] = more
    return points[:end], owners[:end]


def counterexamples_left(
    model: nn.Module,
    problem: Problem,
    attack: Attack,
    seed: int,
    advance: Advance,
    together: int = _AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Where the attack, or an x_adv itself, breaks a property by model: bool [P], points [P,*S].

    together: properties that are attacked in one batch.
    """
    noise = generator(seed, 3)
    properties = problem.properties
    hits, points = [], []
    for index in torch.arange(len(properties)).split(together):
        asked = properties[index]
        x = perturb(attack, model, asked, asked.box.clamp(asked.center), noise)
        hits.append(asked.violated(_logits(model, x)))
        points.append(x)
        advance(len(index))
    hit, point = torch.cat(hits), torch.cat(points)
    for example in torch.arange(len(problem.x_adv)).split(together):
        owner, x_adv = problem.owner[example], problem.x_adv[example]
        again = properties[owner].violated(_logits(model, x_adv))
        hit[owner[again]], point[owner[again]] = True, x_adv[again]
    return hit, point


def perturb(
    attack: Attack, model: nn.Module, properties: PropertySet, start: Tensor, noise: torch.Generator
) -> Tensor:
    """Run an attack and hold it to its promise: every point lies in its box."""
    x = attack.perturb(model, properties, start, noise).detach()
    return properties.box.clamp(torch.where(x.isnan(), start, x))


def uniform(box: Box, noise: torch.Generator) -> Tensor:
    """One random point of each box, [B,*S]."""
    share = torch.rand(box.lower.shape, generator=noise, dtype=box.lower.dtype)
    return box.clamp(box.lower + share * (box.upper - box.lower))


def balls(
    network: Network,
    data: Dataset,
    index: Tensor,
    epsilon: float,
    clip: tuple[float, float] | None,
) -> PropertySet:
    """Robustness properties of some rows; the target is N's second choice at the centre."""
    x, label = data.images(index), data.labels[index]
    logits = _logits(network, x)
    others = logits.scatter(1, label[:, None], -torch.inf)
    return robustness(
        x,
        label,
        epsilon,
        network.outputs,
        clip=clip,
        target=others.argmax(1),
        names=[f"{data.name}[{i}]" for i in index.tolist()],
    )


def join(parts: list[Problem]) -> Problem:
    """Several problems as one; pieces and unseen examples are left out."""
    before = [0]
    for part in parts:
        before.append(before[-1] + len(part.properties))
    return Problem(
        united([part.properties for part in parts]),
        torch.cat([part.x_adv for part in parts]),
        torch.cat([part.row for part in parts]),
        torch.cat([part.owner + n for part, n in zip(parts, before, strict=False)]),
    )


def shifted(examples: tuple[Tensor, Tensor] | None, before: int) -> tuple[Tensor, Tensor] | None:
    """Examples of properties that stand behind others now."""
    return None if examples is None else (examples[0], examples[1] + before)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits
