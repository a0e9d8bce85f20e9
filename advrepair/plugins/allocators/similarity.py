"""The repaired inputs with the most similar logits."""

from __future__ import annotations

from collections.abc import Callable

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

    def scores(queries: Tensor, candidates: Tensor) -> Tensor:
        return _similarity(logits[queries].double(), centres.logits[candidates].double())

    return largest_of_label(logits.argmax(1), centres.label, top, 1, scores)


def largest_of_label(
    label: Tensor,
    theirs: Tensor,
    top: int,
    width: int,
    scores: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The top centres of each query's label, of equal ones the first: bool [N,P].

    label: of the queries, [N]. theirs: of the centres, [P]. width: numbers that a query holds
    while it is compared. scores: of some queries and some centres, which it is given the numbers
    of: finite, a row for each query.
    """
    chosen = torch.zeros(len(label), len(theirs), dtype=torch.bool, device=label.device)
    for value in label.unique().tolist():
        candidates = (theirs == value).nonzero()[:, 0]
        if not len(candidates):
            continue
        queries = (label == value).nonzero()[:, 0]
        for part in queries.split(queries_at_once(max(width, len(candidates)))):
            row, column = _largest(scores(part, candidates), top).nonzero().T
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
    high = to.constant(torch.tensor([torch.inf]).double())
    ranked = to.call("Where", to.call("IsNaN", total), high, total)  # as torch sorts NaN
    return write_to_patches(to, write_largest(to, ranked, candidate, top), centres)


def write_largest(to: OperatorList, scores: str, candidate: str, top: int) -> str:
    """The top candidates of each row, of equal ones the first: bool [N,P].

    scores: float64 [N,P] without NaN. candidate: bool [N,P]. top: at most P.
    """
    low = to.constant(torch.tensor([-torch.inf]).double())
    ranked = to.call("Where", candidate, scores, low)
    # Of equal values the one with the lower index comes first.
    order = to.call("TopK", ranked, k=top, axis=1)
    nothing = to.call("And", candidate, to.call("Not", candidate))
    chosen = to.call("ScatterElements", nothing, order, to.call("Equal", order, order), axis=1)
    return to.call("And", chosen, candidate)
