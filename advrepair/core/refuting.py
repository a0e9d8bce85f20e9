"""Counterexamples of one property: looked for, and judged on one run of each alone."""

from __future__ import annotations

import copy

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from advrepair.core.areas import UNBOUNDED, areas, least_rows
from advrepair.core.attacking import generator, perturb, uniform
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.errors import SoundnessError
from advrepair.core.graph import size
from advrepair.core.interfaces import Attack
from advrepair.core.types import PropertySet, worst_margin
from advrepair.core.violations import inner

_STARTS = 64  # of the first attack
_SAMPLED, _SAMPLED_BYTES = 2**14, 2**25  # random inputs that are looked at before it
_TRIED = 16  # inputs that are run alone, at most, when a batch of them breaks a demand


@frozen(eq=False)
class Refuter:
    """Looks for inputs that break one property.

    function: a network or the deployed function of a repair, that of bounder. model: the same
    in the format that the claim speaks about. asked: the property in that format, its box
    without faces that rounding moved outward, so that its points lie in the exact region.
    """

    function: nn.Module
    bounder: Bounder
    attack: Attack
    model: nn.Module
    asked: PropertySet
    noise: torch.Generator

    @classmethod
    def of(
        cls, function: nn.Module, bounder: Bounder, attack: Attack, asked: PropertySet, seed: int
    ) -> Refuter:
        """For one property, given as it is read; float64 stands for real numbers."""
        wide = bounder.rounding.level != "deployed-float32"
        dtype = torch.float64 if wide else torch.float32
        same = bounder.network.dtype == dtype
        model = function if same else copy.deepcopy(function).to(dtype)
        box = inner(asked.box)  # in the dtype that rounded its faces
        center = box.clamp(asked.center).to(dtype)
        inside = evolve(asked, box=Box(box.lower.to(dtype), box.upper.to(dtype)), center=center)
        return cls(function, bounder, attack, model, inside, generator(seed, 11))

    def sampled(self) -> Tensor | None:
        """A counterexample among random inputs, or attacked from the worst of them: [*S]."""
        network = self.bounder.network
        shapes = [network.input_shape, *(op.shape for op in network.operations)]
        count = max(_STARTS, min(_SAMPLED, _SAMPLED_BYTES // (8 * max(map(size, shapes)))))
        x = torch.cat([self.asked.center, uniform(self._times(count).box, self.noise)])
        margin = self._margin(x)
        worst = x[margin.topk(_STARTS, largest=False).indices]
        found = self.at(worst)
        return self.near(torch.cat([worst, self.asked.center])) if found is None else found

    def near(self, start: Tensor) -> Tensor | None:
        """A counterexample that the attack finds from some inputs, [N,*S]: [*S]."""
        start = self.asked.box.clamp(start.to(self.asked.center.dtype))
        return self.at(perturb(self.attack, self.model, self._times(len(start)), start, self.noise))

    def at(self, x: Tensor) -> Tensor | None:
        """Of some inputs, [N,*S], the worst that refutes the property alone: [*S]."""
        x = self.asked.box.clamp(x.to(self.asked.center.dtype))
        margin = self._margin(x)
        broken = (~(margin > 0)).nonzero()[:, 0]
        for i in broken[margin[broken].argsort(stable=True)][:_TRIED].tolist():
            if self.refutes(x[i]):
                return x[i]
        return None

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs of model, [N,K]."""
        with torch.no_grad():
            y: Tensor = self.model(x)
        return y

    def refutes(self, x: Tensor) -> bool:
        """Whether one input, [*S], refutes the property, in the arithmetic of the claim.

        Sound: outputs of one run, at the deployed levels. They say nothing certain about real
        numbers, so at level real every row of some group must be <= 0 by a rigorous bound.
        Raises SoundnessError if a rigorous bound at this point says that the demand is met.
        """
        if not bool(self.asked.violated(self.outputs(x[None]))):
            return False
        real, point = self.bounder.rounding.level == "real", Box(x[None], x[None])
        patch = areas(self.model, point)[1]
        if bool((patch == UNBOUNDED).any()):
            return not real
        point = point.to(torch.float64)
        least, _ = least_rows(self.function, self.bounder, self.asked, point, patch)
        if not real and bool((worst_margin(least, self.asked.group) > 0).all()):
            raise SoundnessError(
                f"{self.asked.names[0]} is proved at an input that breaks it: a bound is wrong; "
                "please report this with the network and the property"
            )
        return not real or self._exactly(point, patch)

    def _exactly(self, point: Box, patch: Tensor) -> bool:
        """Whether a rigorous bound says that every row of some group is <= 0 at a point."""
        asked, groups = self.asked, self.asked.group[0]
        for g in groups[groups >= 0].unique():
            rows = (groups == g).nonzero()[:, 0]
            below = evolve(
                asked, C=-asked.C[:, rows], d=-asked.d[:, rows], group=asked.group[:, rows]
            )
            found, _ = least_rows(self.function, self.bounder, below, point, patch)
            if bool((found >= 0).all()):
                return True
        return False

    def _margin(self, x: Tensor) -> Tensor:
        return self._times(len(x)).margin(self.outputs(x)).nan_to_num(-torch.inf)

    def _times(self, count: int) -> PropertySet:
        """The property, for so many inputs: [count] of it."""
        return self.asked[torch.zeros(count, dtype=torch.long)]


def thin(box: Box) -> list[int]:
    """Flat inputs of one box in which no float lies between faces that differ.

    Faces are rounded outward, so there may be no float of the exact region: those beside it
    stand for its numbers, as they do wherever such numbers are stored.
    """
    exact = inner(box)
    same = (exact.lower == box.lower) & (exact.upper == box.upper) & (box.lower < box.upper)
    return [int(i) for i in same.flatten().nonzero()[:, 0]]
