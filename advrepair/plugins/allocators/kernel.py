"""Constant patches of the classes, weighed by the density of labelled inputs around the query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.errors import UsageError
from advrepair.core.interfaces import OperatorList, SmoothAllocator
from advrepair.core.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.box import Box
    from advrepair.core.graph import Network
    from advrepair.core.types import Centres, Points


@frozen
class Kernel(SmoothAllocator):
    """Constant patches of the classes, weighed by a Gaussian kernel over labelled inputs.

    Outside every box, with phi(x) some directions of the ramp of x,
    ``F_k = log(softmax(N)_k + trust) + weight (log sum over points j of class k of
    exp(-|phi(x) - phi_j|^2 / temperature) - the same over all points)``. So N counts as much as
    ever where the points do not tell, and by no more than log(1 + 1/trust) where they do.
    """

    name: ClassVar[str] = "kernel"
    points: int = option(0, "labelled inputs that are remembered; 0: the repaired ones", at_least=0)
    copies: int = option(
        1, "each of them so often: itself, and moved, turned and bent a little", at_least=1
    )
    temperature: float = option(0.0, "squared width of the kernel; 0: fitted", at_least=0)
    weight: float = option(0.0, "of the patches; 0: fitted", at_least=0)
    trust: float = option(0.5, "probability of N that counts as none", above=0, at_most=1)
    ramp: tuple[float, ...] = option(
        (0.2, 0.8), "shares of the input range that count as its ends; [] for none"
    )
    blur: float = option(1.0, "standard deviation in pixels, of images; 0: none", at_least=0)
    rank: int = option(64, "directions in which inputs are compared; 0: all", at_least=0)
    steps: int = option(600, "by which the directions are learned; 0: the leading ones", at_least=0)
    validation: int = option(
        5000, "labelled inputs, others than the points, that both are fitted by", at_least=1
    )
    drawdown: float = option(
        0.0,
        "accuracy on them that may be lost, with a standard error to spare",
        at_least=0,
        at_most=1,
    )
    attacked: int = option(200, "of them, that are attacked while it is fitted", at_least=1)

    def __attrs_post_init__(self) -> None:
        ramp = self.ramp
        if ramp and (len(ramp) != 2 or not 0 <= ramp[0] < ramp[1] <= 1):
            raise UsageError(
                f"kernel.ramp is {list(ramp)}: it must be [low, high] with 0 <= low < high <= 1, "
                "or [] for none"
            )

    @property
    def fits(self) -> bool:
        """Whether temperature or weight is to be found."""
        return not (self.temperature and self.weight)

    def fit(self, network: Network, given: Points) -> Mapping[str, Tensor]:
        """The points as the kernel sees them, and its temperature and weight."""
        from advrepair.plugins.allocators.density_fit import fitted

        return fitted(self, network, given)

    def outputs(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """F outside the boxes: [N,K]; a function of each query alone."""
        from advrepair.plugins.allocators.density import Density, trusted

        density = Density.of(centres.fitted, x.dtype)
        return trusted(logits, self.trust) + density.weight * density(x)

    def least(self, box: Box, label: Tensor, margins: Tensor, centres: Centres) -> Tensor:
        """Lower bounds of ``F_label - F_k`` on each box: [B,K].

        Sound: the least that N's probabilities allow, and the least difference of the
        densities; each says why.
        """
        from advrepair.plugins.allocators.density_bounds import least_difference

        return least_difference(self.trust, box, label, margins, centres.fitted)

    def told(self, centres: Centres) -> dict[str, float]:
        """Temperature, weight and points; and what held-out inputs say, if they were asked."""
        fitted = centres.fitted
        _, _, temperature, weight = fitted["numbers"].tolist()
        found = {"points": float(fitted["counts"].sum()), "temperature": temperature}
        found["weight"] = weight
        names = ("unrepaired accuracy", "accuracy", "standing", "inputs")
        held = dict(zip(names, fitted["validation"].tolist(), strict=True))
        return found | ({f"validation {n}": v for n, v in held.items()} if held["inputs"] else {})

    def write_outputs(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """The same as operators: the name of [N,K]."""
        from advrepair.plugins.allocators.density_steps import write_outputs

        dtype = centres.logits.dtype
        return write_outputs(to, x, logits, self.trust, centres.fitted, dtype)
