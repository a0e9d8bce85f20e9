"""What the label indicators share: numbering the labels that occur."""

import torch
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.types import PropertySet


def number_labels(
    indicator: str, properties: PropertySet, columns: dict[str, Tensor]
) -> tuple[list[list[int]], Tensor]:
    """Number the distinct rows of the columns in ascending order.

    columns: what to tell apart, such as the labels, each [P].
    Returns the distinct rows, Q of them, and the number of each property's row, [P].
    Raises UsageError if a property lacks one of the columns (-1).
    """
    for what, values in columns.items():
        if bool((values < 0).any()):
            lacking = properties.names[int((values < 0).nonzero()[0])]
            raise UsageError(
                f"indicator {indicator}: it needs labelled properties, but {lacking!r} has no "
                f"{what}; use --indicator property-guided"
            )
    table = torch.stack(list(columns.values()), 1)
    distinct, number = torch.unique(table, dim=0, return_inverse=True)
    return distinct.tolist(), number
