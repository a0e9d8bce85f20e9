"""APRNN: an ordinary network, of which one layer and later biases are changed by one LP."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from advrepair import Method, MethodResult, Task, UsageError, option


@frozen
class Aprnn(Method):
    """A layer and later biases change by a linear program that holds every ReLU (APRNN).

    Source: Tao, Nawas, Mitchell and Thakur, "Architecture-Preserving Provable Repair of Deep
    Neural Networks", PLDI 2023 (arXiv 2304.03496). Weights and bias of layer k change, and the
    biases of all later layers. At each input every ReLU from there on is held as it is in N::

        z_j >= 0 where it is on,  z_j <= 0 where it is off

    Then it is the identity or zero, all later z_j and the outputs are affine in what changes
    (only one weight matrix does), and the network that is repaired is an ordinary one of the same
    architecture. The change sought is the least, in |v|_1 / p + |v|_inf, with entries of at most
    ``limit``, for which one row of each group of every property is at least ``margin`` (of
    several the one that N breaks least). Every layer is tried; of those with a solution the one is
    kept that loses least on held-out inputs.

    ``region = "boxes"``: the demand is made at the corners of each property's box, or of the pieces
    it is cut into, all held as at the centre of the piece. So everything behind the first layer
    is affine on a piece, and what holds at its corners holds in it, in real numbers. Only the
    first layer can change then, and boxes may have few sides.

    Otherwise than there: only the change of parameters is made small, not that of the outputs
    as well, which must move by about 1 and would let weights move as far; max pools, sigmoids,
    tanh and hardswish are refused; of many parameters the LP is solved to a proven gap, by adding
    columns; solutions are checked again in float64, and the network as it will run.
    """

    name: ClassVar[str] = "aprnn"

    margin: float = option(0.05, "that every demand is to have, in units of outputs", above=0)
    limit: float = option(3.0, "of the change of one parameter", above=0)
    layer: int = option(0, "the layer with weights that changes, from 1; 0: all, one by one")
    gap: float = option(
        0.05, "of the objective to the proven bound, as a share", at_least=1e-4, at_most=0.5
    )
    region: str = option(
        "points",
        "what is repaired: the counterexamples, or whole boxes",
        choices=("points", "boxes"),
    )
    cuts: int = option(0, "times that each box is halved; only for boxes", at_least=0, at_most=16)

    def require(self) -> None:
        """Raises UsageError without HiGHS."""
        import importlib.util

        if importlib.util.find_spec("highspy") is None:
            raise UsageError("aprnn needs HiGHS: pip install highspy")

    def repair(self, task: Task) -> MethodResult:
        """An ordinary network of the same architecture, if a layer has a solution.

        Raises UsageError for a network that bends elsewhere than at ReLUs, or lacks the layer, and
        for boxes with more corners than can be written down.
        """
        from advrepair_baselines.aprnn_repair import repair

        return repair(self, task)
