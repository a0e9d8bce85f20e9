"""CARE: neurons that cause the misbehaviour are found, and weakened or strengthened."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from advrepair import Method, MethodResult, Task, option


@frozen
class Care(Method):
    """Neurons with the largest causal effect on the errors are rescaled by a particle swarm (CARE).

    Source: Sun et al., "Causality-Based Neural Network Repair", ICSE 2022 (arXiv 2204.09274).
    Stage 1: the score of an input is s = -margin, for a label max_l N_l - N_y. A unit v is held
    at each of 16 values b_k between its least and its greatest; E_k = mean s(x | do(v = b_k)),
    ACE_k = E_k - mean_j E_j, and its contribution is mean_k |ACE_k|. Units are neurons behind a
    ReLU, or whole channels of a convolution. Stage 2: of the units with the largest contribution
    the outputs are multiplied by 1 + r_j, r in [-1, 1]; r minimises::

        (1 - alpha) (share of counterexamples still wrong) + alpha (1 - accuracy on clean inputs)

    by a swarm (Kennedy and Eberhart 1995): v <- 0.8 v + 0.41 u1 (own best - r) + 0.41 u2 (best
    of all - r). Otherwise than there: particles begin at 0 with a random velocity, as a swarm at
    rest would stay there; so many units, at most, are searched; and as 1 + r_j >= 0, the factor
    is taken into the layer before the ReLU, so the architecture stays.
    """

    name: ClassVar[str] = "care"

    contribution: str = option(
        "abs_ace",
        "of the mean scores E_k: mean |E_k - mean|, the mean itself, or greatest - least",
        choices=("abs_ace", "mean", "range"),
    )
    values: int = option(16, "at which each unit is held", at_least=2)
    samples: int = option(100, "counterexamples that causes are sought with, at most", at_least=1)
    layer: int = option(0, "hidden layer whose units are candidates, from 1; 0: all", at_least=0)
    share: float = option(0.1, "of the candidates that are rescaled", above=0, at_most=1)
    units: int = option(64, "that are rescaled, at most", at_least=1)
    alpha: float = option(0.3, "weight of the accuracy in the cost", at_least=0, at_most=1)
    clean: int = option(1000, "labelled inputs that the accuracy is measured on", at_least=0)
    particles: int = option(20, "of the swarm", at_least=1)
    iterations: int = option(100, "of the swarm, at most", at_least=1)
    smooth: bool = option(False, "the mean of max(s, 0) in place of the share still wrong")

    def repair(self, task: Task) -> MethodResult:
        """An ordinary network of the same architecture.

        Raises UsageError for a network without such a hidden layer.
        """
        from advrepair_baselines.care_search import search

        return search(self, task)
