"""The repaired input that is nearest, by L-infinity distance."""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.interfaces import OperatorList
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import (
    queries_at_once,
    write_argmax,
    write_equal,
    write_to_patches,
)

_IN_FLIGHT = 2**14  # differences for each query, in a written list of operators


def nearest_of_label(x: Tensor, logits: Tensor, centres: Centres, within: float) -> Tensor:
    """Whether centre j is the nearest of query i with its label: bool [N,P]; the first of equals.

    x: [N,*S]. logits: [N,K]. within: farthest distance, in input units; 0: any.
    """
    chosen = torch.zeros(len(x), len(centres.label), dtype=torch.bool, device=x.device)
    # torch.cdist passes over a NaN, as if that coordinate agreed with every centre.
    label = logits.argmax(1).masked_fill(x.flatten(1).isnan().any(1), -1)
    for value in torch.unique(label[label >= 0]).tolist():
        candidates = (centres.label == value).nonzero().squeeze(1)
        if len(candidates):
            queries = (label == value).nonzero().squeeze(1)
            _mark(chosen, queries, candidates, x, centres, within)
    return chosen


def _mark(
    chosen: Tensor, queries: Tensor, candidates: Tensor, x: Tensor, centres: Centres, within: float
) -> None:
    """Set chosen [N,P] where one of the candidates is the nearest of a query."""
    targets = centres.x[candidates].flatten(1).to(x.dtype)
    for part in torch.split(queries, queries_at_once(len(candidates))):
        # A maximum of differences: exact whatever the batch, unlike the Euclidean distance.
        distance = torch.cdist(x[part].flatten(1), targets, p=torch.inf)
        nearest = distance.argmin(1)
        near = distance.gather(1, nearest[:, None]).squeeze(1)
        keep = near <= within if within else torch.ones_like(near, dtype=torch.bool)
        chosen[part[keep], candidates[nearest[keep]]] = True


def write_nearest(to: OperatorList, x: str, logits: str, centres: Centres, within: float) -> str:
    """Their patches as operators: bool [N,Q]; the same differences, so the same nearest one."""
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
    if within:
        limit = to.constant(torch.tensor([within], dtype=dtype))
        chosen = to.call("And", chosen, to.call("LessOrEqual", least, limit))
    return write_to_patches(to, chosen, centres)


def _write_distance(to: OperatorList, x: str, centres: Tensor) -> str:
    """L-infinity distance of x [N,S] and centres [P,S]: [N,P]; bounded memory."""
    row, found = to.call("Unsqueeze", x, axes=(1,)), []
    for part in centres.split(max(1, _IN_FLIGHT // centres.shape[1])):
        apart = to.call("Abs", to.call("Sub", row, to.constant(part)))
        found.append(to.call("ReduceMax", apart, axes=(2,), keepdims=0))
    return found[0] if len(found) == 1 else to.call("Concat", *found, axis=1)
