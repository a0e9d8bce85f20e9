"""What the allocators share: comparing a query's labels with the repaired inputs' labels."""

import torch
from torch import Tensor

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
