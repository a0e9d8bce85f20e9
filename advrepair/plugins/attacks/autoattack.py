"""AutoAttack by the package pyautoattack, on boxes and specifications of any kind."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from advrepair.core.errors import UsageError
from advrepair.core.interfaces import Attack
from advrepair.core.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from advrepair.core.types import PropertySet

_MODULES = ("pyautoattack", "autoattack")


@frozen
class AutoAttack(Attack):
    """APGD-CE, targeted APGD, targeted FAB and Square, by the package pyautoattack (an extra)."""

    name: ClassVar[str] = "autoattack"
    version: str = option(
        "standard",
        "standard: all four; paper: only APGD, 10 iterations, as in the paper's code: weak",
        choices=("standard", "paper"),
    )
    iterations: int = option(
        0, "of each APGD and FAB run; 0: the version's own, 100 or 10", at_least=0
    )
    queries: int = option(5000, "of Square, for each property", at_least=1)
    batch: int = option(250, "properties attacked at once, at most", at_least=1)

    def require(self) -> None:
        """Raises UsageError without the library."""
        _library()

    def perturb(
        self, model: nn.Module, properties: PropertySet, start: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The point of the lowest margin met, for each property, inside its box: [P,*S].

        The attacks begin at the centre, or at random, as the library has it; start is only
        tried too. A property that is broken is left alone by the attacks after that. The
        random numbers of a property depend on those in its batch.

        start: [P,*S], of the box's dtype or wider; the result has its dtype. The library
        works in float32: points of a wider box are those that its coordinates reach.
        Raises UsageError without the library, and for a start that is NaN or narrower.
        """
        from advrepair.plugins.attacks.four_attacks import search

        return search(self, _library(), model, properties, start, generator)


def _library() -> Any:
    """The module that holds the library; raises UsageError if there is none."""
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        if hasattr(module, "AutoAttack"):
            return module
    raise UsageError(
        "attack autoattack needs a package that is not installed: "
        'pip install "advrepair[autoattack]", or pip install "pyautoattack>=0.2,<0.3"'
    )
