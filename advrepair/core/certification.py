"""The final statement: rigorous margins of the stored patches, and an attack on all of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair.core.attacking import Advance, Problem, counterexamples_left
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.errors import SoundnessError
from advrepair.core.interfaces import Attack
from advrepair.core.options import values
from advrepair.core.patching import RepairedNetwork, last_layer
from advrepair.core.refinement import Worklist
from advrepair.core.rounding import Level
from advrepair.core.training import patch_chunks
from advrepair.core.types import Status, worst_margin


@frozen(eq=False)
class Certificate:
    """What holds for the repaired network.

    status: of each property, P of them. margin: [P], its proved margin, the least over its
    pieces; <= 0 or NaN proves nothing. constant: bool [P], its patch adds a constant.
    piece_margin: [W], in the order of worklist. level: the arithmetic it speaks about.
    """

    status: tuple[Status, ...]
    margin: Tensor
    constant: Tensor
    piece_margin: Tensor
    worklist: Worklist
    level: Level
    certifier: str
    certifier_options: dict[str, Any]

    def count(self, status: Status) -> int:
        """Number of properties with a status."""
        return sum(each is status for each in self.status)


def certify(
    repaired: RepairedNetwork,
    worklist: Worklist,
    bounder: Bounder,
    problem: Problem,
    attack: Attack | None,
    seed: int,
    advance: Advance,
) -> Certificate:
    """State what is proved about the patches as they are stored.

    Sound: the rigorous margin of every group on every piece of its box must be positive, the
    pieces cover the box because only bisection made them, and :func:`routed` sees to it that
    every point of the box meets a patch that is proved for it.
    Raises SoundnessError if the attack, in the arithmetic of the claim, falsifies a certified
    property.
    """
    margin = piece_margins(repaired, worklist, bounder)
    least = torch.full((len(problem.properties),), torch.inf, dtype=torch.float64)
    least = least.scatter_reduce(0, worklist.owner, margin.nan_to_num(-torch.inf), "amin")
    proved = routed(least > 0, repaired.box, repaired.patch)
    hit = torch.zeros_like(proved)
    if attack is not None:
        model, asked = in_arithmetic_of(bounder.rounding.level, repaired, problem)
        hit = counterexamples_left(model, asked, attack, seed, advance)
        if bounder.rounding.level == "real":
            # Seen through rounding: it refutes nothing about real numbers.
            hit &= ~proved
    if bool((hit & proved).any()):
        index = int((hit & proved).nonzero()[0])
        raise SoundnessError(
            f"{problem.properties.names[index]} is certified with margin {least[index]:.3g} and "
            "an attack falsifies it: a proof is wrong; please report this with the run folder"
        )
    return Certificate(
        status=tuple(_status(p, h) for p, h in zip(proved.tolist(), hit.tolist(), strict=True)),
        margin=least,
        constant=are_constant(repaired)[repaired.patch],
        piece_margin=margin,
        worklist=worklist,
        level=bounder.rounding.level,
        certifier=bounder.certifier.name,
        certifier_options=values(bounder.certifier),
    )


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


def routed(proved: Tensor, box: Box, patch: Tensor) -> Tensor:
    """Properties that hold for the deployed function, given which are proved alone: bool [P].

    A point of box i that lies in an earlier box j too meets the patch of j. Sound: let f be
    the first box that holds the point. If its patch is that of i, the proof of i speaks of
    it; otherwise f must be proved, with the same demand (contradictions were refused).
    """
    i, j = box.meets(box).T
    lost = (j < i) & (patch[i] != patch[j]) & ~proved[j]
    holds = proved.clone()
    holds[i[lost]] = False
    return holds


def piece_margins(repaired: RepairedNetwork, worklist: Worklist, bounder: Bounder) -> Tensor:
    """Rigorous margin of every piece with the stored patches, [W]."""
    margin = torch.full((len(worklist.owner),), -torch.inf, dtype=torch.float64)
    for patches in patch_chunks(repaired, worklist, bounder):
        batch = worklist.batch(patches, rigorous=True)
        stack = {name: t[patches] for name, t in repaired.bank.stack.items()}
        worst = worst_margin(bounder.margins(stack, batch), batch.group)
        margin[torch.cat(worklist.pieces_of(patches))] = worst[batch.real.flatten()]
    return margin


def are_constant(repaired: RepairedNetwork) -> Tensor:
    """Patches that add the same non-zero numbers to every input, bool [Q]."""
    weight, bias = (repaired.bank.stack[name] for name in last_layer(repaired.bank.template))
    return (weight == 0).flatten(1).all(1) & (bias != 0).any(1)


def _status(proved: bool, hit: bool) -> Status:
    if proved:
        return Status.CERTIFIED
    return Status.FALSIFIED if hit else Status.UNKNOWN
