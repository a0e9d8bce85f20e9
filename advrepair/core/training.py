"""Algorithms 1 and 2: all patches at once on their bounds, until each one is proved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import define, frozen
from torch import Tensor

from advrepair.core import config
from advrepair.core.bounding import Batch, Bounder
from advrepair.core.constant import constant_patches, proved_patches
from advrepair.core.graph import size
from advrepair.core.interfaces import Refiner
from advrepair.core.optimisers import OPTIMISERS, Optimiser
from advrepair.core.patching import RepairedNetwork, Stack
from advrepair.core.refinement import Worklist
from advrepair.core.types import SplitPlan, group_margin

_PATCHES_AT_ONCE = 64  # more of them no longer fit the cache together


@frozen(eq=False)
class Trained:
    """How training ended, per patch [Q].

    epochs: steps taken. settled: it has been trained, to a proof or to the end of the budget.
    """

    epochs: Tensor
    settled: Tensor

    @classmethod
    def nothing_yet(cls, patches: int) -> Trained:
        """Before the first step."""
        return cls(torch.zeros(patches, dtype=torch.long), torch.zeros(patches, dtype=torch.bool))


@define(eq=False)
class _Open:
    """The patches of a chunk that are not proved yet.

    patch: [q]. stack: their weights. aim: [q], the margin asked for. rows, proof: their
    pieces, for training and for the proof.
    """

    patch: Tensor
    stack: Stack
    optimiser: Optimiser
    aim: Tensor
    rows: Batch
    proof: Batch

    def keep(self, stay: Tensor) -> None:
        """Only some patches stay; stay: bool [q]."""
        if bool(stay.all()):
            return
        self.patch, self.aim = self.patch[stay], self.aim[stay]
        self.stack = {name: t[stay] for name, t in self.stack.items()}
        self.optimiser.keep(stay)
        self.rows, self.proof = self.rows.part(stay), self.proof.part(stay)


def train(
    repaired: RepairedNetwork,
    worklist: Worklist,
    bounder: Bounder,
    refiner: Refiner,
    budget: config.Training,
    result: Trained,
    todo: Tensor,
    settled: Callable[[Tensor, bool], None],
) -> None:
    """Train patches until they are proved or the budget ends.

    Weights go to repaired.bank, the account to result. todo: [q], the patches to train.
    settled: told the patches of each chunk when it is done, and whether their boxes were
    split.
    """
    for index in patch_chunks(repaired, worklist, bounder, len(todo)):
        before = len(worklist.owner)
        _train_chunk(todo[index], repaired, worklist, bounder, refiner, budget, result)
        result.settled[todo[index]] = True
        settled(todo[index], len(worklist.owner) > before)


def patch_chunks(
    repaired: RepairedNetwork, worklist: Worklist, bounder: Bounder, count: int
) -> list[Tensor]:
    """Patches that train together: as many as fit the memory, and no more than pay."""
    template = repaired.bank.template
    rows, inputs = worklist.properties.C.shape[1], size(template.input_shape)
    widest = max((2 * size(op.shape) for op in template.operations if op.kind == "relu"), default=0)
    pieces = len(worklist.owner) / len(repaired.bank)
    each = 4 * (12 * template.parameters_count + 8 * inputs * int(pieces * (rows + widest) + 1))
    most = max(1, min(bounder.memory // each, _PATCHES_AT_ONCE))
    return list(torch.arange(count).split(most))


def _train_chunk(
    patches: Tensor,
    repaired: RepairedNetwork,
    worklist: Worklist,
    bounder: Bounder,
    refiner: Refiner,
    budget: config.Training,
    result: Trained,
) -> None:
    """Algorithm 1 for some patches: rounds of training, each followed by refinement."""
    stack = {name: t[patches].clone() for name, t in repaired.bank.stack.items()}
    aim = torch.full((len(patches),), 2 * budget.margin, dtype=bounder.network.dtype)
    optimiser = OPTIMISERS[budget.optimiser](budget.lr)
    active = _Open(patches, stack, optimiser, aim, *_batches(worklist, patches))
    for turn in range(1, max(1, budget.rounds) + 1):
        _train_round(active, repaired, bounder, budget, result)
        if not len(active.patch):
            return
        if turn < budget.rounds and _refine(active, worklist, bounder, refiner, budget.split):
            active.rows, active.proof = _batches(worklist, active.patch)
    repaired.bank.put(active.patch, active.stack)
    if budget.fallback:
        constant, proved = constant_patches(active.patch, worklist, bounder)
        repaired.bank.put(active.patch[proved], {name: t[proved] for name, t in constant.items()})


def _batches(worklist: Worklist, patches: Tensor) -> tuple[Batch, Batch]:
    return worklist.batch(patches, rigorous=False), worklist.batch(patches, rigorous=True)


def _train_round(
    active: _Open,
    repaired: RepairedNetwork,
    bounder: Bounder,
    budget: config.Training,
    result: Trained,
) -> None:
    """Algorithm 2: at most ``epochs`` steps; a patch leaves the moment it is proved."""
    for epoch in range(budget.epochs + 1):
        leaves = {name: t.detach().requires_grad_() for name, t in active.stack.items()}
        margin = _margins(leaves, active.rows, bounder)
        stay = ~_leave_proved(active, margin.detach(), repaired, bounder)
        active.keep(stay)
        if epoch == budget.epochs or not len(active.patch):
            return
        loss = (active.aim[:, None, None] - margin[stay]).clamp(min=0).sum((1, 2))
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
        gradient = {n: g[stay] for n, g in zip(leaves, gradients, strict=True)}
        with torch.no_grad():
            active.stack = active.optimiser.step(active.stack, gradient, loss.detach())
        result.epochs[active.patch] += 1


def _margins(stack: Stack, rows: Batch, bounder: Bounder) -> Tensor:
    """Margin of every group of every piece, [q,B,G]; padding is +inf."""
    margin = group_margin(bounder.patched(stack, rows).minimum(rows.box), rows.group)
    side_by_side: Tensor = margin.unflatten(0, rows.real.shape)
    return side_by_side.masked_fill(~rows.real.unsqueeze(2), torch.inf)


def _leave_proved(
    active: _Open, margin: Tensor, repaired: RepairedNetwork, bounder: Bounder
) -> Tensor:
    """Prove the patches whose floating-point margin is there, and store them: bool [q].

    One that looks ready and is not proved is asked for a larger margin from now on.
    """
    ready = margin.amin((1, 2)) > active.aim / 2
    gone = torch.zeros_like(ready)
    if not bool(ready.any()):
        return gone
    stack = {name: t[ready] for name, t in active.stack.items()}
    proof = active.proof.part(ready)
    gone[ready] = proved_patches(bounder.margins(stack, proof), proof.group, proof.real)
    repaired.bank.put(active.patch[gone], {n: t[gone] for n, t in active.stack.items()})
    active.aim = torch.where(ready & ~gone, 4 * active.aim + 1e-3, active.aim)
    return gone


def _refine(
    active: _Open, worklist: Worklist, bounder: Bounder, refiner: Refiner, budget: int
) -> bool:
    """Split the worst pieces of every open patch, at most budget each; False if none."""
    rows = active.rows
    with torch.no_grad():
        bound = bounder.patched(active.stack, rows)
        margin = bound.minimum(rows.box)
    slope = _slope(bound.A, margin, rows.group)
    worst = group_margin(margin, rows.group).amin(1)
    plans = []
    width = rows.real.shape[1]
    for slot, pieces in enumerate(worklist.pieces_of(active.patch)):
        part = slice(slot * width, slot * width + len(pieces))
        plan = refiner.choose(rows.box[part], worst[part], slope[part], budget)
        plans.append(SplitPlan(pieces[plan.piece], plan.dim))
    whole = SplitPlan(torch.cat([p.piece for p in plans]), torch.cat([p.dim for p in plans]))
    if len(whole.piece):
        worklist.split(whole, bounder)
    return len(whole.piece) > 0


def _slope(A: Tensor, margin: Tensor, group: Tensor) -> Tensor:
    """Gradient in x of the violated hinges, [B,*S] (Alg. 1, line 16).

    A: [B,M,*S]. margin, group: [B,M].
    """
    rows = margin.detach().requires_grad_()
    loss = (-group_margin(rows, group)).clamp(min=0).sum()
    (weight,) = torch.autograd.grad(loss, rows)
    return (weight.unsqueeze(1) @ A.flatten(2)).squeeze(1).view(A.shape[0], *A.shape[2:])
