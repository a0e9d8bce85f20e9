"""Algorithms 1 and 2: all patches at once on their bounds, until each one is proved."""

from __future__ import annotations

import torch
from attrs import define, evolve, frozen
from torch import Tensor

from advrepair.core import sections
from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder
from advrepair.core.constant import constant_patches, proved_patches
from advrepair.core.interfaces import Refiner
from advrepair.core.optimisers import OPTIMISERS, Optimiser
from advrepair.core.patching import PatchBank, Stack, last_layer
from advrepair.core.refinement import Worklist, loss_slope
from advrepair.core.types import LinearBound, SplitPlan, group_margin, worst_margin

_CHORDS = 2  # towards the least multiple of a patch that suffices


@frozen(eq=False)
class Trained:
    """How training ended, per patch [Q].

    epochs: steps taken. settled: it has been trained, to a proof or to the end of the budget.
    proofs: of patches that were proved as they are stored, and will not be split again: nodes
    of their pieces, [.], margins, [.], and slopes, uint8 [.,U].
    """

    epochs: Tensor
    settled: Tensor
    proofs: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def nothing_yet(cls, patches: int) -> Trained:
        """Before the first step."""
        epochs, settled = torch.zeros(patches, dtype=torch.long), torch.zeros(patches).bool()
        return cls(epochs, settled, [])


@define(eq=False)
class _Open:
    """The patches of a chunk that are not proved yet.

    patch: [q]. stack: their weights. aim: [q], the margin asked for. rows: their pieces.
    alone: so many steps are of the last layers only; until then it is known what lies below.
    """

    patch: Tensor
    stack: Stack
    optimiser: Optimiser
    aim: Tensor
    rows: Batch
    alone: int

    def keep(self, stay: Tensor) -> None:
        """Only some patches stay; stay: bool [q]."""
        if bool(stay.all()):
            return
        self.patch, self.aim = self.patch[stay], self.aim[stay]
        self.stack = _some(self.stack, stay)
        self.optimiser.keep(stay)
        self.rows = self.rows.part(stay)

    def stepped(self) -> None:
        """After a step: the last one of the last layers alone ends what is known below them."""
        self.alone = max(0, self.alone - 1)
        if not self.alone:
            self.rows = evolve(self.rows, hidden=None)


def train(
    bank: PatchBank,
    worklist: Worklist,
    bounder: Bounder,
    refiner: Refiner,
    budget: sections.Training,
    result: Trained,
) -> None:
    """Train patches until they are proved or the budget ends: Algorithm 1 for all of them.

    Rounds of training, each followed by refinement. Weights go to bank, the account to
    result; what is settled there is left alone. Without ``budget.clamp`` every patch is trained
    until the budget ends, and proved then (section 3.4 of arXiv 2404.01642).
    """
    patches = (~result.settled).nonzero()[:, 0]
    if not len(patches):
        return
    result.settled[patches] = True
    stack = {name: t[patches] for name, t in bank.stack.items()}
    aim = torch.full((len(patches),), 2 * budget.margin, dtype=bounder.network.dtype)
    optimiser = OPTIMISERS[budget.optimiser](budget.lr)
    rows, alone = worklist.batch(patches, rigorous=False), optimiser.alone
    if alone:
        rows = bounder.with_hidden(stack, rows)
    active = _Open(patches, stack, optimiser, aim, rows, alone)
    for turn in range(1, max(1, budget.rounds) + 1):
        proving = budget.clamp or turn >= budget.rounds
        _train_round(active, bank, worklist, bounder, budget, result, proving)
        if not len(active.patch):
            return
        if turn < budget.rounds and _refine(active, worklist, bounder, refiner, budget.split):
            active.rows, active.alone = worklist.batch(active.patch, rigorous=False), 0
    bank.put(active.patch, active.stack)
    if budget.fallback:
        constant, proved = constant_patches(active.patch, worklist, bounder)
        bank.put(active.patch[proved], {name: t[proved] for name, t in constant.items()})


def _train_round(
    active: _Open,
    bank: PatchBank,
    worklist: Worklist,
    bounder: Bounder,
    budget: sections.Training,
    result: Trained,
    proving: bool,
) -> None:
    """Algorithm 2: at most ``epochs`` steps; a patch leaves the moment it is proved.

    Without ``budget.clamp`` none leaves before the last step, and only if proving.
    """
    for epoch in range(budget.epochs + 1):
        leaves = _leaves(active, last_layer(bank.template))
        rows = active.rows
        patch = bounder.patched(leaves, rows)
        margin = _margins(rows, rows.rows + patch)
        last = epoch == budget.epochs
        stay = torch.ones(len(active.patch), dtype=torch.bool, device=margin.device)
        if proving and (budget.clamp or last):
            factor, ready = _scale(active, patch, margin, budget.scale)
            stay = ~_leave_proved(active, factor, ready, bank, worklist, bounder, result)
        active.keep(stay)
        if last or not len(active.patch):
            return
        loss = _losses(active.aim, margin[stay], budget.clamp)
        gradient = _gradient(loss.sum(), leaves, stay)
        with torch.no_grad():
            active.stack = active.optimiser.step(active.stack, gradient, loss.detach())
        result.epochs[active.patch] += 1
        active.stepped()


def _losses(aim: Tensor, margin: Tensor, clamp: bool) -> Tensor:
    """What the margins lack of the aim, summed for each patch: [q]; Theorem 3.4.

    aim: [q]. margin: [q,B,G]; +inf is padding. Without clamp a margin beyond the aim counts
    too, and makes the sum smaller: the loss of section 3.4 has no least value.
    """
    lack = aim[:, None, None] - margin
    if clamp:
        return lack.clamp(min=0).sum((1, 2))
    return lack.masked_fill(margin.isposinf(), 0.0).sum((1, 2))


