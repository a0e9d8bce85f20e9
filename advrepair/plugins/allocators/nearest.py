"""Allocation by distance in the input."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.interfaces import Allocator
from advrepair.core.options import option
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import queries_at_once


@frozen
class Nearest(Allocator):
    """The patch of the nearest repaired input with the same label (L-infinity)."""

    name: ClassVar[str] = "nearest"
    within: float = option(0.0, "farthest distance, in input units; 0: any", at_least=0)

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q]; of equally near ones the first.

        x: [N,*S]. logits: [N,K].
        """
        chosen = torch.zeros(len(x), len(centres.label), dtype=torch.bool, device=x.device)
        label = logits.argmax(1)
        for value in torch.unique(label).tolist():
            candidates = (centres.label == value).nonzero().squeeze(1)
            if len(candidates):
                queries = (label == value).nonzero().squeeze(1)
                self._mark(chosen, queries, candidates, x, centres)
        return centres.to_patches(chosen)

    def _mark(
        self, chosen: Tensor, queries: Tensor, candidates: Tensor, x: Tensor, centres: Centres
    ) -> None:
        """Set chosen [N,P] where one of the candidates is the nearest of a query."""
        targets = centres.x[candidates].flatten(1).to(x.dtype)
        for part in torch.split(queries, queries_at_once(len(candidates))):
            # A maximum of differences: exact whatever the batch, unlike the Euclidean distance.
            distance = torch.cdist(x[part].flatten(1), targets, p=torch.inf)
            nearest = distance.argmin(1)
            near = distance.gather(1, nearest[:, None]).squeeze(1)
            keep = near <= self.within if self.within else torch.ones_like(near, dtype=torch.bool)
            chosen[part[keep], candidates[nearest[keep]]] = True
