"""The repaired inputs with the most similar logits."""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.interfaces import OperatorList
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import (
    queries_at_once,
    same_label,
    write_argmax,
    write_equal,
    write_to_patches,
)


def _unit(centres: Tensor) -> Tensor:
    """Rows of length 1: [P,K]."""
    length: Tensor = centres.norm(dim=1, keepdim=True)
    return centres / length.clamp(min=torch.finfo(centres.dtype).tiny)


def _similarity(logits: Tensor, centres: Tensor) -> Tensor:
    """Cosine similarity times the query's own norm: [N,P] from [N,K] and [P,K].

    The norm is left out because it does not change a query's order of centres. The sum runs
    class by class: a matrix product may sum in another order when the batch has another
    size, and the last bit can decide which centre is the tenth.
    """
    unit = _unit(centres)
    total = logits.new_zeros(len(logits), len(centres))
    for query, centre in zip(logits.T, unit.T, strict=True):
        total += query[:, None] * centre[None]
    return total


def most_similar(logits: Tensor, centres: Centres, top: int) -> Tensor:
    """The top repaired inputs of the same label: bool [N,P]. logits: [N,K]."""
    if not bool(logits.isfinite().all() & centres.logits.isfinite().all()):
        parts = torch.split(logits, queries_at_once(len(centres.label)))
        return torch.cat([_nearest(part, centres, top) for part in parts])
    chosen = torch.zeros(len(logits), len(centres.label), dtype=torch.bool, device=logits.device)
    label = logits.argmax(1)
    for value in label.unique().tolist():
        candidates = (centres.label == value).nonzero()[:, 0]
        if not len(candidates):
            continue
        known = centres.logits[candidates].double()
        queries = (label == value).nonzero()[:, 0]
        for part in queries.split(queries_at_once(len(candidates))):
            best = _largest(_similarity(logits[part].double(), known), top)
            row, column = best.nonzero().T
            chosen[part[row], candidates[column]] = True
    return chosen


def _largest(values: Tensor, count: int) -> Tensor:
    """The largest of each row, of equal ones the first: bool [N,P]. values: finite."""
    count = min(count, values.shape[1])
    least = values.topk(count, dim=1).values[:, -1:]
    larger, equal = values > least, values == least
    wanted = count - larger.sum(1, keepdim=True)
    return larger | (equal & (equal.cumsum(1) <= wanted))


def _nearest(logits: Tensor, centres: Centres, top: int) -> Tensor:
    """The same of one chunk, whatever the numbers are: NaN and infinities have a place too."""
    candidate = same_label(logits, centres)
    similarity = _similarity(logits.double(), centres.logits.double())
    ranked = similarity.masked_fill(~candidate, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)[:, :top]
    return torch.zeros_like(candidate).scatter(1, order, True) & candidate


def write_most_similar(to: OperatorList, logits: str, centres: Centres, top: int) -> str:
    """Their patches as operators: bool [N,Q]; the same products and sums, in the same order.

    top: no more than there are repaired inputs.
    """
    candidate = write_equal(to, write_argmax(to, logits), centres.label)
    query, total = to.call("Cast", logits, to=torch.float64), ""
    for k, centre in enumerate(_unit(centres.logits.double()).T):
        column = to.call("Gather", query, to.constant(torch.tensor([k])), axis=1)
        product = to.call("Mul", column, to.constant(centre[None]))
        total = product if not total else to.call("Add", total, product)
    low, high = (to.constant(torch.tensor([e]).double()) for e in (-torch.inf, torch.inf))
    ranked = to.call("Where", to.call("IsNaN", total), high, total)  # as torch sorts NaN
    ranked = to.call("Where", candidate, ranked, low)
    # Of equal values the one with the lower index comes first.
    order = to.call("TopK", ranked, k=top, axis=1)
    nothing = to.call("And", candidate, to.call("Not", candidate))
    chosen = to.call("ScatterElements", nothing, order, to.call("Equal", order, order), axis=1)
    return write_to_patches(to, to.call("And", chosen, candidate), centres)
