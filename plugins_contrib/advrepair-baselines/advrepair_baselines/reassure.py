"""REASSURE: an affine patch on the linear region around each counterexample."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from attrs import frozen

from advrepair import Method, MethodResult, Task, UsageError, option


@frozen
class Reassure(Method):
    """Adds the least affine patch on the linear region of each counterexample (REASSURE).

    Source: Fu and Li, "Sound and Complete Neural Network Repair with Minimality and Locality
    Guarantees", ICLR 2022 (arXiv 2110.07682). Around a counterexample N(x) = F x + f as long as
    no ReLU changes its sign; that region, within the box of the property, is A = {A x <= b}, rows
    of length 1. The patch p(x) = c x + d minimises t = max over A of |p|, such that N + p has
    what is demanded, by a margin, on all of A. Both "for all x in A" become multipliers::

        A' p+ = c_j,   b p+ + d_j <= t,      A' p- = -c_j,  b p- - d_j <= t
        A' l = a (F + c),  b l <= -margin - a (f + d)           (a: a demand, a y <= 0)

    It is on by g(x) = ReLU(1 - sum_i min(1, ReLU(a_i x - b_i) / w)), which is 1 on A and 0 where
    the violations add up to the collar w; the network is N + sum ReLU(p - K (1 - g)) -
    ReLU(-p - K (1 - g)) with K >= |p| on all inputs. Counterexamples of one region share a patch.

    Otherwise than there: A ends with the box, where the demand ends; the collar is given in input
    units (theirs was 5) and is narrower where it would reach a counterexample of another region;
    of outputs of which one must be larger, the one that is nearest is raised; and where the
    problem has more than ``entries`` numbers, p is an affine function of the demanded sums a N,
    whose ends on A are found first, a small problem each. For a label that has the
    same minimum: with u the largest a N + margin on A, no patch is below u / 2, and that constant
    suffices. Every demand is proved again for the patch that was found, by weak duality.
    """

    name: ClassVar[str] = "reassure"

    collar: float = option(1e-3, "width of the rim on which a patch fades, in input units", above=0)
    margin: float = option(1e-3, "by which demands are met on a region", above=0)
    entries: int = option(200_000, "numbers of a problem with all of c free, at most", at_least=0)

    def require(self) -> None:
        """Raises UsageError without the solver."""
        if find_spec("highspy") is None:
            raise UsageError("reassure solves linear programs: pip install highspy")

    def repair(self, task: Task) -> MethodResult:
        """N and its patches, as a module.

        Raises UsageError for a network that is not piecewise linear by its ReLUs alone, and
        where the rows of one region do not fit the memory.
        """
        self.require()
        from advrepair_baselines.reassure_repair import repair

        return repair(self, task)
