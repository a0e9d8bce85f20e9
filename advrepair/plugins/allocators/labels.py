"""What the allocators share: comparing a query's labels with the repaired inputs' labels."""

import torch
from torch import Tensor

from advrepair.core.interfaces import OperatorList
from advrepair.core.types import Centres

# Numbers that a temporary tensor may hold; queries are taken in chunks to stay below it.
CHUNK_NUMBERS = 4_000_000


def queries_at_once(centres: int) -> int:
    """How many queries to compare with that many centres in one step."""
    return max(1, CHUNK_NUMBERS // max(1, centres))


def top_two(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The two classes with the largest logits, the lower index first among equal ones: [N] each.

    ``torch.topk`` leaves open which of two equal logits comes first.
    """
    first = logits.argmax(1)
    others = logits.scatter(1, first[:, None], -torch.inf)
    return first, others.argmax(1)


def same_label(logits: Tensor, centres: Centres) -> Tensor:
    """Whether centre j bears the label that the network gives query i: bool [N,P]."""
    return logits.argmax(1)[:, None] == centres.label[None]


def write_argmax(to: OperatorList, values: str) -> str:
    """``values.argmax(1)``: int64 [N]; the first NaN wins, as in torch."""
    odd = to.call("Cast", to.call("IsNaN", values), to=torch.int32)
    some = to.call("Cast", to.call("ReduceMax", odd, axes=(1,), keepdims=0), to=torch.bool)
    where = to.call("ArgMax", odd, axis=1, keepdims=0)
    return to.call("Where", some, where, to.call("ArgMax", values, axis=1, keepdims=0))


def write_equal(to: OperatorList, index: str, values: Tensor) -> str:
    """Whether entry j of values is the index of query i: bool [N,P]. index: int64 [N]."""
    return to.call("Equal", to.call("Unsqueeze", index, axes=(1,)), to.constant(values[None]))


def write_to_patches(to: OperatorList, chosen: str, centres: Centres) -> str:
    """:meth:`Centres.to_patches`: bool [N,P] to bool [N,Q]."""
    serves = centres.to_patches(torch.eye(len(centres.label), dtype=torch.bool)).float()
    count = to.call("MatMul", to.call("Cast", chosen, to=torch.float32), to.constant(serves))
    return to.call("Greater", count, to.constant(torch.zeros(1)))
