"""The training of ART: cells are cut, weights are trained on them, and the best are kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from advrepair import Box, Labelled, MethodResult, MethodStatus, Scope, Task
from advrepair_baselines.art_cells import Cells
from advrepair_baselines.art_distance import Distances
from advrepair_baselines.weights import trainable, with_weights

if TYPE_CHECKING:
    from advrepair_baselines.art import Art

_AT_ONCE = 1000
_SPARE = 2.5  # looks at all cells that the rest of the time must last for
_FACTOR, _PATIENCE = 0.8, 10  # of the learning rate


def train(options: Art, task: Task) -> MethodResult:
    """Cut, train, and give the weights that prove most."""
    return _Training(options, task).run()


@frozen(eq=False)
class Look:
    """What is known of the cells after an epoch. dist: [B]. proved: share by volume, of 1."""

    epoch: int
    cells: Cells
    dist: Tensor
    weights: dict[str, Tensor]

    @property
    def proved(self) -> float:
        """Share of the volume that the training began with."""
        return float(self.cells.share[self.dist == 0].sum() / self.cells.share.sum())

    @property
    def complete(self) -> bool:
        """Whether all cells are."""
        return not bool((self.dist != 0).any())


def consistent(task: Task) -> Labelled | None:
    """The labelled points of the task without those whose label contradicts a demand.

    In a box with a label another label does; in a box without one a point at which the network,
    whose decision its label is, breaks the demand.
    """
    if task.clean is None:
        return None
    x, label, asked = task.clean.x, task.clean.label, task.properties
    point, owner = asked.box.meets(Box(x, x)).T
    with torch.no_grad():
        broken = asked[owner].violated(task.network(x[point])) if len(point) else owner > 0
    named = asked.label[owner]
    wrong = torch.where(named >= 0, named != label[point], broken)
    keep = torch.ones(len(x), dtype=torch.bool)
    keep[point[wrong]] = False
    return task.clean[keep.nonzero()[:, 0]] if bool(keep.any()) else None


def accuracy_loss(outputs: Tensor, label: Tensor, decision: str, double: bool) -> Tensor:
    """Cross-entropy of the decisions. Of argmin the outputs are negated: least is likeliest."""
    logits = outputs if decision == "argmax" else -outputs
    return F.cross_entropy(logits.softmax(1) if double else logits, label)


class _Training:
    """One training. Everything random comes from the seed of the task."""

    def __init__(self, options: Art, task: Task) -> None:
        self.options, self.task = options, task
        self.noise = torch.Generator().manual_seed(task.seed * 1000 + 35)
        self.distances = Distances.of(task, options.margin)
        self.points = consistent(task)
        self.weights = trainable(task.network)
        for tensor in self.weights.values():
            tensor.requires_grad_()
        self.optimiser = torch.optim.Adam(list(self.weights.values()), lr=options.lr)
        self.rate = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimiser, factor=_FACTOR, patience=_PATIENCE
        )
        self.pace = 0.0  # seconds that a look at a cell takes

    def run(self) -> MethodResult:
        """All epochs, until all cells are proved or the time is nearly up."""
        options, task = self.options, self.task
        begun = self.looked(0, Cells.of(task.properties, options.cells))
        look = best = self.refined(begun, options.cells)
        for epoch in range(1, options.epochs + 1):
            done = look.complete and look.epoch >= options.least_epochs
            if done or not self.in_time(look.cells):
                break
            task.tell("art", epoch - 1, options.epochs)
            self.rate.step(self.learn(look.cells))
            look = self.looked(epoch, look.cells)
            look = self.refined(look, min(options.most, len(look.cells) + options.cut))
            best = look if look.proved >= best.proved else best
        return self.result(begun, best, look)

    def in_time(self, cells: Cells) -> bool:
        """Whether there is time for more than the last looks at all cells."""
        return self.task.left() > _SPARE * self.pace * len(cells)

    # Cells -------------------------------------------------------------------------------

    def looked(self, epoch: int, cells: Cells) -> Look:
        """At all cells, with the weights as they are now."""
        weights = {name: t.detach().clone() for name, t in self.weights.items()}
        begin, every = time.perf_counter(), torch.arange(len(cells))
        dist = self.measured(weights, cells, every)
        self.pace = (time.perf_counter() - begin) / len(cells)
        return Look(epoch, cells, dist, weights)

    def measured(self, weights: dict[str, Tensor], cells: Cells, index: Tensor) -> Tensor:
        """dist of some cells, without gradients: [n]."""
        with torch.no_grad():
            parts = index.split(_AT_ONCE)
            return torch.cat([self.distances.of_cells(weights, cells, part) for part in parts])

    def refined(self, look: Look, most: int) -> Look:
        """With the cells of the largest distance cut, until there are so many."""
        while (room := most - len(look.cells)) > 0 and self.in_time(look.cells):
            self.task.tell("art: cells", len(look.cells), most)
            index = self.worst(look, min(room, self.options.cut))
            if not len(index):
                break
            cells, dist = look.cells, look.dist
            share = self.distances.shares(look.weights, cells, index)
            wide = self.wide(cells.box[index])
            cells = cells.bisected(index, share.masked_fill(~wide, -1.0).argmax(1))
            halves = torch.arange(len(cells) - 2 * len(index), len(cells))
            rest = torch.ones(len(dist), dtype=torch.bool)
            rest[index] = False
            new = self.measured(look.weights, cells, halves)
            look = Look(look.epoch, cells, torch.cat([dist[rest], new]), look.weights)
        return look

    def worst(self, look: Look, count: int) -> Tensor:
        """Cells at the largest distance that can be cut, largest first."""
        wide = self.wide(look.cells.box).any(1)
        score = torch.where(wide, look.dist, 0.0)
        return score.topk(min(count, int((score > 0).sum()))).indices

    def wide(self, box: Box) -> Tensor:
        """Inputs along which boxes may be cut: bool [B,S]."""
        middle = box.center
        inner = (box.lower < middle) & (middle < box.upper)
        return (inner & (box.upper - box.lower > self.options.tiny)).flatten(1)

    # Weights -----------------------------------------------------------------------------

    def learn(self, cells: Cells) -> float:
        """One epoch; the list of batches that is shorter is gone through again. Mean dist."""
        size, points = self.options.batch, self.points
        steps = -(-len(cells) // size)
        if points is not None:
            steps = max(steps, -(-len(points) // size))
            drawn = self.drawn(len(points), size)
        total = 0.0
        for step, index in zip(range(steps), self.drawn(len(cells), size), strict=False):
            if not self.in_time(cells):
                return total / max(1, step)
            self.optimiser.zero_grad()
            total += self.safety(cells, index)
            if points is not None:
                some = points[next(drawn)]
                outputs = self.task.network.apply_tensors(self.tensors(), some.x)
                double = self.options.double_softmax
                accuracy_loss(outputs, some.label, self.task.decision, double).backward()
            norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.options.clip)
            if bool(norm.isfinite()):
                self.optimiser.step()
        return total / steps

    def safety(self, cells: Cells, index: Tensor) -> float:
        """Mean dist of a batch; its gradient is added to the weights'."""
        dist = self.measured(self.weights, cells, index)
        open_ = index[dist > 0]
        for part in open_.split(self.distances.at_once) if len(open_) else ():
            loss = self.distances.of_cells(self.weights, cells, part).sum() / len(index)
            loss.backward()
        return float(dist.mean())

    def drawn(self, count: int, size: int) -> Iterator[Tensor]:
        """Batches of shuffled indices, without an end."""
        while True:
            yield from torch.randperm(count, generator=self.noise).split(size)

    def tensors(self) -> dict[str, Tensor]:
        """Of the network as it is now."""
        return self.task.network.tensors | self.weights

    # The end -----------------------------------------------------------------------------

    def result(self, begun: Look, best: Look, last: Look) -> MethodResult:
        """The network that proves most, and what is proved."""
        task, open_ = self.task, best.cells.owed[best.dist != 0].any(0)
        model = with_weights(task.network, best.weights)
        with torch.no_grad():
            wrong = int(task.properties[task.owner].violated(model(task.x_adv)).sum())
        evidence = {
            "region": "the boxes of all properties" if best.complete else "the cells proved",
            "properties proved": int((~open_).sum()),
            "cells": len(best.cells),
            "cells proved": int((best.dist == 0).sum()),
            "volume proved": best.proved,
            "volume proved before": begun.proved,
            "disjoint": begun.cells.disjoint,
            "largest distance": float(best.dist.max()),
            "epoch": best.epoch,
            "epochs": last.epoch,
            "points": 0 if self.points is None else len(self.points),
            "held-out drawdown": self.drawdown(best),
            "still wrong": wrong,
        }
        status = MethodStatus.NOT_REPAIRED if wrong else MethodStatus.REPAIRED
        return MethodResult(model, status, Scope.REGION if best.complete else Scope.NONE, evidence)

    def drawdown(self, look: Look) -> float | None:
        """Accuracy lost on held-out inputs."""
        task, held = self.task, self.task.held
        if held is None:
            return None
        right = []
        for tensors in (task.network.tensors, task.network.tensors | look.weights):
            with torch.no_grad():
                decided = task.decide(task.network.apply_tensors(tensors, held.x))
            right.append(float((decided == held.label).double().mean()))
        return right[0] - right[1]
