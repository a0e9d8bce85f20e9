"""The constant-bias repair as a whole: beside a repair, or alone."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.attacking import Advance
from advrepair.core.bounding import Bounder
from advrepair.core.constant import constant_bias
from advrepair.core.covering import Cover, own_margin
from advrepair.core.layout import routed
from advrepair.core.patching import PatchBank, RepairedNetwork, constant_stack, patch_template
from advrepair.core.refinement import Worklist
from advrepair.core.results import Results


@frozen(eq=False)
class Trivial:
    """What costs nothing: N alone, and the constant-bias repair.

    own: [P], N's margins. constant: [Q,K], added by each patch. held: bool [Q], proved.
    """

    own: Tensor
    constant: Tensor
    held: Tensor

    @classmethod
    def joined(cls, results: Results) -> Trivial:
        """Of all shards."""
        own = own_margin(results.shards.cover, results.shards, results.ordered())
        return cls(own, results.gathered("constant"), results.gathered("held"))

    def under(self, bounder: Bounder) -> Trivial:
        """The same; where boxes of features are only sampled, without what they seem to prove."""
        if bounder.proved:
            return self
        nothing = torch.full_like(self.own, torch.nan)
        return Trivial(nothing, self.constant, torch.zeros_like(self.held))

    @classmethod
    def alone(cls, ground: Cover, bounder: Bounder, advance: Advance) -> Trivial:
        """Of a cover of which nothing was trained; N's margin is -inf where a patch is on."""
        outputs, patches = ground.properties.C.shape[2], len(ground.assignment)
        constant = torch.zeros(patches, outputs, dtype=bounder.template.dtype)
        held = torch.zeros(patches, dtype=torch.bool)
        shards = ground.shards(bounder.template)
        for which, shard in zip(shards.patches, shards, strict=True):
            worklist = Worklist.start(shard, bounder)
            value, proved = constant_bias(torch.arange(len(which)), worklist, bounder)
            constant[which] = torch.where(proved[:, None], value, 0.0).to(constant.dtype)
            held[which] = proved
            advance(len(which))
        own = torch.full((len(ground.properties),), torch.inf, dtype=torch.float64)
        mine = ~ground.shared
        least = torch.where(ground.patch < 0, ground.own, -torch.inf)[mine]
        return cls(own.scatter_reduce(0, ground.owner[mine], least, "amin"), constant, held)


def flattened(
    repaired: RepairedNetwork, trivial: Trivial, ground: Cover
) -> tuple[RepairedNetwork, Tensor]:
    """The constant-bias repair of the same regions, and what is proved of it: bool [P].

    Sound: a constant is proved on every piece of its patch, and what N holds alone is N's; what
    overlaps is settled by :func:`~advrepair.core.layout.routed`.
    """
    template = patch_template(repaired.tail, ())
    bank = PatchBank(template, constant_stack(template, trivial.constant))
    served, held = repaired.centres.patch, trivial.own > 0
    if len(trivial.held):
        held = torch.where(served >= 0, trivial.held[served], held)
    held = routed(held, ground.layout, ground.properties, ground.tree)
    return repaired.with_patches(bank), held
