"""Projected gradient descent on a property's margin, inside its box."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Attack
from advrepair.core.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from advrepair.core.types import PropertySet


@frozen
class Pgd(Attack):
    """Projected gradient descent on the margin, by the sign of the gradient."""

    name: ClassVar[str] = "pgd"
    steps: int = option(20, "steps of one descent", at_least=1)
    restarts: int = option(1, "descents; all but the first start at random", at_least=1)
    step: float = option(2.5, "total travel of one descent, in radii of the box", above=0)

    def perturb(
        self, model: nn.Module, properties: PropertySet, start: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The point of the lowest margin met, for each property, inside its box: [P,*S].

        The first descent begins at start, moved into the box; the others at uniformly random
        points. Where the gradient vanishes a step goes in a random direction instead. Apart
        from the model's own rounding, a property's result depends on nothing but itself, its
        start and the generator's state.

        start: [P,*S], of the box's dtype or wider; the result has its dtype.
        Raises UsageError for a start that is NaN or of a narrower dtype.
        """
        from advrepair.plugins.attacks.descent import descend

        return descend(self, model, properties, start, generator)
