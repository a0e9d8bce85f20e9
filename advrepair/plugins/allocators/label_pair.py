"""Allocation by the two leading labels: natural for the label indicators."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.options import option
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import (
    same_label,
    top_two,
    write_argmax,
    write_equal,
    write_to_patches,
)


@frozen
class LabelPair(Allocator):
    """All patches whose (label, attacked label) are the query's top two classes."""

    name: ClassVar[str] = "label-pair"
    fallback: bool = option(True, "without such a pair, take all patches of the label")

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q].

        This is the rule of the paper's released code; the paper's text has ``cosine``.

        x: [N,*S], not looked at. logits: [N,K].
        """
        _, runner_up = top_two(logits)
        label = same_label(logits, centres)
        pair = label & (runner_up[:, None] == centres.target[None])
        if self.fallback:
            pair = torch.where(pair.any(1, keepdim=True), pair, label)
        return centres.to_patches(pair)

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """As operators: bool [N,Q]."""
        lowest = to.constant(torch.full((1,), -torch.inf, dtype=centres.logits.dtype))
        first = write_argmax(to, logits)
        winner = write_equal(to, first, torch.arange(centres.logits.shape[1]))
        second = write_argmax(to, to.call("Where", winner, lowest, logits))
        label = write_equal(to, first, centres.label)
        pair = to.call("And", label, write_equal(to, second, centres.target))
        if self.fallback:
            count = to.call("Cast", pair, to=torch.int32)
            some = to.call("ReduceMax", count, axes=(1,), keepdims=1)
            alone = to.call("Not", to.call("Cast", some, to=torch.bool))
            pair = to.call("Or", pair, to.call("And", alone, label))
        return write_to_patches(to, pair, centres)

    def most(self, centres: Centres) -> int:
        """Patches of the label, or of the pair, that has the most."""
        both = torch.stack([centres.label, centres.target], 1)
        _, group = (centres.label if self.fallback else both).unique(dim=0, return_inverse=True)
        chosen = torch.nn.functional.one_hot(group).T.bool()
        return int(centres.to_patches(chosen).sum(1).max())
