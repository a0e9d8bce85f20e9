"""The two stages of CARE: the causal effect of every unit, and the swarm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair import (
    Labelled,
    MethodResult,
    MethodStatus,
    Network,
    Operation,
    Scope,
    Task,
    UsageError,
)
from advrepair_baselines.cutting import behind, factor, probed, shift, upto
from advrepair_baselines.margins import Rows
from advrepair_baselines.weights import with_weights

if TYPE_CHECKING:
    from advrepair_baselines.care import Care

_INERTIA, _OWN, _COMMON = 0.8, 0.41, 0.41
_STILL, _PATIENCE = 1e-3, 10  # the swarm stops when its best cost moves less for so long
_AT_ONCE = 2**23  # numbers of the largest layer that are in flight


@frozen
class Unit:
    """A neuron behind a ReLU, or a channel. layer: name of the ReLU."""

    layer: str
    index: int


def search(options: Care, task: Task) -> MethodResult:
    """Find the causes, rescale them, and give the network that came of it."""
    layers = hidden_layers(task.network, options.layer)
    effects = {op.name: contributions(options, task, op) for op in layers}
    units, largest = most(effects, options.share, options.units)
    cost = Cost.of(options, task, units)
    noise = torch.Generator().manual_seed(task.seed * 1000 + 32)

    def tell(turn: int) -> None:
        task.tell("care: swarm", turn, options.iterations)

    best, history = swarm(cost, len(units), options.particles, options.iterations, noise, tell)
    model = rescaled(task.network, units, 1 + best)
    with torch.no_grad():
        wrong = int(task.properties[task.owner].violated(model(task.x_adv)).sum())
    evidence = {
        "candidates": sum(len(each) for each in effects.values()),
        "units": [f"{unit.layer}[{unit.index}]" for unit in units],
        "contributions": [round(value, 6) for value in largest],
        "factors": [round(1 + value, 6) for value in best.tolist()],
        "cost before": history[0],
        "cost": history[-1],
        "iterations": len(history) - 1,
        "still wrong": wrong,
    }
    status = MethodStatus.NOT_REPAIRED if wrong else MethodStatus.REPAIRED
    return MethodResult(model, status, Scope.NONE, evidence)


def hidden_layers(network: Network, chosen: int) -> list[Operation]:
    """ReLUs whose units are candidates; raises UsageError if there are none."""
    found = [op for op in network.operations if op.kind == "relu"]
    if not found:
        raise UsageError("care rescales what ReLUs give, and the network has none")
    if chosen > len(found):
        raise UsageError(f"care.layer is {chosen}: the network has {len(found)} layers of ReLUs")
    return [found[chosen - 1]] if chosen else found


# Stage 1 -------------------------------------------------------------------------------


def contributions(options: Care, task: Task, op: Operation) -> Tensor:
    """Causal effect of each unit of a layer on the score, [units]; 0 where it never varies."""
    index = torch.arange(min(options.samples, len(task.x_adv)))
    count, units = len(index), op.shape[0]
    runner = Runner.at(task.network, op.name, (op.name,))
    with torch.no_grad():
        given = runner.begin(task.x_adv[index])
        values = upto(task.network, op.name)(task.x_adv[index]).reshape(count, units, -1)
    low, high = values.amin((0, 2)), values.amax((0, 2))
    steps = torch.linspace(0, 1, options.values, dtype=low.dtype)
    held = low + steps[:, None] * (high - low)  # [k, units]
    rows, means = Rows.of(task.properties, task.owner[index]), torch.zeros(held.shape)
    pairs = torch.cartesian_prod(torch.arange(options.values), torch.arange(units))
    widest = max(math.prod(each.shape) for each in task.network.operations)
    for part in pairs.split(max(1, _AT_ONCE // (widest * count))):
        task.tell(f"care: causes in {op.name}", int(part[0, 0]), options.values)
        keep, put = low.new_ones(len(part), units), low.new_zeros(len(part), units)
        one = torch.arange(len(part))
        keep[one, part[:, 1]] = 0.0
        put[one, part[:, 1]] = held[part[:, 0], part[:, 1]]
        each = {factor(op.name): keep, shift(op.name): put}
        tensors = {n: spread(op, t.repeat_interleave(count, 0)) for n, t in each.items()}
        with torch.no_grad():
            outputs = runner.outputs(tensors, given.repeat(len(part), *(1 for _ in given[0].shape)))
        score = -rows.repeated(len(part)).margin(outputs)
        means[part[:, 0], part[:, 1]] = score.view(len(part), count).mean(1).float()
    return effect(means, options.contribution).masked_fill(low == high, 0.0)


def effect(means: Tensor, kind: str) -> Tensor:
    """What the mean scores E_k, [k,units], say about each unit: [units]."""
    if kind == "mean":
        return means.mean(0)
    if kind == "range":
        return means.amax(0) - means.amin(0)
    return (means - means.mean(0)).abs().mean(0)


def most(effects: Mapping[str, Tensor], share: float, limit: int) -> tuple[list[Unit], list[float]]:
    """The units with the largest effect, and their effects; the first of equals."""
    units = [Unit(name, i) for name, each in effects.items() for i in range(len(each))]
    values = torch.cat(list(effects.values()))
    count = max(1, min(limit, round(share * len(units))))
    order = values.argsort(descending=True, stable=True)[:count]
    return [units[i] for i in order.tolist()], values[order].tolist()


def spread(op: Operation, value: Tensor) -> Tensor:
    """Numbers of units, [...,units], made to fit the values of their layer."""
    return value.reshape(*value.shape, *(1 for _ in op.shape[1:]))


@frozen(eq=False)
class Runner:
    """A network whose first part runs once. first: None if that is not possible."""

    first: Network | None
    probe: Network

    @classmethod
    def at(cls, network: Network, place: str, layers: tuple[str, ...]) -> Runner:
        """Cut behind an operation; factors and shifts of layers that do not come before it."""
        rest = behind(network, place)
        if rest is None:
            return cls(None, probed(network, layers))
        return cls(upto(network, place), probed(rest, layers))

    def begin(self, x: Tensor) -> Tensor:
        """What the first part makes of inputs."""
        return x if self.first is None else torch.cat([self.first(each) for each in x.split(1000)])

    def outputs(self, tensors: Mapping[str, Tensor], given: Tensor) -> Tensor:
        """Of what the first part gave, [n,K]."""
        return self.probe.apply_tensors(self.probe.tensors | dict(tensors), given)


# Stage 2 -------------------------------------------------------------------------------


@frozen(eq=False)
class Cost:
    """What a rescaling costs: (1 - alpha) errors on B + alpha errors on A.

    wrong: B behind the first part, with its demands; clean: A there, with its decisions.
    """

    runner: Runner
    operations: Mapping[str, Operation]
    units: list[Unit]
    wrong: tuple[Tensor, Rows]
    clean: tuple[Tensor, Tensor] | None
    decide: Callable[[Tensor], Tensor]
    alpha: float
    smooth: bool

    @classmethod
    def of(cls, options: Care, task: Task, units: list[Unit]) -> Cost:
        """Cut behind the first layer that has one of the units."""
        network, names = task.network, {unit.layer for unit in units}
        chosen = {op.name: op for op in network.operations if op.name in names}
        runner = Runner.at(network, next(iter(chosen)), tuple(chosen))
        clean: Labelled | None = task.clean
        with torch.no_grad():
            wrong = runner.begin(task.x_adv), Rows.of(task.properties, task.owner)
            known = None
            if clean is not None and options.clean:
                some = clean[: options.clean]
                known = runner.begin(some.x), some.label
        alpha = options.alpha if known is not None else 0.0
        return cls(runner, chosen, units, wrong, known, task.decide, alpha, options.smooth)

    def __call__(self, r: Tensor) -> float:
        """Of r, [units]."""
        tensors = {}
        for name, op in self.operations.items():
            value = self.wrong[0].new_ones(op.shape[0])
            for unit, change in zip(self.units, r.tolist(), strict=True):
                if unit.layer == name:
                    value[unit.index] = 1 + change
            tensors[factor(name)] = spread(op, value)
        with torch.no_grad():
            score = -self.wrong[1].margin(self.runner.outputs(tensors, self.wrong[0]))
            errors = score.clamp(min=0) if self.smooth else (~(score < 0)).double()
            total = (1 - self.alpha) * float(errors.double().mean())
            if self.clean is not None:
                other = self.decide(self.runner.outputs(tensors, self.clean[0])) != self.clean[1]
                total += self.alpha * float(other.double().mean())
        return total


def swarm(
    cost: Callable[[Tensor], float],
    size: int,
    particles: int,
    iterations: int,
    noise: torch.Generator,
    tell: Callable[[int], None] = lambda turn: None,
) -> tuple[Tensor, list[float]]:
    """The best r in [-1, 1], [size], and the best cost at the start and after each iteration."""

    def uniform() -> Tensor:
        return torch.rand(particles, size, generator=noise)

    place, speed = torch.zeros(particles, size), 2 * uniform() - 1
    own, own_cost = place.clone(), torch.full((particles,), cost(place[0]))
    best, history = place[0].clone(), [float(own_cost[0])]
    still = 0
    for turn in range(iterations):
        tell(turn)
        pull = _OWN * uniform() * (own - place) + _COMMON * uniform() * (best - place)
        speed = _INERTIA * speed + pull
        place = (place + speed).clamp(-1, 1)
        for i in range(particles):
            value = cost(place[i])
            if value < own_cost[i]:
                own[i], own_cost[i] = place[i], value
        leader = int(own_cost.argmin())
        if float(own_cost[leader]) < history[-1]:
            best = own[leader].clone()
        history.append(min(history[-1], float(own_cost[leader])))
        still = still + 1 if history[-2] - history[-1] < _STILL else 0
        if still >= _PATIENCE or history[-1] == 0:
            break
    return best, history


def rescaled(network: Network, units: list[Unit], factors: Tensor) -> Network:
    """The network with some units multiplied by factors >= 0, [units].

    relu(f z) = f relu(z): a factor goes into the layer before the ReLU if that serves only
    the ReLU; else it stands behind it.
    """
    for name in dict.fromkeys(unit.layer for unit in units):
        (op,) = [each for each in network.operations if each.name == name]
        value = torch.ones(op.shape[0], dtype=network.dtype)
        for unit, each in zip(units, factors.tolist(), strict=True):
            if unit.layer == name:
                value[unit.index] = each
        network = _folded(network, op, value) or _multiplied(network, op, value)
    return network


def _folded(network: Network, relu: Operation, value: Tensor) -> Network | None:
    """With the factors in the rows of the layer before; None if others read or share it."""
    (source,) = relu.inputs
    before = next((op for op in network.operations if op.name == source), None)
    readers = [op for op in network.operations if source in op.inputs]
    if before is None or before.kind not in ("linear", "conv2d") or len(readers) > 1:
        return None
    shared = [
        op for op in network.operations if set(op.tensors.values()) & set(before.tensors.values())
    ]
    if len(shared) > 1 or before.shape != relu.shape:
        return None
    changed = {}
    for name in before.tensors.values():
        tensor = network.tensors[name]
        changed[name] = tensor * value.reshape(-1, *(1 for _ in tensor.shape[1:]))
    return with_weights(network, changed)


def _multiplied(network: Network, relu: Operation, value: Tensor) -> Network:
    """With a product behind the ReLU."""
    found = probed(network, (relu.name,))
    name, none = factor(relu.name), shift(relu.name)
    operations = [
        evolve(op, tensors={"weight": name}) if op.tensors.get("weight") == name else op
        for op in found.operations
    ]
    tensors = {n: t for n, t in found.tensors.items() if n != none}
    return Network(operations, tensors | {name: spread(relu, value)}, network.input_shape)
