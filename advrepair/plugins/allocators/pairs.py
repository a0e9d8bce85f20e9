"""The repaired inputs whose label and attacked label are a query's top two classes."""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.interfaces import OperatorList
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import (
    same_label,
    top_two,
    write_argmax,
    write_equal,
    write_to_patches,
)


def same_pair(logits: Tensor, centres: Centres, fallback: bool) -> Tensor:
    """Whether centre j bears the pair of query i: bool [N,P]. logits: [N,K].

    fallback: a query without such a centre takes those of its label.
    """
    _, runner_up = top_two(logits)
    label = same_label(logits, centres)
    pair = label & (runner_up[:, None] == centres.target[None])
    if fallback:
        pair = torch.where(pair.any(1, keepdim=True), pair, label)
    return pair


def write_same_pair(to: OperatorList, logits: str, centres: Centres, fallback: bool) -> str:
    """Their patches as operators: bool [N,Q]."""
    lowest = to.constant(torch.full((1,), -torch.inf, dtype=centres.logits.dtype))
    first = write_argmax(to, logits)
    winner = write_equal(to, first, torch.arange(centres.logits.shape[1]))
    second = write_argmax(to, to.call("Where", winner, lowest, logits))
    label = write_equal(to, first, centres.label)
    pair = to.call("And", label, write_equal(to, second, centres.target))
    if fallback:
        count = to.call("Cast", pair, to=torch.int32)
        some = to.call("ReduceMax", count, axes=(1,), keepdims=1)
        alone = to.call("Not", to.call("Cast", some, to=torch.bool))
        pair = to.call("Or", pair, to.call("And", alone, label))
    return write_to_patches(to, pair, centres)


def most_of_a_pair(centres: Centres, fallback: bool) -> int:
    """Patches of the pair, or with fallback of the label, that has the most."""
    both = torch.stack([centres.label, centres.target], 1)
    _, group = (centres.label if fallback else both).unique(dim=0, return_inverse=True)
    chosen = torch.nn.functional.one_hot(group).T.bool()
    return int(centres.to_patches(chosen).sum(1).max())
