"""TRADES: adversarial training with a trade-off, from the weights that are there."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from advrepair import Method, MethodResult, Task, UsageError, option


@frozen
class Trades(Method):
    """Adversarial training from the network's own weights (TRADES). Nothing is proved.

    Source: Zhang et al., arXiv 1901.08573, equation 3 and algorithm 1. Minimised is the mean of::

        CE(f(x), y) + beta max_{|x'-x| <= epsilon} KL(softmax f(x) | softmax f(x'))

    over a batch, with SGD and momentum. The inner maximum is sought by signs of the gradient, from
    x with normal noise of 0.001, inside the ball and the input range. Gradients flow through both
    sides of KL. Otherwise than there: it begins with the given weights; the rate falls along a
    cosine; the radius grows over the first epochs; each step adds the plain cross-entropy of as
    many other labelled inputs; and of all epochs that one is kept which is best on held-out
    inputs, never on test data. Batch normalisation is part of the weights that are left alone.
    """

    name: ClassVar[str] = "trades"

    epochs: int = option(200, "passes over the inputs to repair", at_least=1)
    batch: int = option(128, "inputs of a step", at_least=1)
    lr: float = option(0.01, "step length at the start", above=0)
    momentum: float = option(0.9, "of SGD", at_least=0, at_most=0.999)
    weight_decay: float = option(2e-4, "of SGD", at_least=0)
    beta: float = option(6.0, "weight of the robust term", at_least=0)
    steps: int = option(10, "steps of the inner search", at_least=1)
    step: float = option(2.5, "total travel of the inner search, in radii", above=0)
    warmup: float = option(0.3, "share of the epochs over which the radius grows", at_least=0)
    anchor: str = option(
        "adversarial",
        "the natural inputs: the counterexamples, or the centres of their balls",
        choices=("adversarial", "center"),
    )
    clean: bool = option(True, "each step also learns as many other labelled inputs, plainly")
    select: str = option(
        "repair",
        "the epoch that is kept: repair: most counterexamples right; robust: most held-out inputs "
        "right under attack",
        choices=("repair", "robust"),
    )
    drawdown: float = option(
        0.01, "accuracy that it may lose on held-out inputs, at most; 1: no limit", at_least=0
    )

    def repair(self, task: Task) -> MethodResult:
        """An ordinary network; the given one, if no epoch keeps the accuracy.

        Raises UsageError for properties without a label.
        """
        if bool((task.properties.label < 0).any()):
            raise UsageError(
                "trades needs a label for every property: it takes balls around inputs, not "
                "property files"
            )
        from advrepair_baselines.trades_training import train

        return train(self, task)
