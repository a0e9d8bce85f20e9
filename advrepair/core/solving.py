"""What is done with a shard: N's rows, training, and the proof of the stored patches."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import torch
from attrs import define, evolve
from torch import Tensor

from advrepair.core.bounding import Bounder
from advrepair.core.capping import OBJECTIVE, propose_caps
from advrepair.core.constant import constant_bias
from advrepair.core.covering import modest
from advrepair.core.devices import CPU, moved, on
from advrepair.core.files import versions
from advrepair.core.interfaces import Refiner
from advrepair.core.intrusion import propose_specific
from advrepair.core.options import values
from advrepair.core.patching import PatchBank, Stack, initial_stack, last_layer
from advrepair.core.preserving import Decisions, propose
from advrepair.core.refinement import Worklist
from advrepair.core.sections import Training
from advrepair.core.shards import STEPS, Outcome, Shard
from advrepair.core.training import Trained, train
from advrepair.core.types import worst_margin


@define(eq=False)
class Solver:
    """Solves shards, one at a time. It can be pickled, and solves the same way elsewhere.

    samples: for patches whose properties have no labels, inputs that N is right on, and what
    it decides there. others: inputs that patches should leave alone, [n,*S], and their labels.
    It computes on the device of the bounder; what it is given and what it gives lies in memory.
    """

    bounder: Bounder
    refiner: Refiner
    training: Training
    seed: int
    samples: tuple[Tensor, Decisions] | None = None
    others: tuple[Tensor, Tensor] | None = None

    def settings(self) -> str:
        """All that an outcome depends on beside its shard, as text."""
        bounder = self.bounder
        known: dict[str, Any] = {
            "network": bounder.network.digest(),
            "patch": bounder.template.structure(),
            "components": [
                [each.name, type(each).__module__, values(each)]
                for each in (bounder.verifier, bounder.certifier, self.refiner)
            ],
            "level": bounder.rounding.level,
            "training": values(self.training),
            "seed": self.seed,
            "device": bounder.device.type,
            "samples": None if self.samples is None else _digest(*self.samples),
            "others": None if self.others is None else _sha(*self.others).hexdigest(),
            "versions": versions("advrepair", "torch"),
        }
        return json.dumps(known, sort_keys=True)

    def __call__(self, shard: Shard) -> Outcome:
        """Train the patches of a shard, and state what is proved about them.

        On one thread: the last bits may depend on how many there are.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        device, bounder = self.bounder.device, self.bounder.there()
        # Random numbers are drawn in memory: they must not depend on the device.
        stack = initial_stack(self.bounder.template, shard.identifiers, self.seed)
        try:
            with on(device):
                given = moved((shard, stack, self.samples, self.others), device)
                found = self._solve(bounder, *given)
            return moved(found, CPU)
        finally:
            torch.set_num_threads(threads)

    def _solve(
        self,
        bounder: Bounder,
        shard: Shard,
        stack: Stack,
        samples: tuple[Tensor, Decisions] | None,
        others: tuple[Tensor, Tensor] | None,
    ) -> Outcome:
        clock = [time.thread_time()]
        worklist = Worklist.start(shard, bounder)
        own = worklist.own_margin()
        clock.append(time.thread_time())
        bank = PatchBank(bounder.template, stack)
        trained = Trained.nothing_yet(len(bank))
        if self.training.objective == OBJECTIVE:
            propose_caps(bank, worklist, bounder, self.training.margin, trained)
        if samples is not None:
            propose(bank, worklist, bounder, samples, trained)
        if others is not None:
            propose_specific(bank, worklist, bounder, others, self.training.margin, trained)
        train(bank, worklist, bounder, self.refiner, self.training, trained)
        clock.append(time.thread_time())
        found = stated(bank, worklist, bounder, own, trained)
        clock.append(time.thread_time())
        return evolve(found, cpu=torch.tensor(clock, dtype=torch.float64).diff())


def _digest(x: Tensor, decisions: Decisions) -> str:
    found = _sha(x, decisions.outputs)
    found.update(decisions.decide.__qualname__.encode())
    return found.hexdigest()


def _sha(*tensors: Tensor) -> hashlib._Hash:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().data)
    return found


def stated(
    bank: PatchBank, worklist: Worklist, bounder: Bounder, own: Tensor, trained: Trained
) -> Outcome:
    """What is proved about the patches of a shard as they are; and about constant ones.

    own: N's margins on the pieces at the start, [w].
    """
    margin, patch_slope = prove(bank, worklist, bounder, trained)
    constant, held = constant_bias(torch.arange(len(bank)), worklist, bounder)
    return Outcome(
        stack=bank.stack,
        epochs=trained.epochs,
        flat=are_constant(bank),
        own=own,
        constant=torch.where(held[:, None], constant, 0.0).to(bank.template.dtype),
        held=held,
        tree=worklist.tree,
        slope=worklist.slope,
        node=worklist.node,
        margin=margin,
        patch_slope=patch_slope,
        cpu=torch.zeros(len(STEPS), dtype=torch.float64),
    )


def prove(
    bank: PatchBank, worklist: Worklist, bounder: Bounder, trained: Trained
) -> tuple[Tensor, Tensor]:
    """Rigorous margins of every piece with the stored patches, [w], and slopes, uint8 [w,U].

    Sound: the rows of N and of the patch are rigorous bounds on the piece, and so is their
    least sum (:meth:`~advrepair.core.bounding.Bounder.least`). A margin <= 0 or NaN proves
    nothing. What training proved with the weights that are stored is not proved again.
    Raises ValueError if that was about a piece that has been cut since.
    """
    count = len(worklist.node)
    margin = torch.full((count,), -torch.inf, dtype=torch.float64)
    slope = torch.zeros(count, bounder.template.units, dtype=torch.uint8)
    place = torch.full((len(worklist.tree.owner),), -1)
    place[worklist.node], known = torch.arange(count), torch.zeros(count, dtype=torch.bool)
    for nodes, least, used in trained.proofs:
        pieces = place[nodes]
        if bool((pieces < 0).any()):
            raise ValueError("a proof was kept of a piece that was cut later")
        margin[pieces], slope[pieces], known[pieces] = least, used, True
    if not bool(known.all()):
        patches = worklist.patch[~known].unique()
        batch = worklist.batch(patches, rigorous=True)
        stack = {name: t[patches] for name, t in bank.stack.items()}
        least, used = bounder.proofs(stack, batch)
        real, pieces = batch.real.flatten(), torch.cat(worklist.pieces_of(patches))
        margin[pieces], slope[pieces] = worst_margin(least, batch.group)[real], used[real]
    return modest(margin, worklist.proof.spare()) if worklist.modest else margin, slope


def are_constant(bank: PatchBank) -> Tensor:
    """Patches that add the same non-zero numbers to every input, bool [Q]."""
    weight, bias = (bank.stack[name] for name in last_layer(bank.template))
    return (weight == 0).flatten(1).all(1) & (bias != 0).any(1)
