"""Allocation by distance in the input."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.options import option
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import (
    queries_at_once,
    write_argmax,
    write_equal,
    write_to_patches,
)

_IN_FLIGHT = 2**14  # differences for each query, in a written list of operators


@frozen
class Nearest(Allocator):
    """The patch of the nearest repaired input with the same label (L-infinity)."""

    name: ClassVar[str] = "nearest"
    within: float = option(0.0, "farthest distance, in input units; 0: any", at_least=0)

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q]; of equally near ones the first.

        x: [N,*S]; one with a NaN is near nothing. logits: [N,K].
        """
        chosen = torch.zeros(len(x), len(centres.label), dtype=torch.bool, device=x.device)
        # torch.cdist passes over a NaN, as if that coordinate agreed with every centre.
        label = logits.argmax(1).masked_fill(x.flatten(1).isnan().any(1), -1)
        for value in torch.unique(label[label >= 0]).tolist():
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

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """As operators: bool [N,Q]; the same differences, so the same nearest one."""
        dtype = centres.logits.dtype
        flat = to.call("Flatten", x, axis=1)
        odd = to.call("Cast", to.call("IsNaN", flat), to=torch.int32)
        odd = to.call("Cast", to.call("ReduceMax", odd, axes=(1,), keepdims=1), to=torch.bool)
        far = to.constant(torch.tensor([torch.inf], dtype=dtype))
        distance = _write_distance(to, flat, centres.x.flatten(1).to(dtype))
        candidate = write_equal(to, write_argmax(to, logits), centres.label)
        ranked = to.call("Where", candidate, distance, far)
        least = to.call("ReduceMin", ranked, axes=(1,), keepdims=1)
        nearest = to.call("And", candidate, to.call("Equal", ranked, least))
        number = to.call("ArgMax", to.call("Cast", nearest, to=torch.int32), axis=1, keepdims=0)
        first = write_equal(to, number, torch.arange(len(centres.label)))
        chosen = to.call("And", to.call("And", nearest, first), to.call("Not", odd))
        if self.within:
            within = to.constant(torch.tensor([self.within], dtype=dtype))
            chosen = to.call("And", chosen, to.call("LessOrEqual", least, within))
        return write_to_patches(to, chosen, centres)

    def most(self, centres: Centres) -> int:
        """1."""
        return 1


def _write_distance(to: OperatorList, x: str, centres: Tensor) -> str:
    """L-infinity distance of x [N,S] and centres [P,S]: [N,P]; bounded memory."""
    row, found = to.call("Unsqueeze", x, axes=(1,)), []
    for part in centres.split(max(1, _IN_FLIGHT // centres.shape[1])):
        apart = to.call("Abs", to.call("Sub", row, to.constant(part)))
        found.append(to.call("ReduceMax", apart, axes=(2,), keepdims=0))
    return found[0] if len(found) == 1 else to.call("Concat", *found, axis=1)
