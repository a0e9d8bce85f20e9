"""Allocation by the two leading labels: natural for the label indicators."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.interfaces import Allocator
from advrepair.core.options import option
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import same_label, top_two


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
