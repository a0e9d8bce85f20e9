"""Fit the kernel: its points, its temperature, and how much it weighs against N.

Both are chosen on labelled inputs that are no points. At each temperature the weight is the
largest that keeps the accuracy; of those pairs, the one that stands the most attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from advrepair.core.errors import UsageError
from advrepair.plugins.allocators.density import Density, feature_map, ramped, trusted
from advrepair.plugins.allocators.learned_map import Lesson, Ramp, learned_map
from advrepair.plugins.allocators.moved_copies import moved_copies
from advrepair.plugins.attacks.pgd import Pgd

if TYPE_CHECKING:
    from advrepair.core.graph import Network
    from advrepair.core.types import Points
    from advrepair.plugins.allocators.kernel import Kernel

# Temperatures tried, over the median squared distance to the nearest point.
_TEMPERATURES = (0.02, 0.05, 0.1, 0.2)
_WEIGHTS = tuple(10 ** (k / 8 - 2) for k in range(33))  # 0.01 to 100
_STEPS = 20
_LEARNING = 0.3  # of a fit, the share that the map takes, about
_AT_ONCE = 256
_ROWS = 4096


class Deployed(nn.Module):
    """F outside the boxes, while it is being fitted."""

    def __init__(
        self, network: Network, density: Density, trust: float, seen: Callable[[Tensor], Tensor]
    ) -> None:
        """seen: what the density is given of inputs."""
        super().__init__()
        self.network, self.density, self.trust, self.seen = network, density, trust, seen

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N,K] of inputs [N,*S]."""
        logits: Tensor = self.network(x)
        return trusted(logits, self.trust) + self.density.weight * self.density(self.seen(x))


@frozen
class _Choice:
    """A pair and what it does on the held-out inputs, as shares. kept: N's accuracy is."""

    temperature: float
    weight: float
    accuracy: float
    standing: float
    kept: bool


def fitted(kernel: Kernel, network: Network, given: Points) -> dict[str, Tensor]:
    """What the kernel keeps; see :meth:`advrepair.SmoothAllocator.fit`.

    ``validation`` says, of the held-out inputs: N's accuracy, F's, the share that stands the
    attack, and how many there are.
    """
    low, scale = _ends(kernel, given)

    def ramp(x: Tensor) -> Tensor:
        return ramped(given.seen(x), low, scale)

    _every_class(given.label, network)
    to_features = _map(kernel, network, given, ramp)
    seen = _seen(kernel, to_features, given.x, given.label, ramp, given.noise)
    known, chosen = torch.zeros(4, dtype=torch.float64), None
    if kernel.fits:
        if not len(given.held):
            raise UsageError(
                "allocator 'kernel' is fitted by labelled inputs beside its points: give more "
                "data, or --set kernel.temperature and kernel.weight"
            )
        own = _accuracy(network, given)
        numbers = torch.tensor([low, scale, 1.0, 1.0], dtype=torch.float64)
        density = Density.of(seen | {"map": to_features, "numbers": numbers}, given.x.dtype)
        chosen = _choose(kernel, network, density, given)
        known = torch.tensor([own, chosen.accuracy, chosen.standing, len(given.held)])
    if given.keep and len(given.held):
        x = torch.cat([given.x, given.held.center])
        label = torch.cat([given.label, given.held.label])
        seen = _seen(kernel, to_features, x, label, ramp, given.noise)
    temperature = chosen.temperature if chosen else kernel.temperature
    weight = chosen.weight if chosen else kernel.weight
    numbers = torch.tensor([low, scale, temperature, weight], dtype=torch.float64)
    return seen | {"map": to_features, "numbers": numbers, "validation": known.double()}


def _ends(kernel: Kernel, given: Points) -> tuple[float, float]:
    """Where the ramp begins, and how steep it is."""
    if given.clip and given.see is None:
        least, most = given.clip
    else:  # of features nobody says where they end
        faces = [given.seen(part).aminmax() for part in given.x.split(_ROWS)]
        least = min(float(face.min) for face in faces)
        most = max(float(face.max) for face in faces)
    first, last = kernel.ramp or (0.0, 1.0)
    width = (last - first) * (most - least)
    if not width > 0:
        raise UsageError("allocator 'kernel': all points are the same: repair other inputs")
    return least + first * (most - least), 1 / width


def _every_class(label: Tensor, network: Network) -> None:
    missing = (torch.bincount(label, minlength=network.outputs) == 0).nonzero()[:, 0]
    if len(missing):
        raise UsageError(
            f"allocator 'kernel' has no point of class {int(missing[0])}: raise kernel.points, "
            "or --count"
        )