def _leaves(active: _Open, last: tuple[str, str]) -> Stack:
    """The weights to differentiate by: under a last layer of zeros no other has a gradient."""
    free = not active.alone and bool((active.stack[last[0]] != 0).any())
    return {n: t.detach().requires_grad_(free or n in last) for n, t in active.stack.items()}


def _some(stack: Stack, which: Tensor) -> Stack:
    """The weights of some patches, bool [q]; copied only if not all are meant."""
    return dict(stack) if bool(which.all()) else {name: t[which] for name, t in stack.items()}


def _gradient(loss: Tensor, leaves: Stack, stay: Tensor) -> Stack:
    """Gradients of the patches that stay, of the weights that move."""
    moving = {n: t for n, t in leaves.items() if t.requires_grad}
    found = torch.autograd.grad(loss, list(moving.values()))
    return {n: g[stay] for n, g in zip(moving, found, strict=True)}


def _margins(rows: Batch, bound: LinearBound) -> Tensor:
    """Margin of every group of every piece, [q,B,G]; padding is +inf."""
    margin = group_margin(bound.minimum(rows.box), rows.group)
    side_by_side: Tensor = margin.unflatten(0, rows.real.shape)
    return side_by_side.masked_fill(~rows.real.unsqueeze(2), torch.inf)


@torch.no_grad()
def _scale(
    active: _Open, patch: LinearBound, margin: Tensor, enabled: bool
) -> tuple[Tensor, Tensor]:
    """The least multiple of each patch that looks proved: factors [q], and whether there is one.

    The bound of a patch scales with its last layer, so a multiple costs no new bound. Where
    every group has one row, margins are concave in the multiple and at least N's plus the
    multiple of the patch's own: a multiple that suffices is known wherever the patch pushes
    every group the right way. The chord from 1 to it lies below the margin, so where the chord
    reaches what is wanted another one suffices, and is smaller. With more rows it is a guess.
    """
    rows, wanted = active.rows, active.aim / 2
    have = margin.detach()
    ready = have.amin((1, 2)) > wanted
    if not enabled:
        return torch.ones_like(wanted), ready
    own = _margins(rows, patch)
    upper = ((wanted[:, None, None] - have) / own).nan_to_num(0.0).amax((1, 2)).clamp(min=0) + 1
    upper, least = 1.01 * upper, have.amin((1, 2))
    hopeful = ~ready & (own.amin((1, 2)) > 0) & torch.isfinite(upper)
    factor = torch.ones_like(wanted)
    if not bool(hopeful.any()):
        return factor, ready
    trial = torch.where(hopeful, upper, 1.0)
    for _ in range(_CHORDS + 1):
        there = _scaled_margins(rows, patch, trial).amin((1, 2))
        good = hopeful & (there > wanted)
        factor, ready = torch.where(good, trial, factor), ready | good
        share = (1.01 * wanted - least) / (there - least)
        trial = torch.where(good, 1 + (trial - 1) * share.clamp(0, 1), trial)
    return factor, ready


def _scaled_margins(rows: Batch, patch: LinearBound, factor: Tensor) -> Tensor:
    """As :func:`_margins`, of N plus a multiple of each patch; factor: [q]."""
    each = factor.repeat_interleave(rows.real.shape[1])[:, None]
    A = torch.addcmul(rows.rows.A, each.view(-1, *[1] * (patch.A.dim() - 1)), patch.A)
    return _margins(rows, LinearBound(A, rows.rows.b + each * patch.b))


def _leave_proved(
    active: _Open,
    factor: Tensor,
    ready: Tensor,
    bank: PatchBank,
    worklist: Worklist,
    bounder: Bounder,
    result: Trained,
) -> Tensor:
    """Prove the patches that look ready, and store those that are: bool [q].

    One that looks ready and is not proved is asked for a larger margin from now on.
    """
    gone = torch.zeros_like(ready)
    if not bool(ready.any()):
        return gone
    stack = _some(active.stack, ready)
    for name in last_layer(bank.template):
        stack[name] = stack[name] * factor[ready].view(-1, *[1] * (stack[name].dim() - 1))
    proof = worklist.batch(active.patch[ready], rigorous=True)
    if (hidden := active.rows.hidden) is not None:
        proof = evolve(proof, hidden=hidden.part(ready, proof.real.shape[1]))
    margin, slope = bounder.proofs(stack, proof)
    proved = proved_patches(margin, proof.group, proof.real)
    gone[ready] = proved
    theirs = (proved[:, None] & proof.real).flatten()
    pieces = torch.cat([torch.zeros(0).long(), *worklist.pieces_of(active.patch[gone])])
    worst = worst_margin(margin[theirs], proof.group[theirs])
    result.proofs.append((worklist.node[pieces], worst, slope[theirs]))
    bank.put(active.patch[gone], _some(stack, proved))
    active.aim = torch.where(ready & ~gone, 4 * active.aim + 1e-3, active.aim)
    return gone


def _refine(
    active: _Open, worklist: Worklist, bounder: Bounder, refiner: Refiner, budget: int
) -> bool:
    """Split the worst pieces of every open patch, at most budget each; False if none."""
    rows = active.rows
    with torch.no_grad():
        bound = rows.rows + bounder.patched(active.stack, rows)
        margin = bound.minimum(rows.box)
    slope = loss_slope(bound.A, margin, rows.group)
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
