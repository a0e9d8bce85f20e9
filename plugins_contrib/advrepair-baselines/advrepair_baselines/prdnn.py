"""PRDNN: a decoupled network, of which one layer's values are changed by one LP."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from advrepair import Method, MethodResult, Task, UsageError, option


@frozen
class Prdnn(Method):
    """One layer of a decoupled network changes by a linear program (PRDNN).

    Source: Sotoudeh and Thakur, "Provable Repair of Deep Neural Networks", PLDI 2021
    (arXiv 2104.04413). A decoupled network has two channels, both with the network's weights. The
    activation channel says which ReLUs are on; the value channel multiplies by that::

        a_k = W_k relu(a_k-1) + b_k,    v_k = W'_k (1[a_k-1 > 0] v_k-1) + b'_k

    Its weights W', b' of one layer do not move what is on, so outputs are affine in them
    (theorem 4.5): D(x) = N(x) + J(x) v. The v sought is the least, in |v|_1 / p + |v|_inf, with
    entries of at most ``limit``, for which at every counterexample one row of each group of its
    property is at least ``margin`` (of several the one that N breaks least). Every layer is
    tried; of those that have a solution the one is kept that loses least on held-out inputs.

    Otherwise than there: points only, no polytopes; max pools, sigmoids and tanh are refused; the
    LP is solved to a proven gap by adding columns, so the Jacobian is never built; solutions are
    checked again in float64, and the model as it will run. What comes out is no network of the
    usual kind: it has a mask for every ReLU, jumps where one of them turns, and nothing bounds
    it. It is exported as what it is, with both channels.
    """

    name: ClassVar[str] = "prdnn"

    margin: float = option(0.05, "that every demand is to have, in units of outputs", above=0)
    limit: float = option(3.0, "of the change of one weight", above=0)
    layer: int = option(0, "the layer with weights that changes, from 1; 0: all, one by one")
    gap: float = option(
        0.05, "of the objective to the proven bound, as a share", at_least=1e-4, at_most=0.5
    )

    def require(self) -> None:
        """Raises UsageError without HiGHS."""
        import importlib.util

        if importlib.util.find_spec("highspy") is None:
            raise UsageError("prdnn needs HiGHS: pip install highspy")

    def repair(self, task: Task) -> MethodResult:
        """A :class:`~advrepair_baselines.decoupled.Decoupled`, if a layer has a solution.

        Raises UsageError for a network that bends elsewhere than at ReLUs, or lacks the layer.
        """
        from advrepair_baselines.decoupled import decouple

        return decouple(self, task)