def _map(kernel: Kernel, network: Network, given: Points, ramp: Ramp) -> Tensor:
    """From ramps to features, [S,D]: leading directions, and what is learned from them on."""
    shape = network.input_shape if given.see is None else tuple(given.seen(given.x[:1]).shape[1:])
    parts = (ramp(part) for part in given.x.split(_ROWS))
    start = feature_map(parts, shape, kernel.blur, kernel.rank, given.x.dtype)
    held = given.held
    radius = float((held.box.upper - held.box.lower).max()) / 2 if len(held) else 0.0
    lesson = Lesson(given.x, given.label, ramp, radius, given.clip, given.noise)
    return learned_map(start, lesson, kernel.steps, lambda share: given.tell(_LEARNING * share))


def _seen(
    kernel: Kernel,
    to_features: Tensor,
    x: Tensor,
    label: Tensor,
    ramp: Ramp,
    noise: torch.Generator,
) -> dict[str, Tensor]:
    """Features of the points and of their copies, class after class; squares and counts."""
    many, labels = moved_copies(x, label, kernel.copies, noise)
    order = labels.argsort(stable=True)
    points = torch.cat([(ramp(many[part]) @ to_features).half() for part in order.split(_ROWS)])
    square = torch.cat([part.double().square().sum(1) for part in points.split(_ROWS)])
    return {"points": points, "square": square.to(x.dtype), "counts": torch.bincount(labels)}


def _held(given: Points) -> Iterator[tuple[Tensor, Tensor]]:
    """Held-out inputs and labels, in parts."""
    for index in torch.arange(len(given.held)).split(_AT_ONCE):
        yield given.held.center[index], given.held.label[index]


def _accuracy(model: nn.Module, given: Points) -> float:
    right = 0
    for x, label in _held(given):
        with torch.no_grad():
            right += int((model(x).argmax(1) == label).sum())
    return right / len(given.held)


def _choose(kernel: Kernel, network: Network, density: Density, given: Points) -> _Choice:
    """The pair that stands the most attacks of those that keep the accuracy."""
    temperatures = [kernel.temperature]
    if not kernel.temperature:
        temperatures = _temperatures(density, given)
    found = []
    for i, temperature in enumerate(temperatures):
        given.tell(_LEARNING + (1 - _LEARNING) * i / len(temperatures))
        known = evolve(density, temperature=temperature)
        weight, accuracy, kept = _weight(kernel, network, known, given)
        model = Deployed(network, evolve(known, weight=weight), kernel.trust, given.seen)
        standing = _standing(model, kernel.attacked, given)
        found.append(_Choice(temperature, weight, accuracy, standing, kept))
    return max(found, key=lambda each: (each.kept, each.standing, each.accuracy))


def _temperatures(density: Density, given: Points) -> list[float]:
    """Those that are tried: shares of the median squared distance to the nearest point."""
    found = []
    for x in given.held.center[: 4 * _AT_ONCE].split(_AT_ONCE):
        phi = density.features(given.seen(x))
        best = [density.scores(phi, *block).amax(1) for block in density.blocks()]
        found.append(phi.square().sum(1) - torch.stack(best).amax(0))
    scale = float(torch.cat(found).clamp(min=0).median()) or 1.0
    return [scale * share for share in _TEMPERATURES]


def _weight(
    kernel: Kernel, network: Network, density: Density, given: Points
) -> tuple[float, float, bool]:
    """The largest weight that keeps the accuracy, or else the most accurate.

    Its accuracy; and whether it keeps that of N but for the drawdown, with a standard error of
    the difference to spare: the largest of many weights is also the luckiest.
    """
    weights = (kernel.weight,) if kernel.weight else _WEIGHTS
    right, lost, won = (torch.zeros(len(weights), dtype=torch.float64) for _ in range(3))
    for x, label in _held(given):
        with torch.no_grad():
            logits, known = network(x), density(given.seen(x))
        before, base = logits.argmax(1) == label, trusted(logits, kernel.trust)
        for i, weight in enumerate(weights):
            after = (base + weight * known).argmax(1) == label
            right[i] += after.sum()
            lost[i] += (before & ~after).sum()
            won[i] += (~before & after).sum()
    count = len(given.held)
    good = lost - won + (lost + won).sqrt() <= kernel.drawdown * count
    best = int(good.nonzero()[-1]) if bool(good.any()) else int(right.argmax())
    return weights[best], float(right[best]) / count, bool(good[best])


def _standing(model: nn.Module, attacked: int, given: Points) -> float:
    """Share of held-out inputs that a descent on F does not break."""
    asked = given.held[torch.arange(min(attacked, len(given.held)))]
    broken = 0
    for index in torch.arange(len(asked)).split(_AT_ONCE):
        part = asked[index]
        found = Pgd(steps=_STEPS).perturb(model, part, part.center, given.noise)
        with torch.no_grad():
            hit = part.violated(model(part.center)) | part.violated(model(found))
        broken += int(hit.sum())
    return 1 - broken / len(asked)
