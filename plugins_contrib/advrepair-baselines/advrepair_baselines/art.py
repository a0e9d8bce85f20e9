"""ART: training until bounds of the whole region are safe, on cells that are cut where needed."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from advrepair import Method, MethodResult, Task, option


@frozen
class Art(Method):
    """Training on bounds of regions that are cut finer as it goes on (ART). Proves what it trains.

    Source: Lin, Zhu, Samanta, Jagannathan, "ART: Abstraction Refinement-Guided Training for
    Provably Correct Neural Networks", FMCAD 2020 (arXiv 1907.10662). The boxes of the properties
    become disjoint cells, each of which owes what every box around it demands. With LB from the
    abstraction, the distance of a cell from safety is::

        dist = sum over owed properties of max(0, margin - min_groups max_rows LB(row))

    which is 0 only if the cell is proved. For a label a group has one row, N_label - N_l: the
    worst of all l. For "this output is not the largest" one group has them all: the best of all l.
    Minimised is the mean of dist over a batch of cells plus the cross-entropy of a batch of
    labelled points, by Adam; the rate falls when the mean of dist does not. Before the training
    and after each epoch the cells with the largest distance are bisected, where |d dist / d face|
    times width is largest. It ends when all cells are proved.

    Where a network decides for its smallest output, the cross-entropy is of the negated outputs.
    Otherwise than there: cross-entropy is taken of the outputs and not of their softmax, unless
    ``double_softmax`` says so; cells at distance 0 are found by a pass without gradients, of which
    they have none; the gradient is clipped; points inside a box whose label contradicts it are
    left out; and if not all cells are proved, those weights are kept that prove most. Bounds are
    those of ``--verifier``, and of the format of the weights without its rounding.
    """

    name: ClassVar[str] = "art"

    cells: int = option(1000, "cells to cut to before the training", at_least=1)
    most: int = option(10_000, "cells, after which no more are cut", at_least=1)
    cut: int = option(400, "cells that are bisected at a time", at_least=1)
    tiny: float = option(1e-3, "width of an input below which it is not bisected", above=0)
    margin: float = option(0.01, "by which bounds must be safe", above=0)
    least_epochs: int = option(5, "epochs, even if all is proved before", at_least=0)
    epochs: int = option(35, "epochs, at most", at_least=1)
    batch: int = option(100, "cells, and labelled points, of a step", at_least=1)
    lr: float = option(1e-3, "learning rate of Adam at the start", above=0)
    clip: float = option(1.0, "norm that the gradient of a step is cut to", above=0)
    double_softmax: bool = option(False, "cross-entropy takes the softmax for outputs, as theirs")

    def repair(self, task: Task) -> MethodResult:
        """An ordinary network of the same architecture.

        Raises UsageError if the bounds of a single cell do not fit the memory.
        """
        from advrepair_baselines.art_training import train

        return train(self, task)
