"""The final statement: rigorous margins of the stored patches, and an attack on all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair.core.attacking import Advance, Problem, at_once, counterexamples_left
from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.branching import BranchAndBound
from advrepair.core.errors import SoundnessError
from advrepair.core.interfaces import Attack, CompleteVerifier, Verifier
from advrepair.core.layout import Layout, routed
from advrepair.core.patching import RepairedNetwork, Stack
from advrepair.core.proof import Proof
from advrepair.core.rounding import Level
from advrepair.core.types import PropertySet, Status

Stage = Callable[[str, int], AbstractContextManager[Advance]]


@frozen(eq=False)
class Certificate:
    """What holds for the repaired network.

    status: of each property, P of them. margin: [P], its proved margin; <= 0 or NaN proves
    nothing. constant: bool [P], its patch adds a constant. layout: the regions that proof
    speaks of. counterexample: of each falsified property, by its number, [*S]. level: the
    arithmetic it speaks about.
    """

    status: tuple[Status, ...]
    margin: Tensor
    constant: Tensor
    proof: Proof
    layout: Layout
    counterexample: dict[int, Tensor]
    level: Level
    certifier: Verifier

    def count(self, status: Status) -> int:
        """Number of properties with a status."""
        return sum(each is status for each in self.status)


def certify(
    repaired: RepairedNetwork,
    proof: Proof,
    flat: Tensor,
    bounder: Bounder,
    problem: Problem,
    attack: Attack | None,
    seed: int,
    stage: Stage,
) -> Certificate:
    """State what is proved about the patches as they are stored. flat: bool [Q], constant ones.

    Sound: the rigorous margin of every group on every piece of its box must be positive, with
    the patch of the piece's region or of N alone where it has none; the pieces cover the box
    because only cuts made them; and :func:`~advrepair.core.layout.routed` sees to it that
    every point of the box meets a patch that is proved for it. A counterexample counts if
    the deployed function, on that input alone, breaks the demand.
    Raises SoundnessError if the attack, in the arithmetic of the claim, falsifies a certified
    property.
    """
    count = len(problem.properties)
    with stage("certification", count if attack else 0) as advance:
        model, asked = in_arithmetic_of(bounder.rounding.level, repaired, problem)
        refutes = _Judge(repaired, bounder, problem.properties, model, asked.properties)
        hits: dict[int, Tensor] = {}
        if attack is not None:
            hit, points = counterexamples_left(
                model, asked, attack, seed, advance, at_once(repaired.base)
            )
            found = {i: points[i] for i in hit.nonzero()[:, 0].tolist()}
            hits = {i: x for i, x in found.items() if refutes(i, x)}
    open_ = [i for i in (~(proof.least(count) > 0)).nonzero()[:, 0].tolist() if i not in hits]
    if isinstance(bounder.certifier, CompleteVerifier) and open_:
        with stage("branch and bound", len(open_)) as advance:
            search = BranchAndBound(bounder, bounder.certifier)
            for i in open_:
                point = _decided(i, search, proof, repaired, refutes)
                hits |= {} if point is None else {i: point}
                advance(1)
    least = proof.least(count)
    proved = routed(least > 0, proof.cover.layout, problem.properties, proof.cover.tree)
    for i in hits:
        if proved[i] and bounder.proved:
            raise SoundnessError(
                f"{problem.properties.names[i]} is certified with margin {least[i]:.3g} and "
                "an attack falsifies it: a proof is wrong; please report this with the run folder"
            )
    if not bounder.proved:
        least = torch.full_like(least, torch.nan)  # nothing of it is a bound
    return Certificate(
        status=tuple(_status(p, i in hits, bounder.proved) for i, p in enumerate(proved.tolist())),
        margin=least,
        constant=_of_properties(flat, repaired.centres.patch),
        proof=proof,
        layout=proof.cover.layout,
        counterexample=hits,
        level=bounder.rounding.level,
        certifier=bounder.certifier,
    )


@frozen(eq=False)
class _Judge:
    """Says whether one input refutes a property, in the arithmetic of the claim.

    At the deployed levels the deployed function decides, run on this input alone. What it
    computes says nothing certain about real numbers, so at level real every row of some group
    must be <= 0 by a rigorous bound at that point.
    """

    repaired: RepairedNetwork
    bounder: Bounder
    properties: PropertySet
    model: RepairedNetwork
    asked: PropertySet

    def __call__(self, index: int, x: Tensor) -> bool:
        asked = self.asked[torch.tensor([index])]
        with torch.no_grad():
            broken = bool(asked.violated(self.model(x[None]))[0])
        return broken and (self.bounder.rounding.level != "real" or self._exactly(index, x))

    def _exactly(self, index: int, x: Tensor) -> bool:
        asked, point = self.properties[torch.tensor([index])], Box(x[None], x[None])
        point = self.bounder.seen(point)
        C, d = -asked.C.double(), -asked.d.double()
        rows = self.bounder.base(point, C, d, rigorous=True)
        with torch.no_grad():
            gates = self.model.route(x[None], self.model.base(x[None]))[0]
        chosen = gates.nonzero()[:, 0]  # the patch that is on there, or none
        stack = weights_of(self.repaired, int(chosen[0]) if len(chosen) else -1)
        stack = {name: t[None] for name, t in stack.items()}
        batch = Batch(point, rows, C, asked.group, torch.ones(1, 1, dtype=torch.bool))
        refuted = self.bounder.margins(stack, batch)[0] >= 0
        groups = asked.group[0]
        return any(bool(refuted[groups == g].all()) for g in groups[groups >= 0].unique())


def _decided(
    index: int,
    search: BranchAndBound,
    proof: Proof,
    repaired: RepairedNetwork,
    refutes: _Judge,
) -> Tensor | None:
    """Search the pieces of a property that are open; its counterexample, if there is one."""
    open_ = (proof.owner == index) & ~(proof.margin > 0)
    nodes, serving = proof.node[open_], proof.patch[open_]
    asked = refutes.asked[torch.tensor([index])]
    for number in serving.unique().tolist():
        pieces = torch.isin(proof.node, nodes[serving == number]).nonzero()[:, 0]
        box, patch = proof.box(pieces), weights_of(repaired, number)
        found = search.decide(asked, box, patch, refutes.model, lambda x: refutes(index, x))
        if found.counterexample is not None:
            return found.counterexample
        proof.graft(pieces, found)
    return None


def weights_of(repaired: RepairedNetwork, patch: int) -> Stack:
    """Weights of a patch; zeros for -1, no patch, of which every bound of N + P_j holds too."""
    stack = repaired.bank.stack
    if patch < 0:
        return {name: t.new_zeros(t.shape[1:]) for name, t in stack.items()}
    return {name: t[patch] for name, t in stack.items()}


def in_arithmetic_of(
    level: Level, repaired: RepairedNetwork, problem: Problem
) -> tuple[RepairedNetwork, Problem]:
    """Network and problem in the format that a claim speaks about; float64 for real numbers."""
    dtype = torch.float32 if level == "deployed-float32" else torch.float64
    if repaired.base.dtype == dtype:
        return repaired, problem
    asked = problem.properties
    wide = evolve(asked, box=asked.box.to(dtype), center=asked.center.to(dtype))
    return copy.deepcopy(repaired).to(dtype), evolve(
        problem, properties=wide, x_adv=problem.x_adv.to(dtype)
    )


def _of_properties(which: Tensor, patch: Tensor) -> Tensor:
    """What is said of patches, bool [Q], as said of the properties they serve: bool [P]."""
    return torch.cat([which, which.new_zeros(1)])[patch]  # -1, no patch, is the last


def _status(held: bool, hit: bool, proved: bool) -> Status:
    """held: by bounds of the boxes that patches see; proved: whether these are bounds."""
    if hit:
        return Status.FALSIFIED
    if held:
        return Status.CERTIFIED if proved else Status.EMPIRICAL
    return Status.UNKNOWN
